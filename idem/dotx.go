package idem

import (
	"context"
	"errors"
	"fmt"

	"github.com/pgonce/pgonce/internal/pg"
)

// DoTx is [Do] in the caller's transaction: the effect, the record and whatever else the caller
// writes become durable by the caller's COMMIT, or none of it does. A handler of Do calls it to
// execute a second key.
//
// It waits for no other transaction: a key that another transaction executes, or has executed and not
// committed yet, is [ErrInFlight], and the caller's transaction stays usable. [Op.Wait],
// [Op.MaxHandler] and [Op.Isolation] do not apply. The result is as provisional as the
// caller's transaction until that commits.
//
// There is no verb for a batch: begin one transaction and call DoTx for each key, so that each has its own answer and all have one commit.
// A transaction that takes several keys should take them in one order: slices.SortFunc with [Key.Compare]. Then it is refused at the
// first of them or not at all. In different orders two transactions refuse each other, for ever if they repeat in step; that is
// no deadlock, since nobody waits. What can deadlock is rows that handlers lock, so lock those in one order too. The server's 40P01 is fn's error: its
// call is undone, the calls before it are whole. Roll back and repeat the transaction as a whole, which Do does by itself.
//
// An error of fn, or a panic, undoes what fn wrote and nothing else, by a savepoint; the
// caller may go on and commit the rest. Where that cannot be undone, because fn left rows open or a
// goroutine at work, the transaction is broken off, so that the caller cannot commit half an
// effect: [ErrTxUnusable]. [Final] undoes and stores the refusal. fn must
// not end the transaction, nor roll back to a savepoint that is older than the call. One call at a
// time may execute in a transaction, and those that fn makes must get fn's ctx.
//
// Errors: those of Do ([ErrHandlerTimeout] and [ErrNested] aside), [ErrRetryTx] when the whole
// transaction has to be repeated, [ErrReentrant] for a key that a handler around this call
// is executing. [ErrUnavailable] means that the transaction was lost with its connection.
//
// Cost on pgx: a new key 2 round trips around those of fn and one row; a repeat 2; an error of fn 3. On
// database/sql: 6 and 5. Locks: one advisory lock until the caller's transaction ends. A new key
// takes a transaction number (xid) before fn runs.
func DoTx[T, TX any](ctx context.Context, s *Store[TX], tx TX, key Key, fp Fingerprint,
	fn func(ctx context.Context, tx TX) (T, error),
) (Result[T], error) {
	c, err := newCall(s, key, fp)
	var none TX
	switch {
	case err != nil:
	case fn == nil:
		err = errors.New("nil handler")
	case any(tx) == any(none):
		err = errors.New("nil transaction")
	}
	if err != nil {
		return Result[T]{}, publish("dotx", key, err)
	}
	defer c.panicking()()
	var value T
	rec, err := c.doTx(ctx, tx, encoding(s.cfg.Codec, fn, &value))
	return outcome("dotx", c, rec, err, value)
}

// joined is a call in the caller's transaction.
type joined[TX any] struct {
	*call[TX]
	handle TX
	tx     pg.TxQuerier
	guard  guard
	xid    string
}

// The statements of savepoints. Calls nest, and so do savepoints of one name.
var (
	savepoint  = pg.Stmt{SQL: sqlSavepoint}
	release    = pg.Stmt{SQL: sqlRelease}
	rollbackTo = pg.Stmt{SQL: sqlRollbackTo}
)

// doTx is the call of DoTx. Why two transactions cannot both execute is said at attempt; the
// savepoint comes after the key's lock, so that rolling back to it keeps the lock.
func (c *call[TX]) doTx(ctx context.Context, tx TX, run handler[TX]) (rec record, err error) {
	frame := c.inside(ctx)
	leave, err := c.enterTx(frame, tx)
	if err != nil {
		return record{}, err
	}
	defer leave()
	j := &joined[TX]{call: c, handle: tx, tx: c.store.db.Tx(tx)}
	if err := c.store.readyTx(ctx, j.tx); err != nil {
		return record{}, j.explain(err)
	}
	err = j.tx.RunAll(ctx,
		pg.Stmt{SQL: sqlGuardTx, Args: []any{c.lock()}, Dest: []any{&j.guard.pid, &j.guard.start, &j.guard.readOnly}},
		c.lookupStmt(&rec),
		pg.Stmt{SQL: c.store.sql.xid, Args: []any{c.scope, c.digest}, Dest: []any{&j.xid}},
		savepoint)
	switch {
	case err != nil:
		return record{}, j.explain(err)
	case rec.rows > 0:
		err = nil
	case j.guard.readOnly:
		err = ErrReadOnly
	case !j.guard.locked():
		err = c.inFlight()
	default:
		return j.execute(ctx, frame, run)
	}
	if broken := j.tx.Run(ctx, release); broken != nil {
		return record{}, j.explain(broken)
	}
	return rec, err
}

