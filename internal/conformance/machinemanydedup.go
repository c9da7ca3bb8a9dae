//go:build unix

package conformance

import (
	"testing"

	"github.com/pgonce/pgonce/internal/pg"
	sm "github.com/pgonce/pgonce/statemachine"
)

// The repeat of a nightly job is answered as the job was, also where rows have moved on since; its name
// does not do for another event.
func machineManyDedup[TX any](t *testing.T, c Client[TX]) {
	y := newYardOf(t, c, 2, cycle, sm.Table{Name: "item", Version: "version"})
	for id := range int64(3) {
		y.insert(id, inA)
	}
	ids := []int64{2, 0, 1}
	first, err := y.items.FireMany(t.Context(), ids, turnOn, sm.Dedup("night"))
	noErr(t, err)
	y.wantTold(first, map[int64]string{0: "Applied", 1: "Applied", 2: "Applied"})
	_, err = y.fire(1, turnOff, sm.Dedup("day"))
	noErr(t, err)
	again, err := y.items.FireMany(t.Context(), append(ids, 3), turnOn, sm.Dedup("night"))
	noErr(t, err)
	y.wantTold(again, map[int64]string{0: "AlreadyApplied", 1: "AlreadyApplied", 2: "AlreadyApplied", 3: "row not found"})
	for i := range 3 {
		if again[i].Seq != first[i].Seq || !again[i].At.Equal(first[i].At) || first[i].Version != 1 || again[i].Version != 1 {
			t.Errorf("got %+v, the first was %+v", again[i], first[i])
		}
	}
	y.wantState(1, inA)
	rows, err := y.items.FireMany(t.Context(), ids, turnOff, sm.Dedup("night"))
	noErr(t, err)
	y.wantTold(rows, map[int64]string{0: sm.ErrDedupReused.Error(), 1: sm.ErrDedupReused.Error(), 2: sm.ErrDedupReused.Error()})
	y.insert(9, inA)
	rows, err = y.items.FireMany(t.Context(), []int64{9}, turnOn, sm.Where("version = 0"), sm.Actor("ops")) // no id: it is answered by its history alone
	noErr(t, err)
	if r := rows[0]; !r.Applied() || r.From != inA || r.To != inB || r.Version != 1 || r.Seq == 0 || r.At.IsZero() {
		t.Errorf("got %+v", r)
	}
	wantInt(t, "version", y.int(`SELECT version FROM item WHERE id = 9`), 1)
	y.chains()
}

// A delivery that found nothing to do is remembered by its id as one that moved the row: when the row has gone on and come back to where the event
// begins, its repeat does not move it.
func machineManyDedupOfNothing[TX any](t *testing.T, c Client[TX]) {
	y := newYardOf(t, c, 2, cycle, sm.Table{Name: "item"})
	ids := []int64{1, 2}
	for _, id := range ids {
		y.insert(id, inA)
		y.want(id, turnOn, sm.Applied, inA, inB, sm.Dedup("first"))
	}
	again := map[int64]string{1: "AlreadyApplied", 2: "AlreadyApplied"}
	rows, err := y.items.FireMany(t.Context(), ids, turnOn, sm.Dedup("night"))
	noErr(t, err)
	y.wantTold(rows, again)
	tx := y.tx(pg.ReadCommitted)
	rows, err = y.items.FireManyTx(t.Context(), tx.Handle(), ids, turnOn, sm.Dedup("noon"))
	noErr(t, err)
	noErr(t, tx.Commit(t.Context()))
	y.wantTold(rows, again)
	for _, id := range ids {
		y.want(id, turnOff, sm.Applied, inB, inA, sm.Dedup("off"))
	}
	for _, dedup := range []string{"night", "noon"} {
		rows, err = y.items.FireMany(t.Context(), ids, turnOn, sm.Dedup(dedup))
		noErr(t, err)
		y.wantTold(rows, again)
	}
	for _, id := range ids {
		y.wantState(id, inA)
		y.wantHistory(id, "on:a>b", "on:b>b 1", "on:b>b 1", "off:b>a")
	}
}

// A call with an id after one without: a delivery that waits for another one of the same id is told so, and not that the id is there already.
func machineDedupAfterNone[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 3)
	for n, opts := range [][]sm.Option{nil, {sm.Where("ok")}} {
		id := int64(2 * n)
		y.insert(id, inA)
		y.insert(id+1, inA)
		y.want(id, goEvent, sm.Applied, inA, inT, opts...)
		opts = append(opts, sm.Dedup("d"))
		other := y.tx(pg.ReadCommitted)
		_, err := y.items.FireTx(t.Context(), other.Handle(), id+1, goEvent, opts...)
		noErr(t, err)
		mine := y.tx(pg.ReadCommitted)
		done := y.background(func() (itemResult, error) {
			return y.items.FireTx(t.Context(), mine.Handle(), id+1, goEvent, opts...)
		})
		if early := y.awaitBlocked(done); early != nil {
			t.Fatalf("it did not wait: %+v", early)
		}
		noErr(t, other.Commit(t.Context()))
		if a := <-done; a.err != nil || a.res.Outcome != sm.AlreadyApplied {
			t.Errorf("got %+v, %v", a.res, a.err)
		}
		noErr(t, mine.Commit(t.Context()))
	}
}
