//go:build unix

package conformance

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

// Types of the user's own, as ids are.
type (
	orderID  int64
	smallID  int16
	orderKey string
	orderUID [16]byte
)

func machineIDs[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, `CREATE DOMAIN code AS varchar(20) CHECK (VALUE <> 'never'); CREATE TYPE kind AS ENUM ('one', 'two')`)
	d := c.Open(t, db, 2)
	uid := orderUID{0xab, 0xcd, 15: 0xef}
	const text = `abcd0000-0000-0000-0000-0000000000ef`
	tryID[TX, int64](t, db, d, "bigint", 42, 43, "42")
	tryID[TX, orderID](t, db, d, "int", -42, 1<<40, "-42")
	tryID[TX, int](t, db, d, "numeric", 0, 0, "") // refused
	tryID[TX, smallID](t, db, d, "smallint", 42, 43, "42")
	tryID[TX, int32](t, db, d, "bigint", 42, 43, "42")
	tryID(t, db, d, "uuid", uid, orderUID{}, text)
	tryID(t, db, d, "uuid", orderKey(strings.ToUpper(text)), "{abcd0000000000000000000000000000}", text)
	tryID(t, db, d, "text", `it's "1"\ü$1`, "other", `it's "1"\ü$1`)
	tryID(t, db, d, "varchar(40)", orderKey("k-1"), "", "k-1")
	tryID(t, db, d, "char(6)", "k-1", "k-1 x", "k-1")
	tryID(t, db, d, "code", "k-1", "k-2", "k-1")
	tryID[TX](t, db, d, "bigint", "42", "43", "") // refused
	tryID[TX](t, db, d, "text", int64(42), 43, "")
	tryID[TX](t, db, d, "text", uid, uid, "")
}

// tryID moves a row that is named by a column of a type. Where it has no entity, the pair of types has to be refused.
func tryID[TX any, K sm.ID](t *testing.T, db *pgtest.DB, d pg.Driver[TX], typ string, id, missing K, entity string) {
	t.Helper()
	db.Exec(t, `DROP TABLE IF EXISTS thing; CREATE TABLE thing (key `+typ+` PRIMARY KEY, state text NOT NULL DEFAULT 'a')`)
	db.Exec(t, `TRUNCATE pgonce.transition`)
	things, err := sm.Bind[K](flow, d, sm.Table{Name: "thing", ID: "key"})
	noErr(t, err)
	what := fmt.Sprintf("%T on %s", id, typ)
	if entity == "" {
		if err := things.Validate(t.Context()); !errors.Is(err, sm.ErrSchema) || !strings.Contains(err.Error(), "id column") {
			t.Errorf("%s: got %v, want ErrSchema", what, err)
		}
		return
	}
	db.Exec(t, `INSERT INTO thing VALUES ('`+strings.ReplaceAll(entity, "'", "''")+`')`)
	for _, opts := range [][]sm.Option{nil, {sm.Dedup("d")}} {
		if _, err := things.Fire(t.Context(), missing, goEvent, opts...); !errors.Is(err, sm.ErrNotFound) {
			t.Errorf("%s: a row that is not there: got %v", what, err)
		}
	}
	for i, opts := range [][]sm.Option{{sm.Dedup("d")}, {sm.Dedup("d")}, nil} {
		res, err := things.Fire(t.Context(), id, goEvent, opts...)
		if err != nil || res.Applied() != (i == 0) {
			t.Errorf("%s: got %+v, %v", what, res, err)
		}
	}
	wantInt(t, what+": its history", db.Int(t, `SELECT count(*) FROM pgonce.transition WHERE entity = $1`, entity), 1)
}

