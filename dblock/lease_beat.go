package dblock

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// sweepEvery is how often a process that has leases looks for rows that crashed ones have left.
const sweepEvery = time.Hour

// startBeat starts the heartbeats of all leases, if they are not on their way. The mutex is held.
func (l *leases) startBeat() {
	if !l.beating && !l.closed {
		l.beating = true
		l.wg.Go(l.beat)
	}
}

// beat renews all leases by one statement every third of the TTL, and more often while that fails: an error is no loss, the
// deadline of each lease is. It ends when there is nothing left to do. The pause is cut by up to a tenth: a server that was
// stuck answers the heartbeats of all processes in one instant, and they would come together from then on.
func (l *leases) beat() {
	for pause := l.cfg.TTL / 3; ; {
		timer := time.NewTimer(pause - l.jitter(pause/10))
		select {
		case <-timer.C:
		case <-l.ctx.Done():
			timer.Stop()
		}
		l.mu.Lock()
		if l.closed || len(l.held)+len(l.remains) == 0 {
			l.beating = false
			l.unlock()
			return
		}
		held := make([]row, 0, len(l.held))
		for _, h := range l.held {
			held = append(held, h.row)
			h.hold.watchHandles()
		}
		l.clearRemains()
		due := l.now()-l.swept > sweepEvery
		l.unlock()

		pause = l.cfg.TTL / 3
		if all, err := l.renew(held); !all || err != nil {
			pause = l.cfg.TTL / 10
		}
		if due {
			l.sweep()
		}
	}
}

// clearRemains removes what is not needed any more, beside the heartbeats: it may wait for somebody else's lock. What is
// there still is kept in mind again. The mutex is held.
func (l *leases) clearRemains() {
	if l.clearing || len(l.remains) == 0 {
		return
	}
	rows := slices.Collect(maps.Values(l.remains))
	clear(l.remains)
	l.clearing = true
	l.wg.Go(func() {
		_, _ = l.free(rows...)
		l.mu.Lock()
		defer l.unlock()
		l.clearing = false
	})
}

// renew renews leases. A row that somebody has locked is left for the next time; one that is not there, or has expired,
// is lost. all says that there was none of either.
func (l *leases) renew(rows []row) (all bool, err error) {
	if len(rows) == 0 {
		return true, nil
	}
	sent := l.now()
	var renewed, locked string
	if _, err := l.repeatable(l.soon, pg.Stmt{SQL: sqlLeaseRenew, Args: []any{array(rows)}, Dest: []any{&renewed, &locked}}); err != nil {
		return false, err
	}
	var good, later []int64
	if err := errors.Join(json.Unmarshal([]byte(renewed), &good), json.Unmarshal([]byte(locked), &later)); err != nil {
		return false, fmt.Errorf("the server's answer: %w", err)
	}
	verdict := map[int64]bool{} // true: renewed; false: locked
	for _, nonce := range later {
		verdict[nonce] = false
	}
	for _, nonce := range good {
		verdict[nonce] = true
	}
	l.mu.Lock()
	defer l.unlock()
	for _, r := range rows {
		held := l.held[r.Nonce]
		if held == nil {
			continue // given back meanwhile
		}
		switch good, there := verdict[r.Nonce]; {
		case !held.alive():
			held.lose(LostSilence, nil)
		case good:
			held.sent = sent
		case !there:
			held.lose(LostTaken, errTaken)
		}
	}
	return len(later) == 0, nil
}

// sweep removes rows that crashed processes have left. If it fails, it is for another time.
func (l *leases) sweep() {
	l.mu.Lock()
	l.swept = l.now()
	l.unlock()
	ctx, cancel := l.trip()
	defer cancel()
	_ = l.alone(ctx, pg.Stmt{SQL: sqlLeaseSweep})
}
