//go:build unix

package conformance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"

	"github.com/pgonce/pgonce/internal/pg"
	sm "github.com/pgonce/pgonce/statemachine"
	"github.com/pgonce/pgonce/statemachine/smtest"
)

func machineTriggerSuites[TX any]() suites[TX] {
	return suites[TX]{
		"machine/TriggerRefused":       machineTriggerRefused[TX],
		"machine/TriggerRefusesOthers": machineTriggerRefusesOthers[TX],
		"machine/TriggerInPlace":       machineTriggerInPlace[TX],
		"machine/TriggerRaced":         machineTriggerRaced[TX],
		"machine/Verified":             machineVerified[TX],
		"machine/Proved":               machineProved[TX],
		"machine/Hundred":              machineHundred[TX],
	}
}

// A program that is newer than the database's trigger: what is refused there is told apart from an ordinary conflict, which
// leaves the transaction alive, and from a constraint of the table's own.
func machineTriggerRefused[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	older := sm.MustNew("flow", sm.Initial(inA), sm.Final(inX), sm.From(inA).On(away).To(inX))
	y.db.Exec(t, bind(t, y.d, older, sm.Table{Name: "item"}).TriggerSQL(nil))
	y.insert(1, inA)
	for _, opts := range [][]sm.Option{nil, {sm.Dedup("d")}, {sm.Lock()}} {
		_, err := y.fire(1, goEvent, opts...)
		wantErr(t, err, sm.ErrTriggerRefused)
		e, ok := errors.AsType[*sm.TriggerError](err)
		if !ok || e.Machine != "flow" || e.ID != int64(1) || e.Event != "go" || e.From != "a" || e.To != "t" || e.New || e.Table != "item" {
			t.Errorf("got %+v", e)
		}
		if errors.Is(err, sm.ErrRetryTx) || errors.Is(err, sm.ErrConflict) || pg.Code(err) != "23514" {
			t.Errorf("got %v", err)
		}
		wantText(t, err, "run the migration that TriggerSQL makes")
	}
	y.wantState(1, inA)
	y.wantHistory(1)

	tx := y.tx(pg.ReadCommitted)
	_, err := y.items.FireTx(t.Context(), tx.Handle(), 1, archive)
	wantErr(t, err, sm.ErrConflict)
	noErr(t, y.Exec(t.Context(), tx.Handle(), `SELECT 1`)) // alive
	_, err = y.items.FireTx(t.Context(), tx.Handle(), 1, goEvent)
	wantErr(t, err, sm.ErrTriggerRefused)
	if err := y.Exec(t.Context(), tx.Handle(), `SELECT 1`); err == nil {
		t.Error("the transaction has survived a refusal of the trigger")
	}
	tx.Rollback(t.Context())

	y.sql(`ALTER TABLE item ADD CONSTRAINT own CHECK (state <> 'x')`)
	_, err = y.fire(1, away)
	if pg.Code(err) != "23514" || errors.Is(err, sm.ErrTriggerRefused) {
		t.Errorf("a constraint of the table's own: got %v", err)
	}
	y.sql(`ALTER TABLE item DROP CONSTRAINT own`)
	y.want(1, away, sm.Applied, inA, inX)
}