// Names that need quotes, in the table, in its schema and in its columns, and columns that are called as
// those of the history are.
func machineNames[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, `CREATE SCHEMA "we""ird $1"; CREATE TABLE "we""ird $1"."pgonce" ("Id /*where*/" bigint PRIMARY KEY, "st'ate ?" text,
		event text, machine text, seq int, at int, outcome int, dedup text, "pgonce" text, version int DEFAULT 0)`)
	db.Exec(t, `INSERT INTO "we""ird $1"."pgonce" ("Id /*where*/", "st'ate ?", outcome) VALUES (1, 'a', 5)`)
	table := sm.Table{Name: `we"ird $1.pgonce`, ID: "Id /*where*/", State: "st'ate ?", Version: "version"}
	b := bind(t, c.Open(t, db, 2), flow, table)
	for i := range 3 {
		res, err := b.Fire(t.Context(), 1, goEvent, sm.Where("outcome = $1", 5), sm.Match(`"Id /*where*/" = $1`, 1), sm.Set("pgonce", "p"),
			sm.Set("event", "e"), sm.Set("dedup", "/*set*/"), sm.SetExpr("outcome", "outcome + $1", 1), sm.SetExpr("seq", "length(\"st'ate ?\")"))
		if err != nil || res.Applied() != (i == 0) {
			t.Errorf("got %+v, %v", res, err)
		}
	}
	wantInt(t, "the row as it should be", db.Int(t, `SELECT count(*) FROM "we""ird $1"."pgonce" WHERE event = 'e' AND dedup = '/*set*/'
		AND pgonce = 'p' AND outcome = 6 AND seq = 1 AND version = 1 AND "st'ate ?" = 't'`), 1)
}

// The types that a state column may have, states with every sign in them, and two machines on one row.
func machineStateTypes[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, `CREATE TYPE phase AS ENUM ('a', 'b', 't', 'x', 'late'); CREATE DOMAIN word AS text CHECK (length(VALUE) < 10);
		CREATE TABLE thing (id bigint PRIMARY KEY, v varchar(10) DEFAULT 'a', e phase DEFAULT 'a', d word DEFAULT 'a', c char(6) DEFAULT 'a',
			n smallint DEFAULT 1, w text DEFAULT 'it''s "1"', j jsonb); INSERT INTO thing VALUES (1)`)
	d := c.Open(t, db, 2)
	for _, column := range []string{"v", "e", "d", "c"} {
		m := sm.MustNew("of "+column, sm.Initial(inA), sm.Final(inT), sm.From(inA).On(goEvent).To(inT))
		tryState(t, d, m, column, goEvent, inA, inT)
	}
	type number int16
	send := sm.NewEvent[number]("send")
	tryState(t, d, sm.MustNew("numbers", sm.Initial(number(1)), sm.Final(number(-8)), sm.From(number(1)).On(send).To(-8)), "n", send, 1, -8)
	type odd string
	const first, second odd = `it's "1"`, `{2,\ NULL}`
	tell := sm.NewEvent[odd]("te'll")
	tryState(t, d, sm.MustNew("o'dd", sm.Initial(first), sm.Final(second), sm.From(first).On(tell).To(second)), "w", tell, first, second)

	for column, says := range map[string]string{"j": "pg_catalog.jsonb", "n": "pg_catalog.int2", "none": `no column "none"`} {
		err := bind(t, d, flow, sm.Table{Name: "thing", State: column}).Validate(t.Context())
		wantErr(t, err, sm.ErrSchema)
		wantText(t, err, says)
	}
}

func tryState[S sm.StateType, TX any](t *testing.T, d pg.Driver[TX], m *sm.Machine[S], column string, ev sm.Event[S], from, to S) {
	t.Helper()
	b, err := sm.Bind[int64](m, d, sm.Table{Name: "thing", State: column})
	noErr(t, err)
	for i := range 3 {
		res, err := b.Fire(t.Context(), 1, ev, sm.Dedup("d"))
		if err != nil || res.Applied() != (i == 0) || res.From != from || res.To != to {
			t.Errorf("%s: got %+v, %v", column, res, err)
		}
	}
	if res, err := b.Fire(t.Context(), 1, ev); err != nil || res.Outcome != sm.AlreadyApplied {
		t.Errorf("%s: got %+v, %v", column, res, err)
	}
}

