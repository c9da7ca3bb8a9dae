//go:build unix

package conformance

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

type itemRow = sm.RowResult[int64, itemState]

// told is what callers were told, by id: an outcome or the error that it matches.
func told(rows []itemRow) map[int64]string {
	out := map[int64]string{}
	for _, r := range rows {
		out[r.ID] = r.Outcome.String()
		for _, err := range []error{sm.ErrConflict, sm.ErrNotFound, sm.ErrGuard, sm.ErrUnknownState, sm.ErrDedupReused} {
			if errors.Is(r.Err, err) {
				out[r.ID] = err.Error()
			}
		}
	}
	return out
}

func (y *yard[TX]) wantTold(rows []itemRow, want map[int64]string) {
	y.t.Helper()
	got := told(rows)
	if len(rows) != len(want) || fmt.Sprint(got) != fmt.Sprint(want) {
		y.t.Errorf("got %d answers %v, want %v", len(rows), got, want)
	}
}

// Every kind of row at once, ids twice, in and out of the caller's transaction: each is answered once, as by Fire, and
// nothing is done to those that are refused.
func machineManyPartition[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	ids := []int64{3, 1, 2, 7, 1, 4, 5, 6, 3, 99}
	refill := func() {
		y.sql(`TRUNCATE item, child, pgonce.transition`)
		for id, state := range map[int64]itemState{1: inA, 2: inB, 3: inT, 4: inX, 5: inL, 6: "newer", 7: inA} {
			y.insert(id, state)
		}
		y.sql(`UPDATE item SET ok = false WHERE id = 7`)
	}
	want := map[int64]string{
		1: "Applied", 2: "Applied", 3: "AlreadyApplied", 4: "conflict", 5: "Superseded", 6: "unknown state",
		7: "guard does not hold", 99: "row not found",
	}
	opts := []sm.Option{sm.Where("ok"), sm.Set("note", "n"), sm.SetExpr("refunded", "refunded + $1", 1), sm.Actor("ops")}
	for _, more := range [][]sm.Option{nil, {sm.Dedup("night")}} {
		refill()
		rows, err := y.items.FireMany(t.Context(), ids, goEvent, append(more, opts...)...)
		noErr(t, err)
		y.wantTold(rows, want)
		if rows[0].ID != 3 || rows[1].ID != 1 || rows[1].From != inA || rows[1].To != inT || rows[1].Seq == 0 || rows[1].At.IsZero() {
			t.Errorf("got %+v", rows[:2])
		}
		if e, ok := errors.AsType[*sm.ConflictError](rows[4].Err); !ok || e.ID != int64(4) || e.State != "x" {
			t.Errorf("got %+v", rows[4])
		}
		y.wantHistoryCount(more)
		wantInt(t, "rows set", y.int(`SELECT count(*) FROM item WHERE note = 'n' AND refunded = 1 AND state = 't'`), 2)

		refill()
		for _, level := range []pg.Isolation{pg.ReadCommitted, pg.RepeatableRead, pg.Serializable} {
			tx := y.tx(level)
			rows, err = y.items.FireManyTx(t.Context(), tx.Handle(), ids, goEvent, append(more, opts...)...)
			noErr(t, err)
			y.wantTold(rows, want)
			noErr(t, tx.Run(t.Context(), pg.Stmt{SQL: `SELECT 1`}))
			tx.Rollback(t.Context())
		}
		y.wantState(1, inA)
	}
	rows, err := y.items.FireMany(t.Context(), nil, goEvent)
	if err != nil || len(rows) != 0 {
		t.Errorf("no ids: %v, %v", rows, err)
	}
	_, err = y.items.FireMany(t.Context(), ids, goEvent, sm.ExpectVersion(1))
	wantErr(t, err, sm.ErrInvalid)
}

func (y *yard[TX]) wantHistoryCount(dedup []sm.Option) {
	y.t.Helper()
	want := int64(2)
	if len(dedup) > 0 {
		want = 4 // and what found nothing to do
	}
	wantInt(y.t, "rows of history", y.int(`SELECT count(*) FROM pgonce.transition WHERE actor = 'ops'`), want)
}

