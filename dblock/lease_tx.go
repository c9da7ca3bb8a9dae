package dblock

import (
	"context"
	"errors"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

var errShared = errors.New("leases are exclusive: shared locks are for a client of New")

// lockTx takes the key's advisory lock, and then sees to it that nobody has a lease. Who takes a lease has the advisory
// lock until his row is committed; so with that lock, and a snapshot from after it, either the row is seen here, or it is not there
// and cannot come before this transaction ends.
func (l *leases) lockTx(ctx context.Context, t txLock) error {
	if t.mode.Shared {
		return errShared
	}
	err := l.tryTx(ctx, t)
	if !t.wait || !errors.Is(err, ErrNotAcquired) {
		return err
	}
	return l.awaitTx(ctx, t)
}

func (l *leases) tryTx(ctx context.Context, t txLock) error {
	if ctx.Err() != nil {
		return notAcquired(ctx)
	}
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	var standby, fresh, got bool
	sql := pg.In(l.cfg.Schema, sqlLeaseTryTx)
	err := t.tx.Run(tctx, pg.Stmt{SQL: sql, Args: []any{t.key.Space, t.key.ID, t.number}, Dest: []any{&standby, &fresh, &got}})
	switch {
	case err != nil:
		return explainTx(pg.ExplainSchema(l.cfg.Schema, err))
	case standby:
		return ErrReadOnly
	case !fresh:
		return ErrIsolation
	case !got:
		return ErrNotAcquired
	}
	_, err = l.freeTx(tctx, t)
	return err
}

// freeTx reports nil if nobody has a lease, and else ErrNotAcquired and for how long that may last. One that has expired is
// cleared away on another connection, so that nothing is written in the caller's transaction.
func (l *leases) freeTx(ctx context.Context, t txLock) (busy time.Duration, err error) {
	for cleared := false; ; cleared = true {
		var remains, rows int64
		sql := pg.In(l.cfg.Schema, sqlLeaseLook)
		err := t.tx.Run(ctx, pg.Stmt{SQL: sql, Args: []any{t.key.Space, t.key.ID}, Dest: []any{&remains}, Rows: &rows})
		switch {
		case err != nil:
			return 0, explainTx(err)
		case rows == 0:
			return 0, nil
		case remains > 0 || cleared: // then it is fenced
			return time.Duration(remains) * time.Microsecond, ErrNotAcquired
		}
		if err := l.clearExpired(t.key); err != nil {
			return 0, err
		}
	}
}

// awaitTx waits: first for the advisory lock, in the server's queue; and with it, so that nobody comes in between, for the
// lease. What fails goes back to the savepoint, and with it goes the lock.
func (l *leases) awaitTx(ctx context.Context, t txLock) error {
	tctx, cancel := pg.TripContext(ctx)
	err := t.tx.Run(tctx, pg.Stmt{SQL: sqlSavepoint})
	cancel()
	if err != nil {
		return explainTx(err)
	}
	err = t.await(ctx, bounded{tx: t.tx}, sqlAwaitTx, t.number)
	for pause := firstPause; err == nil; pause = min(2*pause, lastPause) {
		tctx, cancel := pg.TripContext(ctx)
		var busy time.Duration
		if busy, err = l.freeTx(tctx, t); err == nil {
			err = t.tx.Run(tctx, pg.Stmt{SQL: sqlRelease})
			cancel()
			return err
		}
		cancel()
		if errors.Is(err, ErrNotAcquired) {
			err = sleep(ctx, l.nextLook(pause, busy))
		}
	}
	tctx, cancel = pg.TripContext(ctx)
	defer cancel()
	if undo := t.tx.RunAll(tctx, pg.Stmt{SQL: sqlRollbackTo}, pg.Stmt{SQL: sqlRelease}); undo != nil && !errors.Is(err, ErrUnavailable) {
		return &undoError{undo: undo, cause: err}
	}
	return err
}

// sleep waits until it is time to look again, or ctx ends.
func sleep(ctx context.Context, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return notAcquired(ctx)
	}
}
