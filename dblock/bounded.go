package dblock

import (
	"context"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

const (
	// longestWait is the longest that one statement waits in the caller's transaction; after it, the wait is
	// begun anew. So a network that swallows packets is found out.
	longestWait = 10 * time.Minute

	// firstCancel is the pause between the first two requests to cancel, which grows. The first may come
	// before the statement that it is meant for.
	firstCancel, lastCancel = 10 * time.Millisecond, time.Second

	// undoAttempts is how often a way back to the savepoint is tried that somebody cancels.
	undoAttempts = 5
)

// bounded runs a statement in the caller's transaction that may wait for locks, for as long as ctx
// allows, and takes back whatever it did if that was too long.
//
// The caller's ctx never reaches the connection: each client library answers the end of it with the end of
// the transaction. The server's own limits bound the wait instead, and are put back as they were. Where the
// driver cannot cancel, a ctx that can end before its deadline has the wait cut into slices.
//
// The savepoint is what makes a failed wait harmless. A lock that was granted in the very moment
// the wait was given up is let go of by the way back to the savepoint, so nothing has to be settled.
type bounded struct {
	tx pg.TxQuerier

	// probe says that what was locked is to be let go of at once: it mattered only that it could be had.
	probe bool

	// noWait says that the statement does not wait for rows, so that a lock which is not to be had
	// is the answer and not the end of a slice.
	noWait bool
}

// run returns nil when the statement has been executed. With any other outcome the transaction is as it
// was before, or lost.
func (b bounded) run(ctx context.Context, stmt pg.Stmt) error {
	for {
		if ctx.Err() != nil {
			return notAcquired(ctx)
		}
		left := longestWait
		if end, ok := ctx.Deadline(); ok {
			left = min(left, time.Until(end))
		}
		left = max(left.Truncate(time.Millisecond), time.Millisecond) // 0 would be no limit
		began := time.Now()
		err := b.once(ctx, left, stmt)
		switch code := pg.Code(err); {
		case err == nil:
			return nil
		case code == pg.CodeLockTimeout && !b.noWait: // of a slice, or of all that was left
		case code == pg.CodeQueryCanceled && (ctx.Err() != nil || time.Since(began) >= left):
		default:
			return err
		}
	}
}

// once waits for left at the most.
func (b bounded) once(ctx context.Context, left time.Duration, stmt pg.Stmt) error {
	slice := int64(0)
	if _, ok := b.tx.(pg.Canceler); !ok && ctx.Done() != nil {
		slice = time.Second.Milliseconds()
	}
	tctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), left+pg.NetTimeout(ctx))
	defer cancel()

	// The second trip is one of its own. pgx prepares what it sends in one trip before the first of it
	// runs, and a statement about a user's table can wait, or fail, when it is prepared.
	err := b.tx.RunAll(tctx,
		pg.Stmt{SQL: sqlSavepoint},
		pg.Stmt{SQL: sqlLimit, Args: []any{left.Milliseconds(), slice}, Dest: []any{new(string), new(string), new(string)}})
	if pg.Code(err) == pg.CodeFailedTx {
		return err // there is no savepoint to go back to, and nothing to take back
	}
	if err == nil {
		over := cancelAtEnd(ctx, b.tx)
		last := pg.Stmt{SQL: sqlUnlimit, Dest: []any{new(string), new(string), new(string)}}
		if b.probe {
			last = pg.Stmt{SQL: sqlRollbackTo}
		}
		err = b.tx.RunAll(tctx, stmt, last, pg.Stmt{SQL: sqlRelease})
		over()
	}
	if err == nil {
		return nil
	}
	return b.undo(ctx, err)
}

// undo goes back to the savepoint, which also takes the limits back, and returns why. A request
// to cancel that somebody else has sent may hit it.
func (b bounded) undo(ctx context.Context, cause error) error {
	if !pg.Rejected(cause) {
		return cause // lost, and everything with it
	}
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	for n := 1; ; n++ {
		err := b.tx.Run(tctx, pg.Stmt{SQL: sqlRollbackTo})
		if err == nil {
			err = b.tx.Run(tctx, pg.Stmt{SQL: sqlRelease})
		}
		switch {
		case err == nil:
			return cause
		case n == undoAttempts || pg.Code(err) != pg.CodeQueryCanceled:
			return &undoError{undo: err, cause: cause}
		}
	}
}

// cancelAtEnd has the server cancel what the connection runs when ctx ends, again and again until over is called.
// After over no request is under way that could hit the caller's next statement, unless the
// network has swallowed it.
func cancelAtEnd(ctx context.Context, tx pg.TxQuerier) (over func()) {
	c, ok := tx.(pg.Canceler)
	if !ok || ctx.Done() == nil {
		return func() {}
	}
	done, gone := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(gone)
		for pause := firstCancel; ; pause = min(2*pause, lastCancel) {
			tctx, cancel := pg.TripContext(ctx)
			_ = c.Cancel(tctx) // if it does not get through, the server's limit ends the wait
			cancel()
			timer := time.NewTimer(pause)
			select {
			case <-done:
				timer.Stop()
				return
			case <-timer.C:
			}
		}
	})
	return func() {
		close(done)
		if !stop() {
			<-gone
		}
	}
}