// execute runs the handler between the savepoint and the record.
func (j *joined[TX]) execute(ctx, inside context.Context, run handler[TX]) (record, error) {
	returned := false
	defer func() {
		if !returned { // a panic or runtime.Goexit, which goes on after this
			_ = j.undo(ctx, errors.New("handler panicked"))
		}
	}()
	j.runs++
	result, err := run(inside, j.handle)
	returned = true
	state := stateDone
	if isFinal(err) {
		if undone := j.rollback(ctx); undone != nil {
			return record{}, undone
		}
		state, result, err = stateRefused, packRefusal(err.Error(), result), nil
	}
	if err != nil {
		return record{}, j.undo(ctx, err)
	}
	attempt := newAttempt()
	err = j.tx.RunAll(ctx, j.insertStmt(attempt, state, j.guard.start, result), release)
	if err != nil {
		return record{}, j.undo(ctx, err)
	}
	return j.ownRecord(attempt, state, j.guard.start, result), nil
}

// undo takes back what the handler wrote, and says what err means for the caller's transaction.
func (j *joined[TX]) undo(ctx context.Context, err error) error {
	if errors.Is(err, pg.ErrTxEnded) || j.store.isEndedEarly(err) {
		return j.gone(ctx, err)
	}
	if undone := j.rollback(ctx); undone != nil {
		return errors.Join(undone, unmarked(err))
	}
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	if broken := j.tx.Run(tctx, release); broken != nil {
		return errors.Join(j.explain(broken), unmarked(err))
	}
	return j.explain(err)
}

// rollback goes back to the savepoint, which also mends a transaction in which a statement failed. If
// the server does not confirm it, because rows were left open or the connection is gone, the
// transaction is spoiled: its caller must not be able to commit half an effect.
func (j *joined[TX]) rollback(ctx context.Context) error {
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	err := j.tx.Run(tctx, rollbackTo)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pg.ErrTxEnded), pg.Code(err) == pg.CodeNoSavepoint, pg.Code(err) == pg.CodeNoTx:
		return j.gone(ctx, err)
	}
	j.store.db.Spoil(j.handle)
	if j.fate(tctx) == committed {
		return j.blocked(tctx, err)
	}
	if pg.Rejected(err) {
		return j.explain(err)
	}
	return fmt.Errorf("%w: it could not be undone, so it was broken off: %w", ErrTxUnusable, err)
}

// fate asks what became of the transaction: by its own connection, which may be the only one of the pool, or
// by another.
func (j *joined[TX]) fate(ctx context.Context) string {
	if fate := fateOf(ctx, j.tx, j.xid); fate != "" {
		return fate
	}
	return fateOf(ctx, j.store.db.Pool(), j.xid)
}

// gone finds out what became of a transaction whose savepoint is not there any more. If what the
// handler wrote may be durable, the key is blocked.
func (j *joined[TX]) gone(ctx context.Context, cause error) error {
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	switch j.fate(tctx) {
	case inProgress:
		return fmt.Errorf("%w: it was rolled back to a savepoint older than the call: %w", ErrTxUnusable, cause)
	case aborted:
		return fmt.Errorf("%w: it was rolled back, nothing was done; return an error instead", ErrTxEnded)
	}
	if err := j.blockBy(tctx, j.tx); err == nil || errors.Is(err, errExecutedSince) {
		return errBlocked(cause, err)
	}
	return j.blocked(tctx, cause)
}

// explain says what an error of a statement means for the caller's transaction.
func (c *call[TX]) explain(err error) error {
	if _, own := errors.AsType[*handlerError](err); own || errors.Is(err, ErrSchema) {
		return err
	}
	switch code := pg.Code(err); {
	case code == pg.CodeSerialization, code == pg.CodeDeadlock, c.store.isDuplicate(err):
		return fmt.Errorf("%w: %w", ErrRetryTx, err)
	case code == pg.CodeFailedTx:
		return fmt.Errorf("%w: a statement in it failed: %w", ErrTxUnusable, err)
	case code == pg.CodeReadOnlyTx:
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	case pg.Rejected(err):
		return pg.ExplainSchema(c.store.cfg.Schema, err)
	case errors.Is(err, pg.ErrTxEnded), isContextEnd(err):
		return err
	}
	return fmt.Errorf("%w: the transaction is lost: %w", ErrUnavailable, err)
}
