package idem

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// execution is one run of the handler, in the transaction that holds the key's lock.
type execution[TX any] struct {
	call  *call[TX]
	tx    pg.OwnedTx[TX]
	guard guard // what the transaction is called by the server, among others

	attempt int64  // in the record: tells our own from somebody else's
	xid     string // the transaction's number, on drivers that cannot keep a handler from ending it
}

// run invokes the handler and commits what it did together with the record.
func (e *execution[TX]) run(ctx context.Context, fn handler[TX]) (record, error) {
	if err := e.number(ctx); err != nil {
		return record{}, err
	}
	returned := false
	defer func() {
		if !returned { // a panic or runtime.Goexit, which goes on after this
			_ = e.undo(ctx, nil)
		}
	}()
	hctx, cancel := context.WithTimeoutCause(ctx, e.call.op.MaxHandler, ErrHandlerTimeout)
	defer cancel()
	result, err := fn(hctx, e.tx.Handle())
	returned = true
	if errors.Is(context.Cause(hctx), ErrHandlerTimeout) {
		return record{}, e.undo(ctx, e.tooLate(err))
	}
	if err != nil {
		return record{}, e.undo(ctx, err)
	}
	if e.tx.Status() == pg.TxFailed {
		return record{}, e.undo(ctx, fmt.Errorf("%w: a statement in it failed", ErrTxUnusable))
	}
	err = e.tx.Commit(ctx, e.insertStmt(result))
	switch {
	case err == nil:
		return record{createdAt: e.guard.start, result: result}, nil
	case errors.Is(err, pg.ErrTxEnded), e.call.store.isEndedEarly(err):
		return record{}, e.settle(ctx, nil)
	case errors.Is(err, pg.ErrTxBusy):
		return record{}, fmt.Errorf("%w: %w", ErrTxUnusable, err)
	case pg.Code(err) == pg.CodeFailedTx:
		return record{}, fmt.Errorf("%w: a statement in it failed: %w", ErrTxUnusable, err)
	case errors.Is(err, pg.ErrOutcomeUnknown):
		return e.resolve(ctx, result, err)
	}
	return record{}, err
}

// tooLate is the error of a handler that took too long, with its own, if it has one.
func (e *execution[TX]) tooLate(err error) error {
	if h, ok := errors.AsType[*handlerError](err); ok {
		err = h.err
	}
	if err == nil {
		return fmt.Errorf("%w (%v): rolled back", ErrHandlerTimeout, e.call.op.MaxHandler)
	}
	return fmt.Errorf("%w (%v): rolled back: %w", ErrHandlerTimeout, e.call.op.MaxHandler, err)
}

// number asks for the transaction's number where the handler gets a transaction that it
// could end without our noticing at once: on database/sql.
func (e *execution[TX]) number(ctx context.Context) error {
	if e.tx.Status() != pg.TxUnknown {
		return nil
	}
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	err := e.tx.Run(tctx, pg.Stmt{SQL: sqlXID, Dest: []any{&e.xid}})
	if err != nil {
		e.tx.Rollback(ctx)
		if !pg.Rejected(err) {
			err = fmt.Errorf("%w: %w", pg.ErrTxLost, err)
		}
	}
	return err
}

// undo rolls back after a handler that did not finish, and returns its error. Before, it
// makes sure that there is something to roll back: a handler that committed and then failed
// has an effect that a retry would double.
func (e *execution[TX]) undo(ctx context.Context, err error) error {
	ended := e.ended(ctx)
	e.tx.Rollback(ctx)
	if !ended {
		return err
	}
	return e.settle(ctx, err)
}

// ended reports whether the transaction that took the lock is over. A failed one
// is not, and one whose connection is gone was rolled back with it.
func (e *execution[TX]) ended(ctx context.Context) bool {
	switch e.tx.Status() {
	case pg.TxIdle:
		return true
	case pg.TxFailed:
		return false
	}
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	var same bool
	err := e.tx.Run(tctx, pg.Stmt{SQL: sqlSameTx, Args: []any{e.guard.start}, Dest: []any{&same}})
	return err == nil && !same || errors.Is(err, pg.ErrTxEnded)
}

// settle deals with a transaction that the handler has ended. A rollback did no harm.
// Anything else may have left an effect without its record, so the key is blocked, in a
// transaction of its own that outlives ctx.
func (e *execution[TX]) settle(ctx context.Context, cause error) error {
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	if e.wasRolledBack(tctx) {
		if cause != nil {
			return cause
		}
		return fmt.Errorf("%w: it was rolled back, nothing was done; return an error instead", ErrTxEnded)
	}
	if h, ok := errors.AsType[*handlerError](cause); ok {
		cause = h.err
	}
	err := e.call.insertUnknown(tctx)
	if err != nil {
		err = fmt.Errorf("the key could not be blocked, a repeat may execute it again: %w", err)
	}
	return errors.Join(fmt.Errorf("%w: what it wrote may be committed, so the key is blocked", ErrTxEnded), cause, err)
}

func (e *execution[TX]) wasRolledBack(ctx context.Context) bool {
	if e.xid == "" {
		return false
	}
	var fate string
	err := e.call.store.db.Pool().Run(ctx, pg.Stmt{SQL: sqlFate, Args: []any{e.xid}, Dest: []any{&fate}})
	return err == nil && fate == "aborted"
}

func (c *call[TX]) insertUnknown(ctx context.Context) error {
	tx, err := c.store.db.Begin(ctx, pg.ReadCommitted)
	if err != nil {
		return err
	}
	return tx.Commit(ctx, pg.Stmt{
		SQL:  c.store.sql.insertUnknown,
		Args: []any{newAttempt(), c.fp.version, c.key.scope, c.key.digest(), c.op.Name, c.storedID(), c.fp.sum},
	})
}

func (e *execution[TX]) insertStmt(result []byte) pg.Stmt {
	c := e.call
	return pg.Stmt{SQL: c.store.sql.insert, Args: []any{
		e.attempt, e.guard.start, seconds(c.op.ReplayFor), seconds(c.op.RememberFor), stateDone,
		c.fp.version, c.key.scope, c.key.digest(), c.op.Name, c.storedID(), c.fp.sum, result,
	}}
}

// storedID is the id in clear, or NULL.
func (c *call[TX]) storedID() *string {
	if c.store.cfg.HideIDs {
		return nil
	}
	return &c.key.id
}

// seconds is a duration for make_interval, negative for no end.
func seconds(d time.Duration) float64 {
	if d == Forever {
		return -1
	}
	return d.Seconds()
}
