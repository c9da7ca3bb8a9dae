//go:build unix

package conformance

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/internal/pg"
	sm "github.com/pgonce/pgonce/statemachine"
)

// caller is a way to fire.
type caller struct {
	level pg.Isolation // "" is Fire, outside of transactions
	dedup bool
}

func (c caller) snapshot() bool { return c.level == pg.RepeatableRead || c.level == pg.Serializable }

func (c caller) String() string {
	s := "Fire"
	if c.level != "" {
		s = "FireTx " + string(c.level)
	}
	if c.dedup {
		s += ", Dedup"
	}
	return s
}

var callers = []caller{
	{"", false},
	{"", true},
	{pg.ReadCommitted, false},
	{pg.ReadCommitted, true},
	{pg.RepeatableRead, false},
	{pg.RepeatableRead, true},
	{pg.Serializable, false},
	{pg.Serializable, true},
}

// race is one line of the truth table: a transaction does something to the row and is still open
// when go is fired, then it ends.
type race struct {
	start    itemState
	do       string // $1 is the row
	rollback bool

	want     sm.Outcome // 0 for an error
	err      error
	from     itemState // where the row is found
	noWait   bool      // the answer comes while the other transaction is open
	anyLevel bool      // a snapshot does not matter; else it is ErrRetryTx there
	guarded  bool      // fired with Where("ok")
	unlocked bool      // without an id, at READ COMMITTED, it is AlreadyApplied: so it was when the statement began
}

var truthTable = map[string]race{
	"nothing, source":       {start: inA, want: sm.Applied, from: inA, anyLevel: true, noWait: true},
	"nothing, target":       {start: inT, want: sm.AlreadyApplied, from: inT, anyLevel: true, noWait: true},
	"nothing, elsewhere":    {start: inX, err: sm.ErrConflict, from: inX, anyLevel: true, noWait: true},
	"nothing, ignored":      {start: inL, want: sm.Superseded, from: inL, anyLevel: true, noWait: true},
	"rolled back":           {start: inA, do: `UPDATE item SET state = 'x' WHERE id = $1`, rollback: true, want: sm.Applied, from: inA, anyLevel: true},
	"same event":            {start: inA, do: `UPDATE item SET state = 't' WHERE id = $1`, want: sm.AlreadyApplied, from: inT},
	"other event":           {start: inA, do: `UPDATE item SET state = 'x' WHERE id = $1`, err: sm.ErrConflict, from: inX},
	"same event, moved on":  {start: inA, do: `UPDATE item SET state = 'late' WHERE id = $1`, want: sm.Superseded, from: inL},
	"row deleted":           {start: inA, do: `DELETE FROM item WHERE id = $1`, err: sm.ErrNotFound},
	"source to source":      {start: inA, do: `UPDATE item SET state = 'b' WHERE id = $1`, want: sm.Applied, from: inB},
	"elsewhere to source":   {start: inX, do: `UPDATE item SET state = 'a' WHERE id = $1`, want: sm.Applied, from: inA},
	"elsewhere to target":   {start: inX, do: `UPDATE item SET state = 't' WHERE id = $1`, want: sm.AlreadyApplied, from: inT},
	"target to source":      {start: inT, do: `UPDATE item SET state = 'a' WHERE id = $1`, want: sm.Applied, from: inA, unlocked: true},
	"guard made false":      {start: inA, do: `UPDATE item SET ok = false WHERE id = $1`, err: sm.ErrGuard, from: inA, guarded: true},
	"guard made true":       {start: inA, do: `UPDATE item SET ok = true WHERE id = $1`, want: sm.Applied, from: inA, guarded: true},
	"unrelated column":      {start: inA, do: `UPDATE item SET note = 'n' WHERE id = $1`, want: sm.Applied, from: inA},
	"child row refers here": {start: inA, do: `INSERT INTO child VALUES ($1)`, want: sm.Applied, from: inA, anyLevel: true, noWait: true},
	"row locked only":       {start: inA, do: `SELECT FROM item WHERE id = $1 FOR UPDATE`, want: sm.Applied, from: inA, anyLevel: true},
}