// An event that shares its target asks the history, after the wait, for many rows as for one.
func machineManySharedTarget[TX any](t *testing.T, c Client[TX]) {
	y := newYardOf(t, c, 3, closing, sm.Table{Name: "item"})
	for id := range int64(4) {
		y.insert(id, inA)
	}
	y.want(0, goEvent, sm.Applied, inA, inT)
	y.want(1, away, sm.Applied, inA, inT)
	other := y.tx(pg.ReadCommitted)
	_, err := y.items.FireTx(t.Context(), other.Handle(), 2, goEvent)
	noErr(t, err)
	done := make(chan []itemRow, 1)
	go func() {
		rows, err := y.items.FireMany(t.Context(), []int64{0, 1, 2, 3}, goEvent)
		if err != nil {
			t.Error(err)
		}
		done <- rows
	}()
	pgtest.Eventually(t, "it waits", y.waiting)
	noErr(t, other.Commit(t.Context()))
	y.wantTold(<-done, map[int64]string{0: "AlreadyApplied", 1: "conflict", 2: "AlreadyApplied", 3: "Applied"})
	y.chains()
}

// Bulk against bulk, in every order, against single events and in transactions of several: no deadlock, one move
// a row, each answer once.
func machineManyStorm[TX any](t *testing.T, c Client[TX]) {
	const rows, rounds, each = 60, 30, 4
	y := newYard(t, c, 8)
	for round := range int64(rounds) {
		ids := make([]int64, rows)
		for i := range ids {
			ids[i] = round*rows + int64(i)
		}
		y.sql(`INSERT INTO item (id) SELECT unnest($1::bigint[])`, ids)
		var applied atomic.Int64
		var wg sync.WaitGroup
		for n := range each {
			wg.Go(func() {
				mine := slices.Clone(ids)
				rand.Shuffle(len(mine), func(i, j int) { mine[i], mine[j] = mine[j], mine[i] })
				var answers []itemRow
				var err error
				if n == 0 {
					tx := begin(t, y.d, pg.ReadCommitted)
					answers, err = y.items.FireManyTx(t.Context(), tx.Handle(), mine, goEvent)
					if err == nil {
						err = tx.Commit(t.Context())
					}
				} else {
					answers, err = y.items.FireMany(t.Context(), mine, goEvent)
				}
				if err != nil || len(answers) != rows {
					t.Errorf("%d answers, %v", len(answers), err)
				}
				for _, a := range answers {
					if a.Err != nil {
						t.Error(a.Err)
					} else if a.Applied() {
						applied.Add(1)
					}
				}
			})
			wg.Go(func() {
				res, err := y.fire(ids[rand.IntN(rows)], goEvent)
				if err != nil {
					t.Error(err)
				} else if res.Applied() {
					applied.Add(1)
				}
			})
		}
		wg.Wait()
		wantInt(t, "applied", applied.Load(), rows)
	}
	wantInt(t, "rows of history", y.int(`SELECT count(*) FROM pgonce.transition`), rows*rounds)
}

// Rows are locked in the order of their ids, over all statements of a call: while the first is waited for, no other is held.
func machineManyLocksInOrder[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	y.sql(`INSERT INTO item (id) SELECT generate_series(1, 1500)`)
	ids := make([]int64, 1500)
	for i := range ids {
		ids[i] = int64(len(ids) - i)
	}
	noErr(t, y.items.Validate(t.Context()))
	holder := y.hold(`SELECT FROM item WHERE id = 1 FOR UPDATE`)
	tx := y.tx(pg.ReadCommitted)
	done := make(chan error)
	go func() {
		rows, err := y.items.FireManyTx(t.Context(), tx.Handle(), ids, goEvent)
		if err == nil && len(rows) != len(ids) {
			err = fmt.Errorf("%d answers", len(rows))
		}
		done <- err
	}()
	pgtest.Eventually(t, "it waits", y.waiting)
	wantInt(t, "rows that are free", y.int(`SELECT count(*) FROM (SELECT FROM item FOR UPDATE SKIP LOCKED) free`), 1499)
	noErr(t, holder.Rollback(t.Context()))
	noErr(t, <-done)
	wantInt(t, "rows that are free", y.int(`SELECT count(*) FROM (SELECT FROM item FOR UPDATE SKIP LOCKED) free`), 0)
	noErr(t, tx.Commit(t.Context()))
	wantInt(t, "history", y.int(`SELECT count(*) FROM pgonce.transition`), 1500)
}

