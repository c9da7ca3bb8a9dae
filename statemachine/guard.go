package statemachine

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// Guard decides about a move in Go, while the row is locked. What it reads in tx is true until the transaction ends, as far as it concerns the row,
// and what it writes there is committed with the move or not at all. An error refuses the move.
type Guard[S StateType, TX any] func(ctx context.Context, tx TX, from S) error

// FireFunc is [Binding.Fire] with a guard in Go, for a decision that needs more than the columns of the row: other
// rows, or code. The row is locked, then guard is asked, then the row is moved, all in one transaction, so two calls
// for one row decide one after the other.
//
// The guard is asked only if the event would move the row: not for a repeat, not where the event is
// ignored or refused. It runs before Where and Match are tested. It may run again after an attempt that was rolled
// back, so it must not do what a rollback does not undo. Its error comes back as it is, behind the package's words, and so does
// its panic. It must not end the transaction, and not keep it.
//
// Errors: those of Fire, and those of guard. Cost: on pgx four round trips (BEGIN, the lock, the statement of Fire,
// COMMIT), one more with [Dedup], and those of guard. Locks: the row, FOR NO KEY UPDATE, repeats too.
func (b *Binding[K, S, TX]) FireFunc(ctx context.Context, id K, ev Event[S], guard Guard[S, TX], opts ...Option) (Result[S], error) {
	f, err := b.newFiring(id, ev, opts)
	if err == nil && guard == nil {
		err = &InvalidError{"guard", "is nil: use Fire"}
	}
	if err == nil {
		err = f.prepare(ctx, b.db.Pool(), true)
	}
	var a answer
	var refused error
	if err == nil {
		err = b.retry(ctx, f, func() error {
			a, refused, err = f.guarded(ctx, guard)
			return err
		})
	}
	return f.conclude(a, refused, err)
}

// FireFuncTx is [Binding.FireFunc] in the caller's transaction, as [Binding.FireTx] is to Fire. What guard has written before it
// refuses, or before the move is refused, stays in the transaction.
func (b *Binding[K, S, TX]) FireFuncTx(ctx context.Context, tx TX, id K, ev Event[S], guard Guard[S, TX], opts ...Option) (Result[S], error) {
	f, err := b.newFiring(id, ev, opts)
	switch {
	case err != nil:
	case guard == nil:
		err = &InvalidError{"guard", "is nil: use FireTx"}
	case isNil(tx):
		err = &InvalidError{"transaction", "is nil"}
	}
	if err != nil {
		return f.conclude(answer{}, nil, err)
	}
	q := b.db.Tx(tx)
	if err := f.prepare(ctx, q, false); err != nil {
		return f.conclude(answer{}, nil, lostInTx(ctx, err))
	}
	asked, err := f.lock(ctx, q, 0)
	if err == nil && asked != nil {
		if refused := guard(ctx, tx, *asked); refused != nil {
			return f.conclude(answer{}, refused, nil)
		}
	}
	var a answer
	if err == nil {
		a, err = f.move(ctx, q, asked != nil)
	}
	if err != nil {
		err = lostInTx(ctx, f.explain(err))
	}
	return f.conclude(a, nil, err)
}

// conclude is the end of a call with a guard.
func (f *firing[K, S, TX]) conclude(a answer, refused, err error) (Result[S], error) {
	var res Result[S]
	switch {
	case err != nil:
	case refused != nil:
		err = refused
	default:
		res, err = f.result(a)
	}
	if err != nil {
		return Result[S]{}, f.b.publish(f.event, err)
	}
	return res, nil
}

// guarded is one try in a transaction of our own.
func (f *firing[K, S, TX]) guarded(ctx context.Context, guard Guard[S, TX]) (a answer, refused, err error) {
	tx, err := f.b.db.Begin(ctx, pg.ReadCommitted)
	if err != nil {
		return a, nil, err
	}
	defer tx.Rollback(ctx)
	asked, err := f.lock(ctx, tx, waitOf(ctx))
	if err == nil && asked != nil {
		refused = guard(ctx, tx.Handle(), *asked)
		tx.Reclaim(ctx)
	}
	if err == nil && refused == nil {
		a, err = f.move(ctx, tx, asked != nil)
	}
	if err != nil || refused != nil || !a.written {
		return a, refused, lostInTx(ctx, err)
	}
	return a, nil, tx.Commit(ctx)
}

// lock locks the row and says in which state it is, if the event would move it from there.
func (f *firing[K, S, TX]) lock(ctx context.Context, q pg.Querier, wait time.Duration) (*S, error) {
	var rows, restored, known int64
	var text *string
	err := f.b.run(ctx, q, onLock, &call{}, pg.Stmt{
		Args: []any{f.arg, f.call.waitFor(wait)}, Dest: []any{&rows, &text, &restored},
	})
	if err != nil || rows != 1 || text == nil {
		return nil, err
	}
	if f.call.dedup != nil {
		err := f.b.run(ctx, q, onKnown, nil, pg.Stmt{Args: []any{f.arg, f.b.m.name, *f.call.dedup}, Dest: []any{&known}})
		if err != nil || known > 0 {
			return nil, err
		}
	}
	state, ok := stateOf[S](*text)
	if !ok || !slices.Contains(f.mv.sources, state) {
		return nil, nil
	}
	return &state, nil
}

// move is the statement of Fire. A row that the guard was asked about has been locked since before the statement. Where it was not asked, nothing
// was to be moved; what can be moved all the same was not there to be locked, and is undone.
func (f *firing[K, S, TX]) move(ctx context.Context, q pg.Querier, asked bool) (a answer, err error) {
	if asked {
		return a, f.confirm(ctx, q, &a)
	}
	a, err = f.decide(ctx, q)
	if err == nil && a.first == nil && a.written && value(a.outcome) == storedApplied {
		err = fmt.Errorf("%w: the row has come since it was to be locked, and the guard was not asked", ErrRetryTx)
	}
	return a, err
}

// run runs one of the other statements on the table. c has the options that the statement knows, and nil is a
// statement that does not know the scope either.
func (b *Binding[K, S, TX]) run(ctx context.Context, q pg.Querier, of template, c *call, s pg.Stmt) error {
	var err error
	if s.SQL, s.Args, err = b.text(ctx, q, of, c, s.Args); err != nil {
		return err
	}
	return q.Run(ctx, s)
}

func (b *Binding[K, S, TX]) text(ctx context.Context, q pg.Querier, of template, c *call, args []any) (string, []any, error) {
	l, err := b.ready(ctx, q)
	if err != nil {
		return "", nil, err
	}
	if c == nil {
		c = &call{}
	} else {
		args = append(args, c.args(b.scope)...)
	}
	s, err := l.statement(of, parts{}, c)
	if err != nil {
		return "", nil, err
	}
	return s.sql, args, nil
}