// Every line, for every way to fire. The answer is what is committed when the
// statement has the row, or above READ COMMITTED it is none.
func machineTruthTable[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	id := int64(0)
	for _, m := range []*sm.Machine[itemState]{flow, oneWay} {
		y.items = bind(t, y.d, m, sm.Table{Name: "item"})
		noErr(t, y.items.Validate(t.Context()))
		for name, r := range truthTable {
			for _, how := range callers {
				if m == oneWay && (how.dedup || r.guarded || r.from == inB) {
					continue
				}
				id++
				y.insert(id, r.start)
				if name == "guard made true" {
					y.sql(`UPDATE item SET ok = false WHERE id = $1`, id)
				}
				w := r.expect(how)
				w.name, w.id = m.Name()+", "+name+", "+how.String(), id
				y.race(r, how, w)
			}
		}
	}
}

// In oneWay an event has one source, so without options it has a statement of its own.
var oneWay = sm.MustNew("one way", sm.Initial(inA, inX), sm.Final(inL), sm.From(inA).On(goEvent).To(inT), sm.From(inX).On(away).To(inA),
	sm.From(inT).On(archive).To(inL), sm.From(inL).Ignore(goEvent))

// expectation is a line of the table for one way to fire.
type expectation struct {
	name    string
	id      int64
	outcome sm.Outcome
	from    itemState
	err     error
	noWait  bool
}

func (r race) expect(how caller) expectation {
	w := expectation{outcome: r.want, from: r.from, err: r.err, noWait: r.noWait}
	switch {
	case how.snapshot() && !r.anyLevel:
		w.outcome, w.err = 0, sm.ErrRetryTx
	case r.unlocked && !how.dedup:
		w.outcome, w.from, w.noWait = sm.AlreadyApplied, inT, true
	}
	return w
}

func (y *yard[TX]) race(r race, how caller, w expectation) {
	t := y.t
	var opts []sm.Option
	if how.dedup {
		opts = append(opts, sm.Dedup("d"))
	}
	if r.guarded {
		opts = append(opts, sm.Where("ok"))
	}
	fire := func() (itemResult, error) { return y.fire(w.id, goEvent, opts...) }
	var mine pg.OwnedTx[TX]
	if how.level != "" {
		mine = y.tx(how.level)
		fire = func() (itemResult, error) {
			return y.items.FireTx(t.Context(), mine.Handle(), w.id, goEvent, opts...)
		}
	}
	var other pgx.Tx
	if r.do != "" {
		other = y.hold(r.do, w.id)
	}
	done := y.background(fire)
	var got answer
	early := y.awaitBlocked(done)
	if waited := early == nil; waited == w.noWait {
		t.Errorf("%s: it waited: %t", w.name, waited)
	}
	switch {
	case other != nil && r.rollback:
		noErr(t, other.Rollback(t.Context()))
	case other != nil:
		noErr(t, other.Commit(t.Context()))
	}
	if early == nil {
		got = <-done
	} else {
		got = *early
	}
	y.judge(got, mine, how, w)
}

// judge compares an answer with what was expected, and with what it has left in the tables.
func (y *yard[TX]) judge(got answer, mine pg.OwnedTx[TX], how caller, w expectation) {
	t := y.t
	if got.res.Outcome != w.outcome || !errors.Is(got.err, w.err) || w.err == nil && (got.err != nil || got.res.From != w.from) {
		t.Errorf("%s: got %+v, %v; want %v from %q, %v", w.name, got.res, got.err, w.outcome, w.from, w.err)
	}
	if e, ok := errors.AsType[*sm.ConflictError](got.err); ok && e.State != string(w.from) {
		t.Errorf("%s: the conflict is with %q, want %q", w.name, e.State, w.from)
	}
	switch {
	case mine != nil && errors.Is(got.err, sm.ErrRetryTx):
		mine.Rollback(t.Context())
	case mine != nil: // a refusal leaves it alive
		noErr(t, mine.Run(t.Context(), pg.Stmt{SQL: `SELECT 1`}))
		noErr(t, mine.Commit(t.Context()))
	}
	records := int64(0)
	if w.outcome == sm.Applied || w.outcome != 0 && how.dedup {
		records = 1
	}
	if n := y.int(`SELECT count(*) FROM pgonce.transition WHERE entity = $1::bigint::text`, w.id); n != records {
		t.Errorf("%s: %d rows of history, want %d", w.name, n, records)
	}
	if w.outcome == sm.Applied {
		y.wantState(w.id, inT)
	}
}