// Rows are locked in the order of their ids also where the server reads them in another one, with a history and without.
func machineManyLocksAnyPlan[TX any](t *testing.T, c Client[TX]) {
	for _, none := range []bool{false, true} {
		y := newYard(t, c, 2)
		y.sql(`INSERT INTO item (id) SELECT 1001 - g FROM generate_series(1, 1000) g`)
		y.sql(`ANALYZE item`)
		items := y.items
		if none {
			items = bind(t, y.d, sm.MustNew("plain", sm.Initial(inA), sm.Final(inT), sm.From(inA).On(goEvent).To(inT)), sm.Table{Name: "item", NoHistory: true})
		}
		ids := make([]int64, 1000)
		for i := range ids {
			ids[i] = int64(i + 1)
		}
		holder := y.hold(`SELECT FROM item WHERE id = 1 FOR UPDATE`)
		tx := y.tx(pg.ReadCommitted)
		for _, plan := range []string{"enable_nestloop", "enable_mergejoin", "enable_indexscan", "enable_bitmapscan"} {
			noErr(t, tx.Run(t.Context(), pg.Stmt{SQL: `SET LOCAL ` + plan + ` = off`}))
		}
		done := make(chan error)
		go func() {
			_, err := items.FireManyTx(t.Context(), tx.Handle(), ids, goEvent)
			done <- err
		}()
		pgtest.Eventually(t, "it waits", y.waiting)
		wantInt(t, "rows that are free", y.int(`SELECT count(*) FROM (SELECT FROM item FOR UPDATE SKIP LOCKED) free`), 999)
		noErr(t, holder.Rollback(t.Context()))
		noErr(t, <-done)
		noErr(t, tx.Commit(t.Context()))
	}
}

// More rows than one statement takes, some of which the server refuses: each refusal is about its row, and the
// others are moved.
func machineManyRefusedByServer[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	y.sql(`INSERT INTO item (id) SELECT generate_series(1, 2500)`)
	y.sql(`ALTER TABLE item ADD CONSTRAINT odd CHECK (state <> 't' OR id NOT IN (7, 8, 1500))`)
	ids := make([]int64, 2500)
	for i := range ids {
		ids[i] = int64(2500 - i)
	}
	rows, err := y.items.FireMany(t.Context(), ids, goEvent)
	noErr(t, err)
	var applied int64
	for _, r := range rows {
		if bad := r.ID == 7 || r.ID == 8 || r.ID == 1500; bad != (pg.Code(r.Err) == "23514") || bad == r.Applied() {
			t.Errorf("got %+v", r)
		}
		if r.Applied() {
			applied++
		}
	}
	wantInt(t, "applied", applied, 2497)
	wantInt(t, "rows of history", y.int(`SELECT count(*) FROM pgonce.transition`), 2497)

	y.sql(`CREATE FUNCTION divert() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.id = 5 THEN RETURN NULL; END IF; RETURN NEW; END $$`)
	y.sql(`CREATE TRIGGER divert BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION divert()`)
	rows, err = y.items.FireMany(t.Context(), []int64{4, 5, 6}, archive)
	noErr(t, err)
	for _, r := range rows {
		if errors.Is(r.Err, sm.ErrDiverted) != (r.ID == 5) {
			t.Errorf("got %+v", r)
		}
	}
	y.wantState(5, inT)
	y.wantState(6, inL)

	tx := y.tx(pg.ReadCommitted)
	_, err = y.items.FireManyTx(t.Context(), tx.Handle(), []int64{4, 8, 6}, goEvent)
	if pg.Code(err) != "23514" {
		t.Errorf("got %v", err)
	}
	tx.Rollback(t.Context())
}

