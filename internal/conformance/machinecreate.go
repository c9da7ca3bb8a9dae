//go:build unix

package conformance

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pgonce/pgonce/internal/pg"
	sm "github.com/pgonce/pgonce/statemachine"
)

// Create is known by its id: of many callers one inserts the row, and a repeat is a repeat whatever has become of the row.
func machineCreate[TX any](t *testing.T, c Client[TX]) {
	y := newYardOf(t, c, 6, flow, sm.Table{Name: "item", Version: "version", Since: "at"})
	create := func(id int64, amount int, opts ...sm.Option) (itemResult, error) {
		return y.items.Create(t.Context(), id, inA, append(opts, sm.Set("amount", amount), sm.SetExpr("note", "upper($1)", "n"), sm.Match("amount = $1", amount))...)
	}
	var applied atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			switch res, err := create(1, 7, sm.Actor("ops")); {
			case err != nil:
				t.Error(err)
			case res.Applied():
				applied.Add(1)
			case res.Outcome != sm.AlreadyApplied || res.To != inA || res.Seq == 0 || res.At.IsZero():
				t.Errorf("got %+v", res)
			}
		})
	}
	wg.Wait()
	wantInt(t, "applied", applied.Load(), 1)
	wantInt(t, "the row", y.int(`SELECT count(*) FROM item WHERE id = 1 AND state = 'a' AND amount = 7 AND note = 'N' AND at IS NOT NULL`), 1)
	y.wantHistory(1, "(create):>a")
	y.want(1, goEvent, sm.Applied, inA, inT)
	res, err := create(1, 7)
	if err != nil || res.Outcome != sm.AlreadyApplied || res.To != inA {
		t.Errorf("got %+v, %v", res, err)
	}
	_, err = create(1, 8)
	if e, ok := errors.AsType[*sm.ConflictError](err); !ok || e.Reason != sm.ReasonMatch || e.State != "t" {
		t.Errorf("got %v", err)
	}
	y.insert(2, inA) // not by Create
	_, err = create(2, 100)
	wantErr(t, err, sm.ErrConflict)
	wantText(t, err, "was not created so")
	for _, opt := range []sm.Option{sm.Dedup("d"), sm.Where("true"), sm.Lock(), sm.ExpectVersion(1), sm.Set("state", "t"), sm.Set("id", 1)} {
		_, err := create(3, 1, opt)
		wantErr(t, err, sm.ErrInvalid)
	}
	_, err = y.items.Create(t.Context(), 3, inT)
	wantErr(t, err, sm.ErrInvalid)

	tx := y.tx(pg.ReadCommitted)
	res, err = y.items.CreateTx(t.Context(), tx.Handle(), 3, inA)
	if err != nil || !res.Applied() {
		t.Errorf("got %+v, %v", res, err)
	}
	_, err = y.items.CreateTx(t.Context(), tx.Handle(), 2, inA)
	wantErr(t, err, sm.ErrConflict)
	noErr(t, tx.Commit(t.Context()))
	y.wantHistory(3, "(create):>a")

	y.sql(`ALTER TABLE item ADD CONSTRAINT one_note UNIQUE (note)`)
	_, err = create(4, 1)
	wantErr(t, err, sm.ErrDiverted)
	wantText(t, err, "unique constraint")
	wantInt(t, "row 4", y.int(`SELECT count(*) FROM item WHERE id = 4`), 0)
}

