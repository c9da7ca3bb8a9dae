package statemachine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// Create inserts a row in one of the initial states, with the columns of [Set] and [SetExpr] and the beginning of its history, in one
// statement. It is idempotent by the id: a row that Create has put there before, in the same state, is
// [AlreadyApplied], whatever has become of it since, and is left as it is. Say with [Match] what has to hold for it to be the same:
//
//	res, err := orders.Create(ctx, id, Unpaid, statemachine.Set("amount", amount), statemachine.Match("amount = $1", amount))
//
// Where the database makes the ids, draw one first (nextval, gen_random_uuid()), or insert the row and leave its
// history to begin with its first move. The id has to be unique by itself: in a table that is partitioned by the state, with a primary key of both, nothing keeps a
// repeat from inserting a second row once the first has moved ([Binding.Verify] says so).
//
// Errors: those of [Binding.Fire]; [ErrConflict] where a row is there by another way, or by Create in another state, and
// always without a history, since then nobody can tell; [ErrDiverted] where the server has inserted nothing and there is no
// such row, as when a trigger swallows it, another unique constraint has it, or it is outside of the scope. Of the
// options, Where, ExpectVersion, Dedup and Lock are refused.
//
// Cost: one statement; for a repeat three. Locks: those of an INSERT, which waits for another one of the same
// id.
func (b *Binding[K, S, TX]) Create(ctx context.Context, id K, state S, opts ...Option) (Result[S], error) {
	f, err := b.newCreation(id, state, opts)
	if err == nil {
		err = f.prepare(ctx, b.db.Pool(), true)
	}
	var res Result[S]
	if err == nil {
		err = b.retry(ctx, f, func() error {
			res, err = f.create(ctx, b.db.Pool(), state, waitOf(ctx), lostOutside)
			return err
		})
	}
	if err != nil {
		return Result[S]{}, b.publish(f.event, err)
	}
	return res, nil
}

// CreateTx is [Binding.Create] in the caller's transaction, as [Binding.FireTx] is to Fire.
func (b *Binding[K, S, TX]) CreateTx(ctx context.Context, tx TX, id K, state S, opts ...Option) (Result[S], error) {
	f, err := b.newCreation(id, state, opts)
	if err == nil && isNil(tx) {
		err = &InvalidError{"transaction", "is nil"}
	}
	if err != nil {
		return Result[S]{}, b.publish(f.event, err)
	}
	q := b.db.Tx(tx)
	var res Result[S]
	if err = f.prepare(ctx, q, false); err == nil {
		res, err = f.create(ctx, q, state, 0, lostInTx)
		err = f.explain(err)
	} else {
		err = lostInTx(ctx, err)
	}
	if err != nil {
		return Result[S]{}, b.publish(f.event, err)
	}
	return res, nil
}

func (b *Binding[K, S, TX]) newCreation(id K, state S, opts []Option) (*firing[K, S, TX], error) {
	f := &firing[K, S, TX]{b: b, id: id, event: Event[S]{eventCreate}, mv: &moves[S]{}, arg: idArg(id)}
	c := &f.call
	c.apply(opts)
	if reason := b.faultOfID(f.arg); reason != "" {
		c.find("id", reason)
	}
	if !slices.Contains(b.m.initial, state) {
		c.find(fmt.Sprintf("state %q", textOf(state)), "is not an initial one")
	}
	if c.dedup != nil || c.version != nil || c.lock || len(c.where) > 0 {
		c.find("Where, ExpectVersion, Dedup or Lock", "is not for Create, whose repeats are known by the row's id")
	}
	if b.table.NoHistory && (c.actor != nil || c.meta != nil) {
		c.find("Actor or Meta", "needs the history that NoHistory has turned off")
	}
	if err := b.faultOfScope(); err != nil {
		c.findings = append(c.findings, err)
	}
	f.checkSets(b.m.require[state])
	return f, errors.Join(c.findings...)
}

// create inserts the row, or finds out what is there. lost names the loss of the connection with the INSERT under way.
func (f *firing[K, S, TX]) create(ctx context.Context, q pg.Querier, state S, wait time.Duration, lost func(context.Context, error) error) (Result[S], error) {
	var a answer
	of, c := onCreate, &f.call
	args := []any{f.arg, textOf(state), c.waitFor(wait)}
	if !f.b.table.NoHistory {
		of, args = onCreateHistory, append(args, f.b.m.name, eventCreate, c.actor, c.meta)
	}
	sets := &call{sets: c.sets}
	l, err := f.b.ready(ctx, q)
	var s *statement
	if err == nil {
		s, err = l.statement(of, parts{}, sets)
	}
	if err != nil {
		return Result[S]{}, err
	}
	err = q.Run(ctx, pg.Stmt{SQL: s.sql, Args: append(args, sets.args(nil)...), Dest: []any{&a.to, &a.version, &a.seq, &a.at, &a.check, &a.restored}})
	switch {
	case err != nil:
		return Result[S]{}, lost(ctx, err)
	case a.to != nil:
		return Result[S]{Outcome: Applied, To: state, Seq: value(a.seq), At: value(a.at), Version: value(a.version)}, nil
	}
	return f.created(ctx, q, state)
}

