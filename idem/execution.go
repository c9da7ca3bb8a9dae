package idem

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// unanswered is how long a COMMIT may take before this process stops answering for its key.
const unanswered = time.Second

// execution is one run of the handler, in the transaction that holds the key's lock.
type execution[TX any] struct {
	call  *call[TX]
	turn  *turn
	tx    pg.OwnedTx[TX]
	guard guard       // what the transaction is called by the server, among others
	step  *txStep[TX] // what is to be stored, if it is not the key's record

	found   record      // what trip one saw
	pass    *time.Timer // when this process stops answering for the key
	began   time.Time   // by our own clock, when the handler was called
	attempt int64       // in the record: tells our own from somebody else's
	xid     string      // the transaction's number, on drivers that cannot keep a handler from ending it
}

// run invokes the handler and commits what it did together with the record.
func (e *execution[TX]) run(ctx context.Context, fn handler[TX]) (record, error) {
	if err := e.number(ctx); err != nil {
		return record{}, err
	}
	returned := false
	defer func() {
		if returned {
			return
		}
		// A panic or runtime.Goexit, which goes on after this.
		if err := e.undo(ctx, nil); err != nil {
			e.call.store.cfg.Logger.Error("idem: handler panicked", "key", e.call.key, "err", err)
		}
	}()
	e.began = time.Now()
	frame := e.call.inside(ctx)
	defer frame.over.Store(true)
	hctx, cancel := context.WithTimeoutCause(frame, e.call.op.MaxHandler, ErrHandlerTimeout)
	defer cancel()
	e.pass = time.AfterFunc(e.call.op.MaxHandler, e.turn.pass) // a handler that hangs keeps nobody in memory: the server frees its key
	defer e.pass.Stop()
	if e.step == nil {
		e.call.runs++
	}
	result, err := fn(hctx, e.tx.Handle())
	returned = true
	e.tx.Reclaim(ctx)
	switch {
	case errors.Is(context.Cause(hctx), ErrHandlerTimeout):
		return record{}, e.undo(ctx, e.tooLate(err))
	case isFinal(err) && e.step == nil:
		return e.refuse(ctx, result, err)
	case err != nil:
		return record{}, e.undo(ctx, err)
	case e.tx.Status() == pg.TxFailed:
		return record{}, e.undo(ctx, fmt.Errorf("%w: a statement in it failed", ErrTxUnusable))
	}
	rec, err := e.commit(ctx, result)
	if errors.Is(err, pg.ErrTxLost) && e.outlasted() {
		err = fmt.Errorf("%w: rolled back by the server, which allows %d ms without a statement: %w", ErrHandlerTimeout, e.guard.idleMS, err)
	}
	return rec, err
}

// outlasted reports a handler that was at work for longer than the server lets a transaction be
// idle. If the transaction was lost, that is why, and another run would lose it again.
func (e *execution[TX]) outlasted() bool {
	return time.Since(e.began) >= time.Duration(e.guard.idleMS)*time.Millisecond
}

// commit ends a run that went well, and sorts out one that only seemed to.
func (e *execution[TX]) commit(ctx context.Context, result []byte) (record, error) {
	// Whoever comes while the answer to COMMIT is awaited for long asks the server.
	e.pass.Reset(unanswered)
	err := e.tx.Commit(ctx, e.entry(result))
	switch {
	case err == nil:
		return e.call.ownRecord(e.attempt, stateDone, e.guard.start, result), nil
	case errors.Is(err, pg.ErrTxEnded):
		return record{}, e.settle(ctx, endedByVerb, nil)
	case e.call.store.isEndedEarly(err):
		return record{}, e.settle(ctx, endedBySQL, nil)
	case e.step != nil && e.call.store.isTaken(err):
		return record{}, e.step.run.taken(e.step.ord, e.step.name)
	case errors.Is(err, pg.ErrTxBusy):
		return record{}, e.settle(ctx, failed, fmt.Errorf("%w: %w", ErrTxUnusable, err))
	case pg.Code(err) == pg.CodeFailedTx:
		return record{}, e.settle(ctx, failed, fmt.Errorf("%w: a statement in it failed: %w", ErrTxUnusable, err))
	case errors.Is(err, pg.ErrTxLost):
		return record{}, e.settle(ctx, lost, err)
	case errors.Is(err, pg.ErrOutcomeUnknown) && e.step != nil:
		return e.step.resolve(ctx, e, err)
	case errors.Is(err, pg.ErrOutcomeUnknown):
		return e.resolve(ctx, result, err)
	}
	return record{}, err
}

