package idem

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	takeOver       = 30 * time.Second // after which a process that does not show up has lost its turn
	longestLook    = time.Minute      // between looks at whose turn it is
	firstMishap    = time.Second      // after an error; doubled with each in a row
	longestMishaps = time.Minute
)

// Maintain purges as [Store.PurgeOnce] does, again and again, until ctx ends: a pass, then a rest of [Config.PurgeEvery]. Run it in one
// goroutine of each process that you like; it starts none of its own.
//
// Of all processes one works, at the pace of its Config; the others look once or twice a minute whether it still does. When its
// Maintain ends, another one takes over at its next look; when its process dies, half a minute after it was expected. Nothing
// has to be configured for that, and no connection is held between batches.
//
// It returns nil when ctx ends, after at most one batch. What fails on the way is logged as a warning ([Config.Logger]) and
// tried again, within a minute. So watch that passes come to an end: finished_at in idem_purge. Errors, at the start
// only: [ErrSchema], [ErrUnavailable].
//
// Cost: that of PurgeOnce for the one that works, two SELECTs a minute at most for each of the others.
func (s *Store[TX]) Maintain(ctx context.Context) error {
	switch _, err := s.ready(ctx); {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return publishPurge("maintain", s.cfg.Schema, err)
	}
	m := &maintenance[TX]{store: s, me: newAttempt()}
	defer m.leave(ctx)
	mishap := firstMishap
	for {
		wait, err := m.turn(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.cfg.Logger.Warn("idem: purge failed, and will be tried again", "in", mishap, "err", publishPurge("maintain", s.cfg.Schema, err))
			wait, mishap = mishap, min(2*mishap, longestMishaps)
		default:
			mishap = firstMishap
		}
		if rest(ctx, wait) != nil {
			return nil
		}
	}
}

// maintenance is one call of Maintain.
type maintenance[TX any] struct {
	store  *Store[TX]
	me     int64
	seated bool       // it is our turn, and soon
	pass   PurgeStats // so far
}

// turn does a batch if it is our turn and time, and says how long to wait.
func (m *maintenance[TX]) turn(ctx context.Context) (time.Duration, error) {
	if !m.seated {
		b, err := m.store.purgeState(ctx)
		if wait := m.patience(b); err != nil || wait > 0 {
			return wait, err
		}
	}
	b, err := m.store.purge(ctx, m.me)
	if err != nil {
		return 0, err
	}
	if m.seated = !b.busy; b.busy {
		return min(max(m.patience(b), m.store.cfg.PurgePause), longestLook), nil
	}
	if m.pass.add(b.PurgeStats); b.to.pass > b.from.pass {
		m.store.cfg.Logger.Info("idem: purged", "scanned", m.pass.Scanned, "cleared", m.pass.Cleared, "deleted", m.pass.Deleted,
			"batches", m.pass.Batches, "skipped", m.pass.Skipped)
		m.pass = PurgeStats{}
	}
	m.seated = b.wait < longestLook
	return min(b.wait, longestLook), nil
}

// patience is how long to wait for the next look: until it is time, and a little longer if it is somebody else's turn.
func (m *maintenance[TX]) patience(b batch) time.Duration {
	wait := b.wait
	if b.worker != m.me && b.worker != nobody {
		wait += takeOver + rand.N(takeOver/6) //nolint:gosec // jitter is no secret
	}
	return min(wait, longestLook)
}

// leave gives the turn up. It survives the end of ctx.
func (m *maintenance[TX]) leave(ctx context.Context) {
	if err := m.store.leavePurge(ctx, m.me); err != nil {
		m.store.cfg.Logger.Info("idem: the purge's turn was not given up; another process takes it after a while", "err", err)
	}
}
