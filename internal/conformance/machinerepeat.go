//go:build unix

package conformance

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/pgonce/pgonce/internal/pg"
	sm "github.com/pgonce/pgonce/statemachine"
)

func machineConflictTellsWhere[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 1)
	y.insert(1, inT)
	_, err := y.fire(1, away)
	wantErr(t, err, sm.ErrConflict)
	e, ok := errors.AsType[*sm.ConflictError](err)
	if !ok || e.Machine != "flow" || e.ID != int64(1) || e.Event != "away" || e.State != "t" || e.Final ||
		!slices.Equal(e.Sources, []string{"a", "b"}) || !slices.Equal(e.Allowed, []string{"archive"}) {
		t.Errorf("got %+v", e)
	}
	wantText(t, err, `statemachine: fire "away" of "flow": conflict: row 1 is "t", "away" needs a, b; allowed there: archive`)
	y.insert(2, inX)
	_, err = y.fire(2, goEvent)
	wantText(t, err, "that state is final")
	y.wantState(1, inT)
	y.wantHistory(1)
}

func machineMissingRow[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 1)
	for _, opts := range [][]sm.Option{nil, {sm.Dedup("d")}, {sm.Lock()}, {sm.Match("ok")}} {
		_, err := y.fire(7, goEvent, opts...)
		wantErr(t, err, sm.ErrNotFound)
	}
	wantInt(t, "rows of history", y.int(`SELECT count(*) FROM pgonce.transition`), 0)
}

// A state that a newer release has written, or somebody's hand, is neither a conflict nor overwritten.
func machineUnknownState[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 1)
	y.insert(1, "of a newer release")
	y.insert(2, inA)
	y.sql(`UPDATE item SET state = NULL WHERE id = 2`)
	for id, want := range map[int64]string{1: "of a newer release", 2: ""} {
		for _, opts := range [][]sm.Option{nil, {sm.Dedup("d")}, {sm.Match("NOT ok")}} {
			_, err := y.fire(id, goEvent, opts...)
			wantErr(t, err, sm.ErrUnknownState)
			if e, ok := errors.AsType[*sm.UnknownStateError](err); !ok || e.State != want || e.Null != (want == "") {
				t.Errorf("got %+v", e)
			}
			if errors.Is(err, sm.ErrConflict) {
				t.Errorf("%v is a conflict too", err)
			}
		}
	}
	y.wantState(1, "of a newer release")
}

// A late repeat of a delivery comes in the next round of a cycle, when the event is allowed again. The id
// keeps it from being applied; without one it is.
func machineLateRepeatOnACycle[TX any](t *testing.T, c Client[TX]) {
	y := newYardOf(t, c, 1, cycle, sm.Table{Name: "item"})
	y.insert(1, inA)
	first := y.want(1, turnOn, sm.Applied, inA, inB, sm.Dedup("1"))
	y.want(1, turnOff, sm.Applied, inB, inA, sm.Dedup("2"))
	late := y.want(1, turnOn, sm.AlreadyApplied, inA, inB, sm.Dedup("1"))
	if late.Seq != first.Seq || !late.At.Equal(first.At) || first.Seq == 0 || first.At.IsZero() {
		t.Errorf("got %+v, the first was %+v", late, first)
	}
	y.wantState(1, inA)
	for _, level := range []pg.Isolation{pg.ReadCommitted, pg.Serializable} {
		tx := y.tx(level)
		res, err := y.items.FireTx(t.Context(), tx.Handle(), 1, turnOn, sm.Dedup("1"))
		if err != nil || res.Outcome != sm.AlreadyApplied {
			t.Errorf("%s: got %+v, %v", level, res, err)
		}
		tx.Rollback(t.Context())
	}
	y.want(1, turnOn, sm.Applied, inA, inB)
	y.wantHistory(1, "on:a>b", "off:b>a", "on:a>b")

	// Another row and another machine have ids of their own.
	y.insert(2, inA)
	y.want(2, turnOn, sm.Applied, inA, inB, sm.Dedup("1"))
}

// An id that found nothing to do is used up: it must not be applied when the machine comes round.
func machineNilAnswersAreRecorded[TX any](t *testing.T, c Client[TX]) {
	y := newYardOf(t, c, 2, cycle, sm.Table{Name: "item"})
	y.insert(1, inA)
	y.want(1, turnOn, sm.Applied, inA, inB, sm.Dedup("1"))
	y.want(1, turnOn, sm.AlreadyApplied, inB, inB, sm.Dedup("2"))
	y.want(1, turnOff, sm.Applied, inB, inA, sm.Dedup("3"))
	y.want(1, turnOff, sm.AlreadyApplied, inA, inA, sm.Dedup("4")) // a is where rows begin too: asked of the history
	y.want(1, turnOn, sm.AlreadyApplied, inB, inB, sm.Dedup("2"))  // late, and allowed by the state
	y.wantState(1, inA)
	y.want(1, turnOn, sm.Applied, inA, inB, sm.Dedup("5"))
	y.want(1, turnOff, sm.AlreadyApplied, inA, inA, sm.Dedup("4"))
	y.wantState(1, inB)
	y.wantHistory(1, "on:a>b", "on:b>b 1", "off:b>a", "off:a>a 1", "on:a>b")

	// A refusal is no answer to hold on to: the same delivery may be applied later.
	_, err := y.fire(1, turnOn, sm.Dedup("6"), sm.Match("amount = 1"))
	wantErr(t, err, sm.ErrConflict)
	y.want(1, turnOn, sm.AlreadyApplied, inB, inB, sm.Dedup("6"), sm.Match("amount = 100"))
}