// A row that somebody holds ends it. What was committed before is told, and the rest can be fired again.
func machineManyBusy[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	y.sql(`INSERT INTO item (id) SELECT generate_series(1, 1500)`)
	holder := y.hold(`SELECT FROM item WHERE id = 1200 FOR UPDATE`)
	ids := make([]int64, 1500)
	for i := range ids {
		ids[i] = int64(i + 1)
	}
	rows, err := y.items.FireMany(t.Context(), ids, goEvent, sm.LockTimeout(20_000_000))
	wantErr(t, err, sm.ErrBusy)
	wantInt(t, "answers", int64(len(rows)), 1000)
	wantInt(t, "moves", y.int(`SELECT count(*) FROM item WHERE state = 't'`), 1000)
	noErr(t, holder.Rollback(t.Context()))
	rows, err = y.items.FireMany(t.Context(), ids, goEvent)
	noErr(t, err)
	wantInt(t, "answers", int64(len(rows)), 1500)
	wantInt(t, "moves", y.int(`SELECT count(*) FROM pgonce.transition`), 1500)
}

// Ids of every kind, texts with every sign, and one row in two notations.
func machineManyIDs[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	d := c.Open(t, db, 2)
	const text = `abcd0000-0000-0000-0000-0000000000ef`
	tryMany(t, db, d, "int", int64(42), -7)
	tryMany(t, db, d, "uuid", orderUID{0xab, 15: 1}, orderUID{1})
	tryMany(t, db, d, "uuid", text, strings.ToUpper(text))
	tryMany(t, db, d, "text", `it's "1"\ü$1{},NULL`, `NULL`)
	tryMany(t, db, d, "varchar(40)", "k-1", "k-2")
	tryMany(t, db, d, "char(6)", "k-1", "k-1 ")
	things, err := sm.Bind[string](flow, d, sm.Table{Name: "thing", ID: "key"})
	noErr(t, err)
	db.Exec(t, `DROP TABLE thing; CREATE TABLE thing (key uuid PRIMARY KEY, state text NOT NULL DEFAULT 'a')`)
	_, err = things.FireMany(t.Context(), []string{text, "none"}, goEvent)
	wantErr(t, err, sm.ErrInvalid)
}

func tryMany[TX any, K sm.ID](t *testing.T, db *pgtest.DB, d pg.Driver[TX], typ string, id, other K) {
	t.Helper()
	db.Exec(t, `DROP TABLE IF EXISTS thing; CREATE TABLE thing (key `+typ+` PRIMARY KEY, state text NOT NULL DEFAULT 'a'); TRUNCATE pgonce.transition`)
	things, err := sm.Bind[K](flow, d, sm.Table{Name: "thing", ID: "key"})
	noErr(t, err)
	pool := db.Pool(t)
	_, err = pool.Exec(t.Context(), `INSERT INTO thing VALUES ($1::text::`+typ+`)`, strings.Trim(fmt.Sprint(idText(id)), "[]"))
	noErr(t, err)
	rows, err := things.FireMany(t.Context(), []K{other, id, other, id}, goEvent)
	noErr(t, err)
	applied, missing := 0, 0
	for _, r := range rows {
		switch {
		case r.Applied():
			applied++
		case errors.Is(r.Err, sm.ErrNotFound):
			missing++
		}
	}
	if applied != 1 || applied+missing != len(rows) {
		t.Errorf("%s: got %+v", typ, rows)
	}
	wantInt(t, typ+": moves", db.Int(t, `SELECT count(*) FROM pgonce.transition`), 1)
}

func idText(id any) string {
	if u, ok := id.(orderUID); ok {
		return fmt.Sprintf("%x", u[:])
	}
	return fmt.Sprint(id)
}