// Every verb names a refusal of the trigger as Fire does; of many rows only the one that is refused stays behind.
func machineTriggerRefusesOthers[TX any](t *testing.T, c Client[TX]) {
	y := newTimed(t, c, 2, 8)
	older := sm.MustNew("timed", sm.Initial(inB), sm.Final(inT), sm.From(inB).On(goEvent).To(inT), sm.From(inA).On(goEvent).To(inT), sm.From(inB).On(prepare).To(inA))
	y.sql(`UPDATE item SET state = 't' WHERE id = 3`)
	y.db.Exec(t, bind(t, y.d, older, sm.Table{Name: "item"}).TriggerSQL(nil))
	refused := func(what string, err error, id any, from, to string) {
		t.Helper()
		e, ok := errors.AsType[*sm.TriggerError](err)
		if !ok || !errors.Is(err, sm.ErrTriggerRefused) || e.ID != id || e.From != from || e.To != to || e.New != (from == "") {
			t.Errorf("%s: got %+v, %v", what, e, err)
		}
	}
	_, err := y.items.Create(t.Context(), 100, inA)
	refused("Create", err, int64(100), "", "a")
	_, err = y.items.FireFunc(t.Context(), 1, expire, func(context.Context, TX, itemState) error { return nil })
	refused("FireFunc", err, int64(1), "a", "x")
	rows, err := y.items.Sweep(t.Context(), &sm.SweepConfig{Batch: 4}, nil)
	noErr(t, err)
	wantInt(t, "rows swept", int64(len(rows)), 7)
	for _, r := range rows {
		refused("Sweep", r.Err, r.ID, "a", "x")
	}
	tx := y.tx(pg.ReadCommitted)
	_, err = y.items.FireManyTx(t.Context(), tx.Handle(), []int64{1, 2}, expire)
	refused("FireManyTx", err, nil, "a", "x")
	tx.Rollback(t.Context())

	// Only row 5 is refused, by another trigger's mouth: one that sends it where no edge leads.
	y.sql(`CREATE FUNCTION stray() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.id = 5 THEN NEW.state = ''b''; END IF; RETURN NEW; END'`)
	y.sql(`CREATE TRIGGER stray BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION stray()`)
	rows, err = y.items.FireMany(t.Context(), []int64{1, 2, 3, 4, 5, 6, 7, 8}, goEvent)
	noErr(t, err)
	for i, r := range rows {
		switch {
		case i == 4:
			refused("FireMany", r.Err, int64(5), "a", "b")
		case i == 2 && r.Outcome != sm.Applied && r.Err == nil:
		case r.Err != nil || !r.Applied():
			t.Errorf("got %+v", r)
		}
	}
	wantInt(t, "history", y.int(`SELECT count(*) FROM pgonce.transition`), 6)
}

// A table of before gets a trigger and is used by every verb: none of them needs more than the machine's edges.
func machineTriggerInPlace[TX any](t *testing.T, c Client[TX]) {
	y := newTimed(t, c, 2, 9)
	y.sql(`UPDATE item SET state = 't' WHERE id > 6`)
	y.db.Exec(t, y.items.TriggerSQL(nil))
	n, err := y.items.Adopt(t.Context(), "import")
	noErr(t, err)
	wantInt(t, "adopted", n, 9)
	res, err := y.items.Create(t.Context(), 100, inA)
	if err != nil || !res.Applied() {
		t.Errorf("got %+v, %v", res, err)
	}
	rows, err := y.items.FireMany(t.Context(), []int64{1, 2, 7}, goEvent)
	noErr(t, err)
	y.wantTold(rows, map[int64]string{1: "Applied", 2: "Applied", 7: "AlreadyApplied"})
	_, err = y.items.FireFunc(t.Context(), 3, goEvent, func(context.Context, TX, itemState) error { return nil })
	noErr(t, err)
	rows, err = y.items.Sweep(t.Context(), nil, nil)
	noErr(t, err)
	y.wantTold(rows, map[int64]string{4: "Applied", 5: "Applied", 6: "Applied"})
	noErr(t, y.items.Verify(t.Context()))
	wantInt(t, "breaks", y.breaks(), 0)
	if _, err := y.admin.Exec(t.Context(), `UPDATE item SET state = 'a' WHERE id = 1`); pg.Code(err) != "23514" && !strings.Contains(fmt.Sprint(err), "23514") {
		t.Errorf("the trigger is not in place: %v", err)
	}
}

// Ad-hoc SQL beside events: it moves rows along edges or not at all, and nobody is told another story.
func machineTriggerRaced[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 4)
	y.db.Exec(t, y.items.TriggerSQL(nil))
	for id := range int64(5) {
		y.insert(id, inA)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				_, err := y.fire(id, goEvent)
				if err != nil && !errors.Is(err, sm.ErrConflict) {
					t.Error(err)
				}
			})
			wg.Go(func() { // refused wherever the row is by then
				_, err := y.admin.Exec(t.Context(), `UPDATE item SET state = 'late' WHERE id = $1 AND state <> 'late'`, id)
				if err == nil && y.int(`SELECT count(*) FROM item WHERE id = $1 AND state = 'late'`, id) == 0 {
					t.Error("not moved, and not refused")
				}
			})
		}
		wg.Wait()
		wantInt(t, "moves by the event", y.int(`SELECT count(*) FROM pgonce.transition WHERE entity = $1 AND event = 'go'`, fmt.Sprint(id)), 1)
		wantInt(t, "rows where edges lead", y.int(`SELECT count(*) FROM item WHERE id = $1 AND state IN ('t', 'late')`, id), 1)
	}
}