func machineDedupReused[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	y.insert(1, inA)
	first := y.want(1, goEvent, sm.Applied, inA, inT, sm.Dedup("d"))
	_, err := y.fire(1, archive, sm.Dedup("d"))
	wantErr(t, err, sm.ErrDedupReused)
	if e, ok := errors.AsType[*sm.DedupReusedError](err); !ok || e.Event != "archive" || e.First != "go" || e.Seq != first.Seq || e.ID != int64(1) {
		t.Errorf("got %+v", e)
	}
	y.wantState(1, inT)

	// While the first is in flight it is found out after the wait.
	y.insert(2, inA)
	other := y.tx(pg.ReadCommitted)
	_, err = y.items.FireTx(t.Context(), other.Handle(), 2, goEvent, sm.Dedup("d"))
	noErr(t, err)
	done := y.background(func() (itemResult, error) { return y.fire(2, archive, sm.Dedup("d")) })
	if early := y.awaitBlocked(done); early != nil {
		t.Errorf("it did not wait: %+v", *early)
	}
	noErr(t, other.Commit(t.Context()))
	wantErr(t, (<-done).err, sm.ErrDedupReused)
	y.wantState(2, inT)
}

// A message that comes after what superseded it: declared, so it is no error, and leaves the row alone.
func machineSuperseded[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 1)
	y.insert(1, inL)
	y.want(1, goEvent, sm.Superseded, inL, inL)
	y.want(1, goEvent, sm.Superseded, inL, inL, sm.Lock())
	y.wantHistory(1)
	first := y.want(1, goEvent, sm.Superseded, inL, inL, sm.Dedup("d"))
	if again := y.want(1, goEvent, sm.Superseded, inL, inL, sm.Dedup("d")); again.Seq != first.Seq {
		t.Errorf("got %+v, the first was %+v", again, first)
	}
	y.wantHistory(1, "go:late>late 2")
	y.sql(`UPDATE item SET state = 'a' WHERE id = 1`)
	y.want(1, goEvent, sm.Superseded, inL, inL, sm.Dedup("d")) // as it was answered
	y.wantState(1, inA)
	_, err := y.fire(1, archive)
	wantErr(t, err, sm.ErrConflict) // what is not declared is an error
}

// An event may lead back to where it began. Then a repeat can only be told by its id.
func machineSelfTransition[TX any](t *testing.T, c Client[TX]) {
	retry := sm.NewEvent[itemState]("retry")
	m := sm.MustNew("self", sm.Initial(inA), sm.Final(inT), sm.From(inA).On(goEvent).To(inT), sm.From(inA).On(retry).To(inA))
	y := newYardOf(t, c, 1, m, sm.Table{Name: "item", Version: "version"})
	y.insert(1, inA)
	_, err := y.fire(1, retry)
	wantErr(t, err, sm.ErrInvalid)
	wantText(t, err, "without Dedup")
	for i, id := range []string{"1", "2", "2", "1"} {
		outcome := sm.Applied
		if i > 1 {
			outcome = sm.AlreadyApplied
		}
		y.want(1, retry, outcome, inA, inA, sm.Dedup(id))
	}
	y.wantHistory(1, "retry:a>a", "retry:a>a")
	wantInt(t, "version", y.int(`SELECT version FROM item`), 2)
}

// Two events that lead to one state.
var closing = sm.MustNew("closing", sm.Initial(inA), sm.Final(inL),
	sm.From(inA).On(goEvent).To(inT), sm.From(inA).On(away).To(inT), sm.From(inT).On(archive).To(inL), sm.From(inT).On(prepare).To(inA))