// With Lock a repeat waits for what is in flight, and then holds the row.
func machineLockHoldsARepeat[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	y.insert(1, inT)
	mine := y.tx(pg.ReadCommitted)
	res, err := y.items.FireTx(t.Context(), mine.Handle(), 1, goEvent, sm.Lock())
	noErr(t, err)
	if res.Outcome != sm.AlreadyApplied {
		t.Errorf("got %+v", res)
	}
	done := y.background(func() (itemResult, error) { return y.fire(1, archive) })
	if early := y.awaitBlocked(done); early != nil {
		t.Errorf("the row was not held: %+v", *early)
	}
	noErr(t, mine.Commit(t.Context()))
	if got := <-done; got.err != nil || !got.res.Applied() {
		t.Errorf("got %+v", got)
	}

	y.insert(2, inT)
	other := y.hold(`UPDATE item SET state = 'a' WHERE id = 2`)
	done = y.background(func() (itemResult, error) { return y.fire(2, goEvent, sm.Lock()) })
	if early := y.awaitBlocked(done); early != nil {
		t.Errorf("it did not wait: %+v", *early)
	}
	noErr(t, other.Commit(t.Context()))
	if got := <-done; got.err != nil || !got.res.Applied() {
		t.Errorf("got %+v", got)
	}
}

// A delivery comes a second time while the first is in flight: the second waits for the row, never for the
// index, and gets the first answer.
func machineSameDeliveryInFlight[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 3)
	y.sameDelivery(``, callers)
}

// The same, and the first transaction moves the row on: to where the event is refused, to where it is ignored, to where it
// could be applied once more, and away.
func machineSameDeliveryMovedOn[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 3)
	for _, then := range []string{`UPDATE item SET state = 'x' WHERE id = $1`, `UPDATE item SET state = 'late' WHERE id = $1`, `UPDATE item SET state = 'a' WHERE id = $1`} {
		y.sameDelivery(then, callers)
		y.sql(`DELETE FROM item`)
		y.sql(`DELETE FROM pgonce.transition`)
	}
}

func (y *yard[TX]) sameDelivery(then string, callers []caller) {
	t := y.t
	for i, how := range callers {
		if !how.dedup {
			continue
		}
		id := int64(i)
		y.insert(id, inA)
		level := pg.ReadCommitted
		if how.level != "" {
			level = how.level
		}
		mine := y.tx(level)
		other := y.tx(pg.ReadCommitted)
		first, err := y.items.FireTx(t.Context(), other.Handle(), id, goEvent, sm.Dedup("d"))
		noErr(t, err)
		if then != "" {
			noErr(t, other.Run(t.Context(), pg.Stmt{SQL: then, Args: []any{id}}))
		}
		done := y.background(func() (itemResult, error) {
			if how.level == "" {
				return y.fire(id, goEvent, sm.Dedup("d"))
			}
			return y.items.FireTx(t.Context(), mine.Handle(), id, goEvent, sm.Dedup("d"))
		})
		if early := y.awaitBlocked(done); early != nil {
			t.Errorf("%v: it did not wait: %+v", how, *early)
		}
		noErr(t, other.Commit(t.Context()))
		got := <-done
		switch {
		case how.snapshot():
			wantErr(t, got.err, sm.ErrRetryTx)
		case got.err != nil || got.res.Outcome != sm.AlreadyApplied || got.res.Seq != first.Seq || !got.res.At.Equal(first.At) ||
			got.res.From != inA || got.res.To != inT:
			t.Errorf("%v, %s: got %+v, %v; the first was %+v", how, then, got.res, got.err, first)
		}
		mine.Rollback(t.Context())
		y.wantHistory(id, "go:a>t")
	}
}
