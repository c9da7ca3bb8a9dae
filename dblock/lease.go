package dblock

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// lease is one grant: a row that is renewed for as long as it is held.
type lease struct {
	of  *leases
	row row

	// Of its token.
	epoch, number int64

	// Under the engine's mutex.
	sent  time.Duration // when the last request was sent that has renewed it
	lost  bool          // terminal
	hold  *hold
	timer *time.Timer
}

var (
	errTaken = errors.New("the row is gone or somebody else's: it had expired, or was removed")
	errLate  = errors.New("the server's answer took longer than the lease lasts")
)

// alive reports whether the row has surely not expired. The server has begun to count later than we.
func (l *lease) alive() bool { return !l.lost && l.left() > 0 }

func (l *lease) left() time.Duration { return l.sent + l.of.life() - l.of.now() }

func (l *lease) carry(h *hold) {
	l.hold = h
	l.of.held[l.row.Nonce] = l
	l.timer = time.AfterFunc(l.left(), l.tick)
	l.of.startBeat()
}

// tick ends a lease that was not renewed in time, though nobody asks it.
func (l *lease) tick() {
	e := l.of.engine
	e.mu.Lock()
	defer e.unlock()
	switch {
	case l.lost:
	case l.alive():
		l.timer.Reset(l.left())
	default:
		l.lose(LostSilence, nil)
	}
}

// end takes a lease out of the heartbeats.
func (l *lease) end() {
	l.lost = true
	l.timer.Stop()
	delete(l.of.held, l.row.Nonce)
}

func (l *lease) lose(kind LossKind, err error) {
	if l.lost {
		return
	}
	l.end()
	if kind == LostSilence { // then the row may be there
		l.of.remains[l.row.Nonce] = l.row
		l.of.startBeat()
	}
	en := l.hold.entry
	en.hold = nil
	l.of.used--
	for _, t := range l.hold.tenures {
		t.lose(kind, err)
	}
	l.hold.left(errGone)
	l.of.advance(en)
}

// fence locks the row in the caller's transaction. Whoever takes the key over, or gives it away, has to delete this row
// first; so either it is there, and stays until the transaction ends, or it is not.
func (l *lease) fence(ctx context.Context, tx pg.Querier, _ *tenure) (held bool, err error) {
	var nonce, rows int64
	sql := pg.In(l.of.cfg.Schema, sqlLeaseFence)
	err = tx.Run(ctx, pg.Stmt{SQL: sql, Args: l.row.args(), Dest: []any{&nonce}, Rows: &rows})
	if pg.Code(err) == pg.CodeSerialization { // above READ COMMITTED: the row has been deleted since the snapshot
		err = explainTx(err)
	}
	return rows == 1, err
}

// takeAttempts is how often a key is asked for that cannot be answered for a reason of ours.
const takeAttempts = 3

// take asks for a key: a lease, or for how long somebody else has one. With an error nothing is left on the server, or
// it is kept in mind.
func (l *leases) take(key Key, number int64) (got *lease, busy time.Duration, err error) {
	for n := range takeAttempts {
		ctx, cancel := l.trip()
		defer cancel()
		got = &lease{of: l, row: newRow(key)}
		var remains int64
		s := pg.Stmt{
			SQL:  sqlLease,
			Args: []any{key.Space, key.ID, number, got.row.Nonce, l.cfg.Holder, l.cfg.TTL.Microseconds()},
			Dest: []any{&got.number, &remains, &got.epoch},
		}
		got.sent = l.now()
		if n == 0 {
			err = l.alone(ctx, s)
		} else {
			err = l.inTx(ctx, s)
		}
		if err == nil && remains <= 0 {
			err = l.takeOver(ctx, got, s)
		}
		switch {
		case pg.Code(err) == pg.CodeLockTimeout: // somebody is just taking it
			return nil, 0, nil
		case errors.Is(err, pg.ErrUnavailable), pg.Rejected(err) && pg.Code(err) != pg.CodeSerialization:
			return nil, 0, l.explain(err)
		case err == nil && got.number == 0:
			return nil, time.Duration(remains) * time.Microsecond, nil
		case err == nil && got.epoch > 0 && got.left() > 0:
			return got, 0, nil
		}
		err = l.settle(got, err)
	}
	return nil, 0, err
}

// settle undoes a grant that is of no use, or that may have been one: the nonce tells which row it was. The error says what to
// tell the caller if no other attempt does better.
func (l *leases) settle(got *lease, err error) error {
	var cause error
	switch {
	case pg.Code(err) == pg.CodeSerialization:
		return unavailable(err) // rolled back; the next attempt names its isolation level
	case err != nil: // the answer was lost: the server may still be at it, so the row may come after this
		cause = unavailable(err)
		l.keep(got.row)
	case got.epoch == 0: // the server has restarted as another one, or was promoted
		cause = unavailable(errors.New("the epoch of tokens changes"))
		ctx, cancel := l.trip()
		defer cancel()
		if err := l.inTx(ctx, pg.Stmt{SQL: sqlNewEpoch}); err != nil {
			cause = l.explain(err)
		}
	default:
		cause = unavailable(errLate)
	}
	_, err = l.free(got.row)
	return errors.Join(cause, err)
}

// takeOver takes the key of a row that has expired. The row is locked first and judged in a later trip; see sqlLeaseLock and
// sqlLeaseExpire. If it cannot be had, s tells so again.
func (l *leases) takeOver(ctx context.Context, got *lease, s pg.Stmt) error {
	tx, found, err := l.lockExpired(ctx, got.row)
	if err != nil || tx == nil {
		return err
	}
	got.sent = l.now()
	return tx.Commit(ctx, append(l.expire(found), l.in(s)...)...)
}

// lockExpired locks a row that seems to have expired; tx is nil if it cannot be locked.
func (l *leases) lockExpired(ctx context.Context, r row) (tx ownedTx, found row, err error) {
	var rows int64
	found = r
	tx, err = l.begin(ctx, l.in(
		pg.Stmt{SQL: sqlLeaseLimits, Args: []any{millis(l.cfg.TTL)}, Dest: []any{new(string)}},
		pg.Stmt{SQL: sqlLeaseLock, Args: []any{r.Space, r.ID}, Dest: []any{&found.Nonce}, Rows: &rows},
	)...)
	if err == nil && rows == 0 {
		tx.Rollback(ctx)
		return nil, found, nil
	}
	return tx, found, err
}

// expire is what a row that is locked gets: deleted if it has expired, put right if the clock went back.
func (l *leases) expire(r row) []pg.Stmt {
	return l.in(pg.Stmt{SQL: sqlLeaseRewind, Args: r.args()}, pg.Stmt{SQL: sqlLeaseExpire, Args: r.args()})
}

// clearExpired is takeOver for somebody who wants no lease.
func (l *leases) clearExpired(key Key) error {
	ctx, cancel := l.trip()
	defer cancel()
	tx, found, err := l.lockExpired(ctx, newRow(key))
	if err == nil && tx != nil {
		err = tx.Commit(ctx, l.expire(found)...)
	}
	if err != nil {
		return fmt.Errorf("expired lease: %w", l.explain(err))
	}
	return nil
}
