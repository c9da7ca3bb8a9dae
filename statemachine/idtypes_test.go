//go:build unix

package statemachine_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

// Every verb takes every type of id, over more rows than a transaction of Adopt or Sweep does.
func TestEveryVerbTakesEveryID(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE DOMAIN code AS varchar(40) CHECK (VALUE <> '')`)
	d := pgxdriver.New(db.Pool(t))
	uid := func(n int) [16]byte { return [16]byte{0xab, 14: byte(n >> 8), 15: byte(n)} }
	text := func(n int) string { return fmt.Sprintf("abcd0000-0000-0000-0000-%012d", n) }
	everyVerb(t, db, d, "bigint", `g`, func(n int) int64 { return int64(n) })
	everyVerb(t, db, d, "smallint", `g`, func(n int) int { return n })
	everyVerb(t, db, d, "uuid", `('ab000000-0000-0000-0000-' || lpad(to_hex(g), 12, '0'))::uuid`, uid)
	everyVerb(t, db, d, "uuid", `('abcd0000-0000-0000-0000-' || lpad(g::text, 12, '0'))::uuid`, func(n int) string { return strings.ToUpper(text(n)) })
	everyVerb(t, db, d, "text", `'it''s "' || g`, func(n int) string { return fmt.Sprintf(`it's "%d`, n) })
	everyVerb(t, db, d, "char(8)", `'k-' || g`, func(n int) string { return fmt.Sprintf("k-%d", n) })
	everyVerb(t, db, d, "code", `'k-' || g`, func(n int) string { return fmt.Sprintf("k-%d", n) })
}

// A UUID has one row, in whatever notation and in however many statements it is among the ids; what is none is refused before the server does so.
func TestNotationsOfUUIDs(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE lamp (id uuid PRIMARY KEY, state text NOT NULL DEFAULT 'a')`)
	db.Exec(t, `INSERT INTO lamp SELECT ('abcd0000-0000-0000-0000-' || lpad(g::text, 12, '0'))::uuid FROM generate_series(1, 1500) g`)
	pool := db.Pool(t)
	b, err := sm.Bind[string](lights, pgxdriver.New(pool), sm.Table{Name: "lamp"})
	if err != nil {
		t.Fatal(err)
	}
	id := func(n int) string { return fmt.Sprintf("abcd0000-0000-0000-0000-%012d", n) }
	var ids []string
	for n := range 1500 {
		ids = append(ids, id(n+1), strings.ToUpper(id(n+1)), "{"+id(n+1)+"}")
	}
	rows, err := b.FireMany(t.Context(), ids, on)
	applied := 0
	for _, r := range rows {
		if r.Applied() {
			applied++
		}
	}
	if err != nil || len(rows) != 1500 || applied != 1500 {
		t.Errorf("got %d answers, %d of them Applied, %v", len(rows), applied, err)
	}
	for _, bad := range []string{"{" + id(1), id(1) + "}", strings.Replace(id(1), "abcd", "a-bcd", 1), strings.Replace(id(1), "-", "--", 1), "-" + id(1), id(1) + "-", id(1)[1:]} {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.FireTx(t.Context(), tx, bad, on)
		wantErr(t, err, sm.ErrInvalid, "is not a UUID")
		_, err = b.FireManyTx(t.Context(), tx, []string{id(1), bad}, on)
		wantErr(t, err, sm.ErrInvalid, "is not a UUID")
		res, err := b.FireTx(t.Context(), tx, strings.ReplaceAll(id(1), "-", ""), off)
		if err != nil || !res.Applied() {
			t.Errorf("%q: got %+v, %v", bad, res, err)
		}
		_ = tx.Rollback(t.Context())
	}
}

// An id column that gets another type is met as any other change of the table: by the same program.
func TestIDsBecomeUUIDs(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE lamp (id text PRIMARY KEY, state text NOT NULL DEFAULT 'a')`)
	db.Exec(t, `INSERT INTO lamp SELECT 'abcd0000-0000-0000-0000-' || lpad(g::text, 12, '0') FROM generate_series(1, 9) g`)
	b, err := sm.Bind[string](lights, pgxdriver.New(db.Pool(t)), sm.Table{Name: "lamp"})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		res, err := b.Fire(t.Context(), fmt.Sprintf("abcd0000-0000-0000-0000-%012d", n+1), on)
		if err != nil || !res.Applied() {
			t.Errorf("got %+v, %v", res, err)
		}
		if n == 0 {
			db.Exec(t, `ALTER TABLE lamp ALTER COLUMN id TYPE uuid USING id::uuid`)
		}
	}
}