// entry is what says that the run was committed.
func (e *execution[TX]) entry(result []byte) pg.Stmt {
	if e.step != nil {
		return e.step.storeStmt(e.guard.start, result)
	}
	return e.call.insertStmt(e.attempt, stateDone, e.guard.start, result)
}

// tooLate is the error of a handler that took too long, with its own, if it has one.
func (e *execution[TX]) tooLate(err error) error {
	if err = unmarked(err); err == nil {
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
	e.tx.Reclaim(ctx)
	how := e.ending(ctx)
	e.tx.Rollback(ctx)
	return e.settle(ctx, how, err)
}

// refuse rolls back and stores what the handler has declared final.
func (e *execution[TX]) refuse(ctx context.Context, value []byte, err error) (record, error) {
	how := e.ending(ctx)
	e.tx.Rollback(ctx)
	if err := e.settle(ctx, how, err); !isFinal(err) {
		return record{}, err
	}
	if how == lost {
		return record{}, fmt.Errorf("%w: not stored: %w", pg.ErrTxLost, unmarked(err))
	}
	return e.call.storeRefusal(ctx, e.attempt, packRefusal(err.Error(), value))
}

// ending is what is known of a transaction before we end it.
type ending int

const (
	notEnded    ending = iota // it is the one that took the lock
	endedByVerb               // by Commit or Rollback of the client library; nothing ran after that
	endedBySQL                // by a statement; anything may have run after that
	failed                    // a statement in it failed, so it cannot be asked
	lost                      // nor can it be asked without its connection
)

// ending asks the transaction whether it is still the one that took the lock.
func (e *execution[TX]) ending(ctx context.Context) ending {
	switch e.tx.Status() {
	case pg.TxIdle:
		return endedBySQL
	case pg.TxFailed:
		return failed
	}
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	var same bool
	err := e.tx.Run(tctx, pg.Stmt{SQL: sqlSameTx, Args: []any{e.guard.start}, Dest: []any{&same}})
	switch {
	case err == nil && same:
		return notEnded
	case err == nil:
		return endedBySQL
	case errors.Is(err, pg.ErrTxEnded):
		return endedByVerb
	case pg.Rejected(err):
		return failed
	}
	return lost
}

// settle says what became of a run that was not committed by us. If what the handler wrote may be
// durable, the key is blocked, in a transaction of its own that outlives ctx. Otherwise the cause
// is all there is to say.
func (e *execution[TX]) settle(ctx context.Context, how ending, cause error) error {
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	switch {
	case how == notEnded:
		return cause
	case (how == failed || how == lost) && e.fate(tctx) != committed:
		return cause
	case how == endedByVerb && e.fate(tctx) == aborted && cause != nil:
		return cause
	case how == endedByVerb && e.fate(tctx) == aborted:
		return fmt.Errorf("%w: it was rolled back, nothing was done; return an error instead", ErrTxEnded)
	}
	if e.step != nil {
		return e.step.blocked(tctx, cause)
	}
	return e.call.blocked(tctx, cause)
}

// The fates of a transaction, in the server's words.
const (
	committed  = "committed"
	aborted    = "aborted"
	inProgress = "in progress"
)

// fate asks what became of the transaction, where its number is known.
func (e *execution[TX]) fate(ctx context.Context) string {
	return fateOf(ctx, e.call.store.db.Pool(), e.xid)
}

func fateOf(ctx context.Context, pool pg.Querier, xid string) (fate string) {
	if xid == "" {
		return ""
	}
	if err := pool.Run(ctx, pg.Stmt{SQL: sqlFate, Args: []any{xid}, Dest: []any{&fate}}); err != nil {
		return ""
	}
	return fate
}
