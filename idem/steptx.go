package idem

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// StepTx is a step in this database: what fn writes and the fact that the step is done are one commit. In a later attempt it
// returns the value that is stored, and fn does not run.
//
// The transaction begins by locking the key's lease, if it is still this attempt's. So while it runs nobody can take over, and one that
// has lost its lease writes nothing. All that is said of the handlers of [Do] holds for fn: it may run again after a rollback, it must not end
// its transaction, it has [Op.MaxHandler], and it may call [DoTx] but not Do. If fn ends its transaction, and what it wrote may be committed, the
// step is blocked: [ErrUnknownOutcome], until somebody decides about it with [Store.Resolve].
//
// Errors: those of [Step], [ErrTxEnded], [ErrTxUnusable], [ErrHandlerTimeout], [ErrReadOnly], and what the server says.
//
// Cost on pgx: 2 round trips around those of fn, one commit. On database/sql 6.
func StepTx[T, TX any](ctx context.Context, run *Run[TX], name string, fn func(ctx context.Context, tx TX) (T, error)) (value T, err error) {
	if run == nil || fn == nil {
		return value, errors.New("idem: step: nil run or function")
	}
	ord, stored, err := run.begin(name)
	if err != nil {
		return value, run.publishStep(name, err)
	}
	returned := false
	defer func() {
		if !returned { // a panic goes through
			err = errPanicked
		}
		run.done(name, err)
	}()
	ctx, release := run.bound(ctx)
	defer release()
	codec := run.call.store.cfg.Codec
	s := &txStep[TX]{run: run, ord: ord, name: name, round: stored.round}
	switch stored.state {
	case stepDone:
		value, err = decode[T](codec, stored.result)
	case stepStarted:
		err = s.unknown()
	default:
		err = s.attempts(ctx, encoding(codec, fn, &value))
	}
	returned = true
	if err != nil {
		err = run.publishStep(name, err)
	}
	return value, err
}

// txStep is a call of [StepTx].
type txStep[TX any] struct {
	run   *Run[TX]
	ord   int64
	name  string
	round int64
}

func (s *txStep[TX]) unknown() error {
	s.run.setOpen(s.name)
	return fmt.Errorf("%w: what its transaction wrote may be committed", ErrUnknownOutcome)
}

// attempts opens transactions until one of them decides the step.
func (s *txStep[TX]) attempts(ctx context.Context, fn handler[TX]) error {
	for n := 1; ; n++ {
		err := s.attempt(ctx, fn)
		switch {
		case errors.Is(err, ErrTxEnded), errors.Is(err, ErrHandlerTimeout), errors.Is(err, pg.ErrOutcomeUnknown), errors.Is(err, ErrLeaseLost):
			return err
		case err == nil || n == maxAttempts || !worthAnother(err):
			return err
		}
		if pause(ctx, n) != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		s.run.call.tell(Retried, err)
	}
}

// attempt is one transaction: the lease is locked, the function works, the step is stored with the commit.
func (s *txStep[TX]) attempt(ctx context.Context, fn handler[TX]) error {
	c := s.run.call
	if err := s.run.lost(); err != nil {
		return err
	}
	var (
		g    guard
		mine int64
	)
	tx, err := c.store.db.Begin(ctx, c.op.Isolation, c.guardStmt(&g), s.ownStmt(&mine))
	switch code := pg.Code(err); {
	case code == pg.CodeStalePlan, code == pg.CodeNoSuchStatement:
		return fmt.Errorf("%w: %w", errStale, err)
	case err != nil:
		return pg.ExplainSchema(c.store.cfg.Schema, err)
	case g.readOnly:
		tx.Abandon(ctx)
		return ErrReadOnly
	case mine == 0:
		tx.Abandon(ctx)
		err = fmt.Errorf("%w: somebody else has taken the key over", ErrLeaseLost)
		s.run.lease.cancel(err)
		return err
	}
	s.run.mu.Lock()
	s.run.called++
	s.run.mu.Unlock()
	e := &execution[TX]{call: c, turn: &turn{queue: &c.store.queue, over: true}, tx: tx, guard: g, step: s}
	_, err = e.run(ctx, fn)
	return err
}

func (s *txStep[TX]) ownStmt(mine *int64) pg.Stmt {
	c := s.run.call
	return pg.Stmt{SQL: c.store.sql.own, Args: []any{c.scope, c.digest, s.run.lease.nonce}, Dest: []any{new(int64)}, Rows: mine}
}

func (s *txStep[TX]) storeStmt(start time.Time, result []byte) pg.Stmt {
	c := s.run.call
	return pg.Stmt{SQL: c.store.sql.storeTx, Args: []any{c.scope, c.digest, s.ord, s.name, s.round, start, result}}
}

// blocked marks a step whose function has ended its transaction, and is the error of it.
func (s *txStep[TX]) blocked(ctx context.Context, cause error) error {
	err := s.run.store(ctx, s.ord, s.name, stepStarted, s.round, nil)
	if err == nil {
		s.run.call.tell(Blocked, nil)
	}
	s.run.setOpen(s.name)
	return errBlocked(cause, err)
}

// resolve finds out what became of a commit whose answer was lost. The lost transaction holds the lock of the lease. So
// whoever gets that lock afterwards, on another connection, and then looks, sees the step, or that there is
// none and nothing of the transaction is left.
func (s *txStep[TX]) resolve(ctx context.Context, e *execution[TX], lost error) (record, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resolveWithin)
	defer cancel()
	for {
		mine, state, err := s.look(ctx)
		switch {
		case err == nil && mine == 0:
			return record{}, fmt.Errorf("%w: somebody else has taken the key over: %v", ErrLeaseLost, lost) //nolint:errorlint // what is stored decides
		case err == nil && state == stepDone:
			e.call.tell(Resolved, nil)
			return record{}, nil
		case err == nil:
			return record{}, fmt.Errorf("%w: resolved after: %v", pg.ErrTxLost, lost) //nolint:errorlint // it is known now
		case pg.Code(err) == pg.CodeLockTimeout:
			err = e.terminate(ctx)
		}
		if !e.again(ctx, err) {
			s.run.setOpen(s.name)                                  // what it wrote may be committed, and must not be written again
			return record{}, fmt.Errorf("%w; then: %v", lost, err) //nolint:errorlint // what the last try met is no fact about the outcome
		}
	}
}

// look locks the lease, waiting for a short time, and reads the step.
func (s *txStep[TX]) look(ctx context.Context) (mine, state int64, err error) {
	c := s.run.call
	var standby bool
	var rows int64
	tx, err := c.store.db.Begin(ctx, pg.ReadCommitted,
		pg.Stmt{
			SQL: sqlLockTimeout, Args: []any{strconv.FormatInt(resolveWait.Milliseconds(), 10), c.server.checkInterval},
			Dest: []any{new(string), new(string), new(string), &standby},
		},
		s.ownStmt(&mine),
		pg.Stmt{SQL: c.store.sql.step, Args: []any{c.scope, c.digest, s.ord, s.name}, Dest: []any{&state}, Rows: &rows})
	if err != nil {
		return 0, 0, err
	}
	tx.Abandon(ctx)
	return mine, state, nil
}