// Verify, by all client libraries: everything at once, in the same order each time, and nothing once it is put right.
func machineVerified[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	y.sql(`INSERT INTO item VALUES (1, 'q'), (2, NULL)`)
	y.sql(`ALTER TABLE item DROP CONSTRAINT item_pkey CASCADE`)
	want := []sm.FindingKind{sm.FindingTable, sm.FindingTable, sm.FindingTrigger, sm.FindingTrigger, sm.FindingCheck, sm.FindingRows, sm.FindingRows}
	texts := map[string]bool{}
	for range 3 {
		err := y.items.Verify(t.Context())
		wantErr(t, err, sm.ErrSchema)
		e, ok := errors.AsType[*sm.VerifyError](err)
		if !ok || len(e.Findings) != len(want) {
			t.Fatalf("got %v", err)
		}
		for i, f := range e.Findings {
			if f.Kind != want[i] {
				t.Errorf("finding %d is %s, want %s", i, f, want[i])
			}
		}
		texts[err.Error()] = true
	}
	wantInt(t, "different reports", int64(len(texts)), 1)
	y.sql(`UPDATE item SET state = 'a'`)
	y.sql(`ALTER TABLE item ADD PRIMARY KEY (id)`)
	y.db.Exec(t, y.items.TriggerSQL(nil))
	noErr(t, y.items.Verify(t.Context()))
}

// What smtest proves of users' machines, it proves on every client library.
func machineProved[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 4)
	y.db.Exec(t, y.items.TriggerSQL(nil))
	var n int64
	smtest.Run(t, y.d, y.items, func(ctx context.Context, state itemState) (int64, error) {
		n++
		_, err := y.items.Create(ctx, n, state)
		return n, err
	}, &smtest.Config[itemState]{Racers: 4})
}

// A hundred callers of one row at each level of isolation: one moves it, all are told the truth. What they were told is printed as a
// table.
func machineHundred[TX any](t *testing.T, c Client[TX]) {
	const callersOfOne = 100
	y := newYard(t, c, 8)
	var page strings.Builder
	table := tabwriter.NewWriter(&page, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "caller\tApplied\tAlreadyApplied\trepeated transactions\trows of history")
	for i, how := range callers {
		id := int64(i + 1)
		y.insert(id, inA)
		var mu sync.Mutex
		told := map[sm.Outcome]int64{}
		var again int64
		var wg sync.WaitGroup
		for n := range callersOfOne {
			wg.Go(func() {
				var opts []sm.Option
				if how.dedup {
					opts = append(opts, sm.Dedup(fmt.Sprint("delivery ", n)))
				}
				res, repeats, err := y.untilTold(how.level, id, opts)
				if err != nil {
					t.Errorf("%s: %v", how, err)
				}
				mu.Lock()
				defer mu.Unlock()
				told[res.Outcome]++
				again += repeats
			})
		}
		wg.Wait()
		moves := y.int(`SELECT count(*) FROM pgonce.transition WHERE entity = $1 AND outcome = 0`, fmt.Sprint(id))
		_, _ = fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\n", how, told[sm.Applied], told[sm.AlreadyApplied], again, moves)
		if told[sm.Applied] != 1 || told[sm.AlreadyApplied] != callersOfOne-1 || moves != 1 {
			t.Errorf("%s: told %v, %d moves", how, told, moves)
		}
		y.wantState(id, inT)
	}
	_ = table.Flush()
	t.Logf("%d callers of one row\n%s", callersOfOne, &page)
}

// untilTold fires as a caller does who repeats its transaction when it is told to.
func (y *yard[TX]) untilTold(level pg.Isolation, id int64, opts []sm.Option) (res itemResult, repeats int64, err error) {
	if level == "" {
		res, err = y.fire(id, goEvent, opts...)
		return res, 0, err
	}
	for ; ; repeats++ {
		res, err = y.once(level, id, opts)
		if !errors.Is(err, sm.ErrRetryTx) && pg.Code(err) != pg.CodeSerialization {
			return res, repeats, err
		}
	}
}

func (y *yard[TX]) once(level pg.Isolation, id int64, opts []sm.Option) (res itemResult, err error) {
	tx, err := y.d.Begin(y.t.Context(), level, pg.Stmt{SQL: `SELECT 1`})
	if err != nil {
		return res, err
	}
	defer tx.Rollback(y.t.Context())
	res, err = y.items.FireTx(y.t.Context(), tx.Handle(), id, goEvent, opts...)
	if err != nil {
		return res, err
	}
	return res, tx.Commit(y.t.Context())
}