func everyVerb[K sm.ID](t *testing.T, db *pgtest.DB, d pg.Driver[pgx.Tx], typ, ids string, id func(int) K) {
	t.Helper()
	const rows = 602
	db.Exec(t, `DROP TABLE IF EXISTS thing; TRUNCATE pgonce.transition; CREATE TABLE thing (key `+typ+` PRIMARY KEY, state text NOT NULL DEFAULT 'a',
		since timestamptz NOT NULL DEFAULT now() - interval '1 day', tenant int NOT NULL DEFAULT 7, version int NOT NULL DEFAULT 0, note text);
		INSERT INTO thing (key) SELECT `+ids+` FROM generate_series(1, `+fmt.Sprint(rows)+`) g`)
	m := sm.MustNew("things", sm.Initial[light]("a"), sm.Final[light]("z"), from("a").On(on).To("b"), from("b").On(off).To("a"),
		from("a").After(time.Hour).On(dim).To("z"), from("b").On(fail).To("z"))
	open, err := sm.Bind[K](m, d, sm.Table{Name: "thing", ID: "key", Since: "since", Version: "version", Scope: "tenant = $1"})
	if err != nil {
		t.Fatal(err)
	}
	b, ctx := open.In(7), t.Context()
	check := func(what string, got, want any, err error) {
		t.Helper()
		if err != nil || got != want {
			t.Errorf("%T on %s: %s: got %v, %v, want %v", id(1), typ, what, got, err, want)
		}
	}
	n, err := b.Adopt(ctx, "import")
	check("Adopt", n, int64(rows), err)
	n, err = b.Adopt(ctx, "import")
	check("Adopt again", n, int64(0), err)
	for _, want := range []sm.Outcome{sm.Applied, sm.AlreadyApplied} {
		res, err := b.Create(ctx, id(rows+1), "a", sm.Set("tenant", 7), sm.Match("tenant = $1", 7))
		check("Create", res.Outcome, want, err)
		for _, n := range []int{1, rows + 1} {
			res, err = b.Fire(ctx, id(n), on, sm.Dedup("d"), sm.Where("tenant < $1", 9), sm.Match("tenant = $1", 7), sm.Set("note", "n"), sm.ExpectVersion(0))
			check("Fire", res.Outcome, want, err)
		}
		res, err = b.FireFunc(ctx, id(2), on, func(context.Context, pgx.Tx, light) error { return nil }, sm.Dedup("d"))
		check("FireFunc", res.Outcome, want, err)
		many, err := b.FireMany(ctx, []K{id(3), id(4), id(3)}, on, sm.Dedup("d"), sm.Match("tenant = $1", 7), sm.SetExpr("note", "note || $1::text", "n"))
		check("FireMany", fmt.Sprint(len(many), many[0].Outcome, many[1].Outcome), fmt.Sprint("2 ", want, " ", want), err)
		many, err = b.FireMany(ctx, []K{id(5), id(6)}, on)
		check("FireMany without Dedup", fmt.Sprint(len(many), many[0].Outcome, many[1].Outcome), fmt.Sprint("2 ", want, " ", want), err)
		many, err = b.FireMany(ctx, []K{id(4)}, fail)
		check("FireMany to a shared target", fmt.Sprint(many[0].Outcome), want.String(), err)
		res, err = b.Fire(ctx, id(3), fail)
		check("Fire to a shared target", res.Outcome, want, err)
	}
	swept, err := b.Sweep(ctx, &sm.SweepConfig{Batch: 250, Pause: 1}, func(context.Context, pgx.Tx, sm.RowResult[K, light]) error { return nil })
	check("Sweep", len(swept), rows-6, err)
	state, err := b.State(ctx, id(7))
	check("State", state, light("z"), err)
	lines := 0
	for _, e := range b.History(ctx, id(7)) {
		lines, err = lines+1, e
	}
	check("History", lines, 2, err)
	for br, err := range b.VerifyHistory(ctx) {
		t.Errorf("%s: %v, %v", typ, br, err)
	}
	_, err = open.In(8).State(ctx, id(7))
	if err == nil {
		t.Errorf("%s: another tenant sees it", typ)
	}
}
