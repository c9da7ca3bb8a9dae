package statemachine

import (
	"context"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"reflect"
	"slices"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

const (
	maxAttempts = 5
	firstPause  = 2 * time.Millisecond // doubled with each attempt, and jittered
)

// Fire fires an event at a row, in a transaction of its own: one statement, which moves the row,
// sets its columns and writes the history, or does nothing of that.
//
// What is answered was read from committed data: [Applied] when this call has moved the row;
// [AlreadyApplied] when the event had been applied before; [Superseded] where the machine ignores it.
// Everything else is an error. Effects belong to Applied only, and in the same transaction: for those see
// [Binding.FireTx].
//
// Errors: [ErrInvalid], [ErrConflict], [ErrNotFound], [ErrGuard], [ErrUnknownState],
// [ErrDedupReused], [ErrBusy], [ErrRetryTx], [ErrDiverted], [ErrTriggerRefused], [ErrReadOnly], [ErrUnknownOutcome], [ErrUnavailable],
// [ErrSchema], and what the server says to the UPDATE (a constraint of the table, for one).
//
// It waits for the row for 10 seconds at most, and stops in time before the deadline of ctx ([ErrBusy]): the server
// ends the wait, so that it is known what became of it. When ctx is cancelled while the statement is under way, the
// move may have been made ([ErrUnknownOutcome]).
//
// Cost: one statement; on pgx one round trip. A repeat takes no lock, no xid and
// writes no WAL. A refusal takes one more, unless the call has an option that is a condition. Three more trips (BEGIN, the statement again, COMMIT) where the answer has to be
// confirmed under the lock: a call with [Dedup] that is refused, and one that finds its
// target reached and cannot tell by which event. One more where it has waited for a call that did the same. The first call of a binding adds two. Locks: the row, FOR NO KEY
// UPDATE, so inserts that refer to the row do not wait. 40001 and 40P01 are tried
// again, five times in all.
func (b *Binding[K, S, TX]) Fire(ctx context.Context, id K, ev Event[S], opts ...Option) (Result[S], error) {
	res, err := b.fire(ctx, id, ev, opts)
	if err != nil {
		return Result[S]{}, b.publish(ev, err)
	}
	return res, nil
}

// FireTx is [Binding.Fire] in the caller's transaction. It never commits, rolls back or sets
// anything, and what it answers is as provisional as the transaction.
//
// A refusal ([ErrConflict], [ErrNotFound], [ErrGuard], [ErrUnknownState], [ErrDedupReused],
// [ErrInvalid]) is an answer of the statement, not a failure of it: the transaction is alive. After any other error,
// [ErrTriggerRefused] among them, it can only be rolled back.
//
// Above READ COMMITTED a row that was changed since the transaction's snapshot is [ErrRetryTx],
// never an answer from old data; one that was created since is [ErrNotFound]. At READ COMMITTED an unlocked repeat is answered with what was committed when
// the statement began; [Lock] holds the row until the transaction ends.
//
// Cost: one statement, and one more for a refusal, as in Fire; one more on the same connection where Fire needs three. Above READ
// COMMITTED a repeat may take one more, too. The first call of a
// binding adds two trips, on this connection.
func (b *Binding[K, S, TX]) FireTx(ctx context.Context, tx TX, id K, ev Event[S], opts ...Option) (Result[S], error) {
	res, err := b.fireTx(ctx, tx, id, ev, opts)
	if err != nil {
		return Result[S]{}, b.publish(ev, err)
	}
	return res, nil
}

func (b *Binding[K, S, TX]) fireTx(ctx context.Context, tx TX, id K, ev Event[S], opts []Option) (Result[S], error) {
	if isNil(tx) {
		return Result[S]{}, &InvalidError{"transaction", "is nil"}
	}
	f, err := b.newFiring(id, ev, opts)
	if err != nil {
		return Result[S]{}, err
	}
	q := b.db.Tx(tx)
	if err := f.prepare(ctx, q, false); err != nil {
		return Result[S]{}, lostInTx(ctx, err)
	}
	a, err := f.decide(ctx, q)
	if err != nil {
		return Result[S]{}, lostInTx(ctx, f.explain(err))
	}
	return f.result(a)
}

func (b *Binding[K, S, TX]) fire(ctx context.Context, id K, ev Event[S], opts []Option) (Result[S], error) {
	f, err := b.newFiring(id, ev, opts)
	if err != nil {
		return Result[S]{}, err
	}
	if err := f.prepare(ctx, b.db.Pool(), true); err != nil {
		return Result[S]{}, err
	}
	var a answer
	if err := b.retry(ctx, f, func() error {
		a, err = f.attempt(ctx)
		return err
	}); err != nil {
		return Result[S]{}, err
	}
	return f.result(a)
}

// retry makes an attempt outside of the caller's transactions until it is no use any more: five times for what
// passes, and once more when the table was found changed.
func (b *Binding[K, S, TX]) retry(ctx context.Context, f *firing[K, S, TX], attempt func() error) error {
	for n := 1; ; n++ {
		err := attempt()
		if err == nil {
			return nil
		}
		err = f.explain(err)
		if n == 1 && tableChanged(err) && f.prepare(ctx, b.db.Pool(), true) == nil {
			continue
		}
		if n == maxAttempts || !errors.Is(err, ErrRetryTx) {
			return err
		}
		if pause(ctx, n) != nil {
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

// firing is one event on its way to one row.
type firing[K ID, S StateType, TX any] struct {
	b     *Binding[K, S, TX]
	id    K
	event Event[S]
	mv    *moves[S]
	call  call
	arg   any  // the id
	many  bool // it is for many rows, and id is one after the other
	uuid  bool // the column is one

	layout *layout
	parts  parts      // those of text
	text   *statement // the last one
}

func (b *Binding[K, S, TX]) newFiring(id K, ev Event[S], opts []Option) (*firing[K, S, TX], error) {
	return b.newFiringOf(id, ev, opts, false)
}

// newFiringOf checks a call. due says that it is not a repeat, whatever the event.
func (b *Binding[K, S, TX]) newFiringOf(id K, ev Event[S], opts []Option, due bool) (*firing[K, S, TX], error) {
	f := &firing[K, S, TX]{b: b, id: id, event: ev, mv: b.m.events[ev.name], arg: idArg(id)}
	c := &f.call
	c.apply(opts)
	if reason := b.faultOfID(f.arg); reason != "" {
		c.find("id", reason)
	}
	switch {
	case f.mv == nil:
		c.find(fmt.Sprintf("event %q", ev.name), fmt.Sprintf("is not one of machine %q", b.m.name))
	case f.mv.overlap && c.dedup == nil && !due:
		c.find(fmt.Sprintf("event %q", ev.name), "has a target among its sources: without Dedup a repeat would be one more step")
	}
	if err := b.faultOfScope(); err != nil {
		c.findings = append(c.findings, err)
	}
	var required []string
	if f.mv != nil {
		required = f.mv.columns()
	}
	f.checkOptions(required)
	return f, errors.Join(c.findings...)
}

// checkOptions refuses options that the binding has no column or no history for.
func (f *firing[K, S, TX]) checkOptions(required []string) {
	c, t := &f.call, f.b.table
	if t.NoHistory && (c.dedup != nil || c.actor != nil || c.meta != nil) {
		c.find("Dedup, Actor or Meta", "needs the history that NoHistory has turned off")
	}
	if c.version != nil && t.Version == "" {
		c.find("ExpectVersion", "needs Table.Version")
	}
	f.checkSets(required)
}

// faultOfID says what is wrong with an id that the server would refuse, and the transaction
// with it.
func (b *Binding[K, S, TX]) faultOfID(arg any) string {
	text, ok := arg.(string)
	if !ok {
		return ""
	}
	return faultOfText(text)
}

// checkSets refuses columns that are not the caller's to set, and the lack of required ones.
func (f *firing[K, S, TX]) checkSets(required []string) {
	c, kept := &f.call, f.b.table.kept()
	seen := map[string]bool{}
	for _, s := range c.sets {
		what := fmt.Sprintf("Set(%q)", s.column)
		switch {
		case s.column == "":
			c.find("Set", "names no column")
		case slices.Contains(kept, s.column):
			c.find(what, "would write a column that the machine keeps")
		case seen[s.column]:
			c.find(what, "is there twice")
		case slices.Contains(required, s.column) && s.text == "" && s.args[0] == nil:
			c.find(what, "sets a column to NULL that the state requires")
		}
		seen[s.column] = true
	}
	for _, column := range required {
		if !seen[column] {
			c.find(fmt.Sprintf("event %q", f.event.name), fmt.Sprintf("is declared to set %q: pass Set or SetExpr", column))
		}
	}
}

// prepare finds the statement for this call, the first in a transaction of our own or of the caller's.
func (f *firing[K, S, TX]) prepare(ctx context.Context, q pg.Querier, own bool) error {
	l, err := f.b.ready(ctx, q)
	if err == nil && !l.has(f.call.sets) {
		l, err = f.b.inspect(ctx, q) // a column may have come since
	}
	if err != nil {
		return err
	}
	if err := l.known(f.call.sets); err != nil {
		return err
	}
	f.uuid = l.idType == typeUUID
	if text, ok := f.arg.(string); ok && !f.many && f.uuid {
		if reason := faultOfUUID(text); reason != "" {
			return &InvalidError{"id", reason}
		}
	}
	f.layout, f.text = l, nil
	_, err = f.statement(f.partsOf(own || f.call.timeout > 0, own, false, true))
	return err
}

// statement is the one for these parts.
func (f *firing[K, S, TX]) statement(p parts) (*statement, error) {
	if f.text != nil && f.parts == p {
		return f.text, nil
	}
	of := onFire
	switch {
	case f.many:
		of = onMany
	case p.move:
		of = onMove
	case p.history:
		of = onFireHistory
	}
	s, err := f.layout.statement(of, p, &f.call)
	if err == nil {
		f.text, f.parts = s, p
	}
	return s, err
}

func pause(ctx context.Context, n int) error {
	most := firstPause << n
	timer := time.NewTimer(most/2 + mrand.N(most/2)) //nolint:gosec // jitter is no secret
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// isNil finds a transaction that would only be found by a panic.
func isNil(tx any) bool {
	v := reflect.ValueOf(tx)
	return !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil()
}
