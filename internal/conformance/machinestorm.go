//go:build unix

package conformance

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	sm "github.com/pgonce/pgonce/statemachine"
)

// A hundred callers of each of twenty rows: one moves it, all the others are told so.
func machineStorm[TX any](t *testing.T, c Client[TX]) {
	const rows, each = 20, 100
	y := newYard(t, c, 8)
	var applied, already atomic.Int64
	y.crowd(rows, each, func(row, _ int) {
		switch res, err := y.fire(int64(row), goEvent); {
		case err != nil:
			t.Errorf("row %d: %v", row, err)
		case res.Applied():
			applied.Add(1)
		case res.Outcome == sm.AlreadyApplied:
			already.Add(1)
		}
	})
	wantInt(t, "applied", applied.Load(), rows)
	wantInt(t, "already", already.Load(), rows*each-rows)
	wantInt(t, "rows of history", y.int(`SELECT count(*) FROM pgonce.transition`), rows)
	wantInt(t, "rows in t", y.int(`SELECT count(*) FROM item WHERE state = 't'`), rows)
}

// crowd lets sixteen workers call fire for every row and every n, rows in turn.
func (y *yard[TX]) crowd(rows, each int, fire func(row, n int)) {
	for row := range rows {
		y.insert(int64(row), inA)
	}
	work := make(chan int)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := range work {
				fire(i%rows, i/rows)
			}
		})
	}
	for i := range rows * each {
		work <- i
	}
	close(work)
	wg.Wait()
}

// The machine of a switch, which is a cycle.
var (
	turnOn  = sm.NewEvent[itemState]("on")
	turnOff = sm.NewEvent[itemState]("off")
	cycle   = sm.MustNew("cycle", sm.Initial(inA), sm.From(inA).On(turnOn).To(inB), sm.From(inB).On(turnOff).To(inA))
)

// Deliveries on a cycle, each of them twice and in any order: no id is used twice, the history is a chain, its
// end is where the row is, and what callers were told adds up to it.
func machineCycleStorm[TX any](t *testing.T, c Client[TX]) {
	const rows, each = 20, 40
	y := newYardOf(t, c, 8, cycle, sm.Table{Name: "item", Version: "version"})
	var applied atomic.Int64
	y.crowd(rows, each, func(row, n int) {
		ev := turnOn
		if n%4 > 1 {
			ev = turnOff
		}
		res, err := y.fire(int64(row), ev, sm.Dedup(string(rune('a'+n/2))), sm.SetExpr("refunded", "refunded + 1"))
		switch {
		case err != nil && !errors.Is(err, sm.ErrConflict):
			t.Errorf("row %d: %v", row, err)
		case err == nil && res.Applied():
			applied.Add(1)
		}
	})
	y.chains()
	wantInt(t, "moves, by what callers were told", applied.Load(), y.int(`SELECT count(*) FROM pgonce.transition WHERE outcome = 0`))
	wantInt(t, "moves, by what they did", y.int(`SELECT sum(refunded)::bigint FROM item`), applied.Load())
	wantInt(t, "ids used twice", y.int(`SELECT count(*) FROM (SELECT FROM pgonce.transition GROUP BY entity, dedup HAVING count(*) > 1) twice`), 0)
	wantInt(t, "versions that are not the moves", y.int(`SELECT count(*) FROM item i WHERE version <> (SELECT count(*) FROM pgonce.transition WHERE entity = i.id::text AND outcome = 0)
		OR version <> coalesce((SELECT max(h.version) FROM pgonce.transition h WHERE entity = i.id::text), 0)`), 0)
	if applied.Load() < rows {
		t.Errorf("only %d moves: this shows nothing", applied.Load())
	}
}

// chains checks that every history leads from a to where the row is.
func (y *yard[TX]) chains() {
	y.t.Helper()
	wantInt(y.t, "breaks in the chains", y.int(`SELECT count(*) FROM (
		SELECT from_state, lag(to_state, 1, 'a') OVER (PARTITION BY entity ORDER BY seq) AS before FROM pgonce.transition WHERE outcome = 0
		) h WHERE from_state <> before`), 0)
	wantInt(y.t, "rows that are not where their history ends", y.int(`SELECT count(*) FROM item i WHERE state <> coalesce((
		SELECT to_state FROM pgonce.transition WHERE entity = i.id::text AND outcome = 0 ORDER BY seq DESC LIMIT 1), 'a')`), 0)
}

// The answer of the provider's API and its webhook both say "paid", under ids of their own. One of them
// moves the row, and so has the effect.
func machineDoubleCallback[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	y.insert(1, inA)
	var effects atomic.Int64
	var wg sync.WaitGroup
	for _, id := range []string{"api", "webhook"} {
		wg.Go(func() {
			switch res, err := y.fire(1, goEvent, sm.Dedup(id)); {
			case err != nil:
				t.Error(err)
			case res.Applied():
				effects.Add(1)
			}
		})
	}
	wg.Wait()
	wantInt(t, "effects", effects.Load(), 1)
	y.wantHistory(1, "go:a>t", "go:t>t 1")
}