// A row that was created in another state is another row. Without a history nobody can tell, so whatever is there is a conflict.
func machineCreateOtherwise[TX any](t *testing.T, c Client[TX]) {
	two := sm.MustNew("two", sm.Initial(inA, inB), sm.Final(inT), sm.From(inA, inB).On(goEvent).To(inT))
	y := newYardOf(t, c, 2, two, sm.Table{Name: "item"})
	create := func(items *sm.Binding[int64, itemState, TX], id int64, state itemState) (itemResult, error) {
		return items.Create(t.Context(), id, state)
	}
	conflict := func(err error, state itemState) {
		t.Helper()
		if e, ok := errors.AsType[*sm.ConflictError](err); !ok || e.Reason != sm.ReasonState || e.State != string(state) {
			t.Errorf("got %v, want a conflict with %q", err, state)
		}
	}
	for _, state := range []itemState{inA, inT} {
		if state == inT {
			y.want(1, goEvent, sm.Applied, inA, inT)
		}
		res, err := create(y.items, 1, inA)
		if err != nil || res.Applied() == (state == inT) || res.To != inA {
			t.Errorf("got %+v, %v", res, err)
		}
		_, err = create(y.items, 1, inB)
		conflict(err, state)
	}
	y.wantHistory(1, "(create):>a", "go:a>t")

	plain := bind(t, y.d, two, sm.Table{Name: "item", NoHistory: true, Version: "version"})
	res, err := create(plain, 2, inB)
	if err != nil || !res.Applied() || res.To != inB || res.Seq != 0 {
		t.Errorf("got %+v, %v", res, err)
	}
	y.wantState(2, inB)
	for _, state := range []itemState{inB, inA} {
		_, err = create(plain, 2, state)
		conflict(err, inB)
	}
	_, err = create(plain, 1, inA) // which has a history, of another binding
	conflict(err, inT)
	wantInt(t, "history", y.int(`SELECT count(*) FROM pgonce.transition WHERE entity = '2'`), 0)
}

// What is in the history of a row is not always its beginning, nor of this row: a delivery that found nothing to do is not, and an id column may be
// called as the history's own.
func machineAdoptAmongOthers[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	y.insert(1, inT)
	y.want(1, goEvent, sm.AlreadyApplied, inT, inT, sm.Dedup("d"))
	n, err := y.items.Adopt(t.Context(), "import")
	noErr(t, err)
	wantInt(t, "adopted", n, 1)
	y.wantHistory(1, "go:t>t 1", "(adopt):>t")

	y.sql(`CREATE TABLE part (entity bigint PRIMARY KEY, state text NOT NULL)`)
	y.sql(`INSERT INTO part VALUES (1, 'a'), (2, 'b'), (3, 't')`)
	parts := bind(t, y.d, sm.MustNew("parts", sm.Initial(inA), sm.Final(inT), sm.From(inA).On(goEvent).To(inT), sm.From(inB).On(goEvent).To(inT),
		sm.From(inA).On(prepare).To(inB)), sm.Table{Name: "part", ID: "entity"})
	res, err := parts.Fire(t.Context(), 1, goEvent)
	if err != nil || !res.Applied() {
		t.Errorf("got %+v, %v", res, err)
	}
	n, err = parts.Adopt(t.Context(), "import")
	noErr(t, err)
	wantInt(t, "adopted", n, 2)
	wantInt(t, "history", y.int(`SELECT count(*) FROM pgonce.transition WHERE machine = 'parts' AND event = '(adopt)' AND entity IN ('2', '3')`), 2)
}

// A table that is older than its machine: rows get the beginning of a history once, those in unknown states are named.
func machineAdopt[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	y.sql(`INSERT INTO item (id, state) SELECT g, (ARRAY['a', 'b', 't'])[1 + g % 3] FROM generate_series(1, 1203) g`)
	y.insert(5000, "newer")
	y.want(1, goEvent, sm.Applied, inB, inT)
	wantInt(t, "breaks before", y.breaks(), 802) // neither in a nor with a history: 802 in b and t, less row 1, and row 5000
	n, err := y.items.Adopt(t.Context(), "import")
	wantErr(t, err, sm.ErrUnknownState)
	wantText(t, err, "5000")
	wantInt(t, "adopted", n, 1202)
	wantInt(t, "history", y.int(`SELECT count(*) FROM pgonce.transition WHERE event = '(adopt)' AND actor = 'import' AND from_state = ''`), 1202)
	wantInt(t, "breaks after", y.breaks(), 1)
	y.sql(`DELETE FROM item WHERE id = 5000`)
	n, err = y.items.Adopt(t.Context(), "")
	noErr(t, err)
	wantInt(t, "adopted again", n, 0)
	y.want(2, archive, sm.Applied, inT, inL)
	y.wantHistory(2, "(adopt):>t", "archive:t>late")
}