// created judges a row that was there. The statement before has waited for whoever was about to insert it, and
// this one sees what he has committed.
func (f *firing[K, S, TX]) created(ctx context.Context, q pg.Querier, state S) (Result[S], error) {
	var text, first *string
	var version, match *int64
	var rows, seq, was int64
	var at time.Time
	err := f.b.run(ctx, q, onCreated, &call{match: f.call.match}, pg.Stmt{Args: []any{f.arg}, Dest: []any{&text, &version, &match}, Rows: &rows})
	if err != nil {
		return Result[S]{}, lostInTx(ctx, err)
	}
	conflict := &ConflictError{Machine: f.b.m.name, ID: f.id, Event: eventCreate, Reason: ReasonState, State: value(text)}
	switch n := value(match); {
	case rows == 0:
		return Result[S]{}, fmt.Errorf("%w: nothing was inserted, and there is no row %v: a trigger, another unique constraint of %s, or a row outside of the scope", ErrDiverted, f.id, f.b.table)
	case n < 0:
		conflict.Reason, conflict.Expr = ReasonMatch, f.call.match[-n-1].text
		return Result[S]{}, conflict
	case f.b.table.NoHistory:
		return Result[S]{}, conflict
	}
	err = f.b.run(ctx, q, onCreation, nil, pg.Stmt{
		Args: []any{f.arg, f.b.m.name, eventCreate}, Dest: []any{&first, &seq, &at, &version}, Rows: &was,
	})
	switch {
	case err != nil:
		return Result[S]{}, lostInTx(ctx, err)
	case was == 0 || value(first) != textOf(state):
		return Result[S]{}, conflict
	}
	return Result[S]{Outcome: AlreadyApplied, To: state, Seq: seq, At: at, Version: value(version)}, nil
}

// adoptAtOnce is how many rows a transaction of Adopt takes.
const adoptAtOnce = 500

// Adopt begins the history of every row that has none yet, with the state that it is in: for a table that is older than its
// machine, and for rows that were imported. It says how many there were. Rows that have a history are left
// alone, so it may be called again, and while the table is in use.
//
// Rows in an unknown state, or in none, are passed over; for up to 100 of them the error joins an
// [*UnknownStateError]. Actor says who has adopted them, 0 to 255 bytes.
//
// Errors: [ErrUnknownState], [ErrInvalid], and those of [Binding.FireMany]. What was done before one is kept.
//
// Cost: it reads the whole table in the order of ids, 500 rows to a transaction, which it locks FOR NO KEY UPDATE.
func (b *Binding[K, S, TX]) Adopt(ctx context.Context, actor string) (int64, error) {
	f := &firing[K, S, TX]{b: b, event: Event[S]{eventAdopt}, mv: &moves[S]{}}
	if actor != "" {
		f.call.apply([]Option{Actor(actor)})
	}
	if b.table.NoHistory {
		f.call.find("Adopt", "needs the history that NoHistory has turned off")
	}
	err := errors.Join(errors.Join(f.call.findings...), b.faultOfScope())
	if err == nil {
		err = f.prepare(ctx, b.db.Pool(), true)
	}
	var adopted int64
	var unknown []error
	for after := (*string)(nil); err == nil; {
		var n int64
		var last *string
		var found []error
		err = b.retry(ctx, f, func() error {
			n, last, found, err = f.adopt(ctx, after)
			return err
		})
		if err != nil {
			break
		}
		adopted += n
		unknown = append(unknown, found[:min(len(found), 100-len(unknown))]...)
		if last == nil {
			break
		}
		after = last
	}
	if err = errors.Join(err, errors.Join(unknown...)); err != nil {
		return adopted, b.publish(f.event, err)
	}
	return adopted, nil
}

// adopt is one transaction of Adopt: it locks rows, and then begins the history of those that have none. That is a statement of its own, so it
// sees what was committed while the first one waited. last is nil when there are no more rows.
func (f *firing[K, S, TX]) adopt(ctx context.Context, after *string) (n int64, last *string, unknown []error, err error) {
	b := f.b
	tx, err := b.db.Begin(ctx, pg.ReadCommitted)
	if err != nil {
		return 0, nil, nil, err
	}
	defer tx.Rollback(ctx)
	of, args := onUnadoptedFirst, []any{int64(adoptAtOnce)}
	if after != nil {
		of, args = onUnadopted, append(args, *after)
	}
	sql, args, err := b.text(ctx, tx, of, &call{}, args)
	if err != nil {
		return 0, nil, nil, err
	}
	var ids []string
	for scan, err := range tx.Query(ctx, sql, args...) {
		var id string
		var text *string
		if err == nil {
			err = scan(&id, &text)
		}
		if err != nil {
			return 0, nil, nil, lostInTx(ctx, err)
		}
		ids = append(ids, id)
		if state, ok := stateOf[S](value(text)); text == nil || !ok || !slices.Contains(b.m.states, state) {
			unknown = append(unknown, &UnknownStateError{Machine: b.m.name, ID: id, State: value(text), Null: text == nil})
		}
	}
	if len(ids) == 0 {
		return 0, nil, nil, nil
	}
	err = b.run(ctx, tx, onAdopt, nil, pg.Stmt{
		Args: []any{idArray(ids), array(b.m.states), b.m.name, eventAdopt, f.call.actor}, Rows: &n,
	})
	if err != nil {
		return 0, nil, nil, lostInTx(ctx, err)
	}
	if len(ids) == adoptAtOnce {
		last = &ids[len(ids)-1]
	}
	return n, last, unknown, tx.Commit(ctx)
}