// A table in partitions, by the very state: a move takes the row to another one, and who waited for it is told
// by the server that it is gone.
func machinePartitioned[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE part (id bigint, state text NOT NULL DEFAULT 'a', PRIMARY KEY (id, state)) PARTITION BY LIST (state);
		CREATE TABLE part_a PARTITION OF part FOR VALUES IN ('a', 'b'); CREATE TABLE part_t PARTITION OF part FOR VALUES IN ('t');
		INSERT INTO part VALUES (1), (2)`)
	d := c.Open(t, db, 4)
	b := bind(t, d, flow, sm.Table{Name: "part"})
	noErr(t, b.Validate(t.Context()))
	for id, opts := range map[int64][]sm.Option{1: nil, 2: {sm.Dedup("d")}} {
		holder := begin(t, d, "", pg.Stmt{SQL: `SELECT FROM part FOR UPDATE`})
		var applied atomic.Int64
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				res, err := b.Fire(t.Context(), id, goEvent, opts...)
				if err != nil {
					t.Error(err)
				}
				if res.Applied() {
					applied.Add(1)
				}
			})
		}
		pgtest.Eventually(t, "all wait", func() bool {
			return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 3
		})
		noErr(t, holder.Commit(t.Context()))
		wg.Wait()
		wantInt(t, "applied", applied.Load(), 1)
	}
	wantInt(t, "rows in t", db.Int(t, `SELECT count(*) FROM part_t`), 2)
}

// What Set and SetExpr write comes with the move, and only then.
func machineSets[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 1)
	y.insert(1, inA)
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	for i := range 2 {
		res, err := y.fire(1, goEvent, sm.Set("note", "it's $1"), sm.Set("at", at.AddDate(i, 0, 0)), sm.Set("meta", `{"k": 1}`),
			sm.SetExpr("refunded", "refunded + $1 + $2 + $1", 3, 9), sm.SetExpr("amount", "length(state)"))
		if err != nil || res.Applied() != (i == 0) {
			t.Errorf("got %+v, %v", res, err)
		}
	}
	wantInt(t, "rows as they should be", y.int(`SELECT count(*) FROM item WHERE note = 'it''s $1' AND at = $1 AND meta->>'k' = '1' AND refunded = 15 AND amount = 1`, at), 1)
	y.insert(2, inA)
	y.want(2, goEvent, sm.Applied, inA, inT, sm.Set("note", nil))
	wantInt(t, "rows with NULL", y.int(`SELECT count(*) FROM item WHERE id = 2 AND note IS NULL`), 1)
	wantInt(t, "actor and meta", y.int(`SELECT count(*) FROM pgonce.transition WHERE actor IS NULL AND meta IS NULL`), 2)
	y.want(1, archive, sm.Applied, inT, inL, sm.Actor("ops"), sm.Meta(map[string]any{"why": "it's \\u0000"}))
	wantInt(t, "actor and meta", y.int(`SELECT count(*) FROM pgonce.transition WHERE actor = 'ops' AND meta->>'why' = 'it''s \u0000'`), 1)
}

// Where is asked for the move only, Match for a repeat too; NULL is false; the error says which it was.
func machineGuards[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	y.insert(1, inA)
	guard := func(expr string, match bool, opts ...sm.Option) {
		t.Helper()
		for _, more := range [][]sm.Option{nil, {sm.Dedup("refused")}, {sm.Lock()}} {
			_, err := y.fire(1, goEvent, append(more, opts...)...)
			if match {
				wantErr(t, err, sm.ErrConflict)
				if e, ok := errors.AsType[*sm.ConflictError](err); !ok || e.Reason != sm.ReasonMatch || e.Expr != expr || e.Event != "go" || e.Machine != "flow" {
					t.Errorf("got %+v, want %s", e, expr)
				}
				continue
			}
			wantErr(t, err, sm.ErrGuard)
			if e, ok := errors.AsType[*sm.GuardError](err); !ok || e.Expr != expr || e.Event != "go" || e.Machine != "flow" {
				t.Errorf("got %+v, want %s", e, expr)
			}
		}
	}
	guard("NOT ok", false, sm.Where("amount = $1", 100), sm.Where("NOT ok"), sm.Where("false"))
	guard("note = 'x'", false, sm.Where("note = 'x'")) // NULL
	guard("amount = $1", true, sm.Where("false"), sm.Match("amount = $1", 99))
	y.wantState(1, inA)
	y.want(1, goEvent, sm.Applied, inA, inT, sm.Where("ok"), sm.Match("amount = $1", 100))
	y.want(1, goEvent, sm.AlreadyApplied, inT, inT, sm.Where("false"), sm.Match("amount = $1", 100))
	guard("amount = $1", true, sm.Match("amount = $1", 99))

	y.sql(`UPDATE item SET state = 'late' WHERE id = 1`)
	guard("amount = $1", true, sm.Match("amount = $1", 99)) // nor is it superseded
	y.want(1, goEvent, sm.Superseded, inL, inL, sm.Match("amount = $1", 100))
	y.sql(`UPDATE item SET state = 'x' WHERE id = 1`)
	_, err := y.fire(1, goEvent, sm.Match("false"), sm.Where("false"))
	wantErr(t, err, sm.ErrConflict) // whatever the event is, it has no business here
	y.wantHistory(1, "go:a>t")
}

// Two refunds of 60 on 100 at once: one fits.
func machineGuardUnderRace[TX any](t *testing.T, c Client[TX]) {
	refundMore := sm.NewEvent[itemState]("refund")
	m := sm.MustNew("refunds", sm.Initial(inA), sm.Final(inT), sm.From(inA).On(refundMore).To(inA), sm.From(inA).On(goEvent).To(inT))
	y := newYardOf(t, c, 4, m, sm.Table{Name: "item"})
	for id := range int64(5) {
		y.insert(id, inA)
		other := y.hold(`SELECT FROM item WHERE id = $1 FOR UPDATE`, id)
		var fits, refused atomic.Int64
		var wg sync.WaitGroup
		for _, delivery := range []string{"1", "2"} {
			wg.Go(func() {
				_, err := y.fire(id, refundMore, sm.Dedup(delivery), sm.Where("refunded + $1 <= amount", 60), sm.SetExpr("refunded", "refunded + $1", 60))
				switch {
				case err == nil:
					fits.Add(1)
				case errors.Is(err, sm.ErrGuard):
					refused.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		pgtest.Eventually(t, "both wait", func() bool {
			return y.int(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 2
		})
		noErr(t, other.Commit(t.Context()))
		wg.Wait()
		wantInt(t, "refunds that fit", fits.Load(), 1)
		wantInt(t, "refunds that were refused", refused.Load(), 1)
		wantInt(t, "refunded", y.int(`SELECT refunded FROM item WHERE id = $1`, id), 60)
	}
}

func machineVersion[TX any](t *testing.T, c Client[TX]) {
	y := newYardOf(t, c, 2, flow, sm.Table{Name: "item", Version: "version"})
	y.insert(1, inA)
	y.sql(`UPDATE item SET version = 7`)
	_, err := y.fire(1, prepare, sm.ExpectVersion(6))
	wantErr(t, err, sm.ErrConflict)
	if e, ok := errors.AsType[*sm.ConflictError](err); !ok || e.Reason != sm.ReasonVersion || e.WantVersion != 6 || e.Version != 7 {
		t.Errorf("got %+v", e)
	}
	wantText(t, err, "row 1 is at version 7, not 6")
	res := y.want(1, prepare, sm.Applied, inA, inB, sm.ExpectVersion(7), sm.Where("ok"))
	wantInt(t, "version of the move", res.Version, 8)
	res = y.want(1, prepare, sm.AlreadyApplied, inB, inB, sm.ExpectVersion(7))
	wantInt(t, "version of a repeat", res.Version, 8)
	res = y.want(1, goEvent, sm.Applied, inB, inT, sm.ExpectVersion(8), sm.Dedup("d"))
	wantInt(t, "version of the next", res.Version, 9)
	y.sql(`UPDATE item SET version = 20`)
	res = y.want(1, goEvent, sm.AlreadyApplied, inB, inT, sm.Dedup("d"))
	wantInt(t, "version of the repeat of an id", res.Version, 9)
	wantInt(t, "versions in the history", y.int(`SELECT count(*) FROM pgonce.transition WHERE version IN (8, 9)`), 2)
	err = bind(t, y.d, flow, sm.Table{Name: "item", Version: "note"}).Validate(t.Context())
	wantErr(t, err, sm.ErrSchema)
	wantText(t, err, `version column "note"`)
}