// The order is closed; whether it was paid or cancelled is only in the history. So a repeat of
// what closed it is a repeat, and the other event is a conflict.
func machineSharedTarget[TX any](t *testing.T, c Client[TX]) {
	y := newYardOf(t, c, 2, closing, sm.Table{Name: "item"})
	y.insert(1, inA)
	y.want(1, goEvent, sm.Applied, inA, inT)
	for _, opts := range [][]sm.Option{nil, {sm.Lock()}, {sm.Match("ok")}, {sm.Dedup("d")}} {
		y.want(1, goEvent, sm.AlreadyApplied, inT, inT, opts...)
		_, err := y.fire(1, away, opts...)
		if len(opts) > 0 && err != nil && errors.Is(err, sm.ErrDedupReused) {
			err = sm.ErrConflict // the id was taken by go
		}
		wantErr(t, err, sm.ErrConflict)
		for _, level := range []pg.Isolation{pg.ReadCommitted, pg.RepeatableRead, pg.Serializable} {
			tx := y.tx(level)
			res, err := y.items.FireTx(t.Context(), tx.Handle(), 1, goEvent, opts...)
			if err != nil || res.Outcome != sm.AlreadyApplied {
				t.Errorf("%s: got %+v, %v", level, res, err)
			}
			_, err = y.items.FireTx(t.Context(), tx.Handle(), 1, away, append(opts, sm.Dedup("other"))...)
			wantErr(t, err, sm.ErrConflict)
			noErr(t, tx.Commit(t.Context()))
		}
	}
	y.wantHistory(1, "go:a>t", "go:t>t 1")
	y.want(1, prepare, sm.Applied, inT, inA)
	y.want(1, away, sm.Applied, inA, inT)
	_, err := y.fire(1, goEvent)
	wantErr(t, err, sm.ErrConflict) // of an earlier round
	y.want(1, away, sm.AlreadyApplied, inT, inT)

	y.insert(2, inT) // by raw SQL: nobody knows how
	for _, ev := range []sm.Event[itemState]{goEvent, away} {
		_, err := y.fire(2, ev)
		wantErr(t, err, sm.ErrConflict)
		_, err = y.fire(2, ev, sm.Dedup("d"))
		wantErr(t, err, sm.ErrConflict)
	}
	y.wantHistory(2)

	// An event with two such targets: that it came last says nothing about the one where the row was put by hand.
	both := bind(t, y.d, sm.MustNew("both", sm.Initial(inA, inB), sm.Final(inT, inX), sm.From(inA).On(goEvent).To(inT), sm.From(inB).On(goEvent).To(inX),
		sm.From(inA).On(away).To(inT), sm.From(inB).On(away).To(inX)), sm.Table{Name: "item"})
	y.insert(3, inA)
	for i, want := range []error{nil, nil, sm.ErrConflict, sm.ErrConflict} {
		if i == 2 {
			y.sql(`UPDATE item SET state = 'x' WHERE id = 3`)
		}
		opts := []sm.Option{nil}
		if i == 3 {
			opts = append(opts, sm.Lock())
		}
		if _, err := both.Fire(t.Context(), 3, goEvent, opts...); !errors.Is(err, want) {
			t.Errorf("%d: got %v, want %v", i, err, want)
		}
	}
}

// The same, decided while it happens. The statement that waits has an old snapshot of the history, so it
// must not judge by it: not when what it waits for is the first move, and not when the row is closed again in
// another round.
func machineSharedTargetInFlight[TX any](t *testing.T, c Client[TX]) {
	y := newYardOf(t, c, 3, closing, sm.Table{Name: "item"})
	moves := func(ctx context.Context, tx TX, id int64, events ...sm.Event[itemState]) {
		for _, ev := range events {
			_, err := y.items.FireTx(ctx, tx, id, ev)
			noErr(t, err)
		}
	}
	id := int64(0)
	for _, how := range callers {
		for name, meanwhile := range map[string][]sm.Event[itemState]{
			"by itself": {goEvent}, "by the other": {away},
			"anew by itself": {prepare, goEvent}, "anew by the other": {prepare, away},
		} {
			id++
			y.insert(id, inA)
			opts := []sm.Option{sm.Lock()}
			if how.dedup {
				opts = append(opts, sm.Dedup("d"))
			}
			if len(meanwhile) == 2 {
				y.want(id, goEvent, sm.Applied, inA, inT)
			}
			fire := func() (itemResult, error) { return y.fire(id, goEvent, opts...) }
			if how.level != "" {
				mine := y.tx(how.level)
				fire = func() (itemResult, error) {
					defer mine.Rollback(t.Context())
					return y.items.FireTx(t.Context(), mine.Handle(), id, goEvent, opts...)
				}
			}
			other := y.tx(pg.ReadCommitted)
			moves(t.Context(), other.Handle(), id, meanwhile...)
			done := y.background(fire)
			if early := y.awaitBlocked(done); early != nil {
				t.Errorf("%v, %s: it did not wait: %+v", how, name, *early)
			}
			noErr(t, other.Commit(t.Context()))
			got := <-done
			byItself := meanwhile[len(meanwhile)-1] == goEvent
			switch {
			case how.snapshot():
				wantErr(t, got.err, sm.ErrRetryTx)
			case byItself && (got.err != nil || got.res.Outcome != sm.AlreadyApplied):
				t.Errorf("%v, %s: got %+v", how, name, got)
			case !byItself && !errors.Is(got.err, sm.ErrConflict):
				t.Errorf("%v, %s: got %+v, want a conflict", how, name, got)
			}
		}
	}
}

// Rows are created in the state that an event leads back to. One that was never away from it has not been
// brought back.
func machineCreatedInTheTarget[TX any](t *testing.T, c Client[TX]) {
	y := newYardOf(t, c, 1, cycle, sm.Table{Name: "item"})
	y.insert(1, inA)
	_, err := y.fire(1, turnOff)
	wantErr(t, err, sm.ErrConflict)
	y.want(1, turnOn, sm.Applied, inA, inB)
	y.want(1, turnOff, sm.Applied, inB, inA)
	y.want(1, turnOff, sm.AlreadyApplied, inA, inA)
}
