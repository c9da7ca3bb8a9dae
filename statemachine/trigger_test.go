//go:build unix

package statemachine_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

// refused says whether it was the trigger that refused, and what.
func refused(err error) (detail string, ok bool) {
	e, is := errors.AsType[*pgconn.PgError](err)
	return func() string {
		if e == nil {
			return ""
		}
		return e.Detail
	}(), is && e.Code == "23514" && strings.HasPrefix(e.ConstraintName, "zzzz_pgonce_")
}

// exec runs statements in a transaction that is rolled back.
func exec(t *testing.T, db *pgtest.DB, sql ...string) error {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	_, err = conn.PgConn().Exec(t.Context(), "BEGIN; "+strings.Join(sql, "; ")+"; SET CONSTRAINTS ALL IMMEDIATE; ROLLBACK").ReadAll()
	return err
}

// Every way of SQL to write a state, legal or not: what the machine allows passes, all else is refused with
// 23514 and what it was.
func TestTriggerRefusesWhatTheMachineDoes(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps+`; INSERT INTO lamp VALUES (1, 'a'), (2, 'b'), (3, 'c'), (26, 'z')`)
	b := bindLamps(t, pgxdriver.New(db.Pool(t)), sm.Table{})
	db.Exec(t, b.TriggerSQL(nil))
	version := db.Int(t, `SELECT current_setting('server_version_num')::int / 10000`)
	const copyIn = `COPY lamp FROM PROGRAM 'printf "9\\t%s\\t1\\n"'`
	for what, tc := range map[string]struct {
		sql   string
		legal bool
		since int64
	}{
		"an edge":                 {sql: `UPDATE lamp SET state = 'b' WHERE id = 1`, legal: true},
		"another edge":            {sql: `UPDATE lamp SET state = 'z' WHERE id = 3`, legal: true},
		"another column":          {sql: `UPDATE lamp SET watts = 1`, legal: true},
		"the same state":          {sql: `UPDATE lamp SET state = state`, legal: true},
		"no edge":                 {sql: `UPDATE lamp SET state = 'z' WHERE id = 1`},
		"backwards":               {sql: `UPDATE lamp SET state = 'a' WHERE id = 2`},
		"out of a final state":    {sql: `UPDATE lamp SET state = 'b' WHERE id = 26`},
		"to NULL":                 {sql: `ALTER TABLE lamp ALTER state DROP NOT NULL, DROP CONSTRAINT pgonce_states_state; UPDATE lamp SET state = NULL WHERE id = 1`},
		"from NULL":               {sql: `ALTER TABLE lamp ALTER state DROP NOT NULL, DROP CONSTRAINT pgonce_states_state, DISABLE TRIGGER USER; UPDATE lamp SET state = NULL WHERE id = 1; ALTER TABLE lamp ENABLE TRIGGER USER; UPDATE lamp SET state = 'b' WHERE id = 1`},
		"to an unknown state":     {sql: `UPDATE lamp SET state = 'B' WHERE id = 1`},
		"many, one of them wrong": {sql: `UPDATE lamp SET state = 'b'`},
		"a new row":               {sql: `INSERT INTO lamp VALUES (9, 'a')`, legal: true},
		"a new row by default":    {sql: `INSERT INTO lamp VALUES (9)`, legal: true},
		"no new row":              {sql: `INSERT INTO lamp SELECT 9, 'b' WHERE false`, legal: true},
		"a new row elsewhere":     {sql: `INSERT INTO lamp VALUES (8, 'a'), (9, 'b')`},
		"a new row unknown":       {sql: `ALTER TABLE lamp DROP CONSTRAINT pgonce_states_state; INSERT INTO lamp VALUES (9, 'q')`},
		"a new row with NULL":     {sql: `ALTER TABLE lamp ALTER state DROP NOT NULL, DROP CONSTRAINT pgonce_states_state; INSERT INTO lamp VALUES (8, 'a'), (9, NULL)`},
		"upsert, new":             {sql: `INSERT INTO lamp VALUES (9, 'b') ON CONFLICT (id) DO UPDATE SET state = EXCLUDED.state`},
		"upsert, an edge":         {sql: `INSERT INTO lamp VALUES (1, 'b') ON CONFLICT (id) DO UPDATE SET state = EXCLUDED.state`, legal: true},
		"upsert, no edge":         {sql: `INSERT INTO lamp VALUES (1, 'z') ON CONFLICT (id) DO UPDATE SET state = EXCLUDED.state`},
		"upsert, nothing":         {sql: `INSERT INTO lamp VALUES (1, 'z') ON CONFLICT (id) DO NOTHING`, legal: true},
		"MERGE, an edge":          {sql: `MERGE INTO lamp USING (VALUES (1)) v(i) ON id = i WHEN MATCHED THEN UPDATE SET state = 'b'`, legal: true, since: 15},
		"MERGE, no edge":          {sql: `MERGE INTO lamp USING (VALUES (1)) v(i) ON id = i WHEN MATCHED THEN UPDATE SET state = 'z'`, since: 15},
		"MERGE, new":              {sql: `MERGE INTO lamp USING (VALUES (9)) v(i) ON id = i WHEN NOT MATCHED THEN INSERT VALUES (i, 'b')`, since: 15},
		"COPY":                    {sql: strings.ReplaceAll(copyIn, "%s", "a"), legal: true},
		"COPY elsewhere":          {sql: strings.ReplaceAll(copyIn, "%s", "b")},
		"import, new":             {sql: `SELECT set_config('pgonce.adopt', 'lights', true); INSERT INTO lamp VALUES (9, 'c'); UPDATE lamp SET state = 'a'`, legal: true},
		"import of another":       {sql: `SELECT set_config('pgonce.adopt', 'other', true); INSERT INTO lamp VALUES (9, 'c')`},
		"import, unknown":         {sql: `ALTER TABLE lamp DROP CONSTRAINT pgonce_states_state; SELECT set_config('pgonce.adopt', 'lights', true); INSERT INTO lamp VALUES (9, 'q')`},
		"import, unknown move":    {sql: `SELECT set_config('pgonce.adopt', 'lights', true); UPDATE lamp SET state = 'q'`},
		"operators of their own": {sql: `CREATE SCHEMA evil; CREATE FUNCTION evil.yes(text, text) RETURNS bool LANGUAGE sql AS 'SELECT true'; CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.yes);
			SET LOCAL search_path = evil, public, pg_catalog; UPDATE lamp SET state = 'z' WHERE id OPERATOR(pg_catalog.=) 1`},
		"another trigger before": {sql: `CREATE FUNCTION jump() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.state := ''z''; RETURN NEW; END';
			CREATE TRIGGER yyyy BEFORE UPDATE ON lamp FOR EACH ROW EXECUTE FUNCTION jump(); UPDATE lamp SET watts = 1 WHERE id = 1`},
	} {
		if version < tc.since {
			continue
		}
		err := exec(t, db, tc.sql)
		detail, ok := refused(err)
		if tc.legal != (err == nil) || !tc.legal && !ok {
			t.Errorf("%s: got %v, legal is %t", what, err, tc.legal)
		}
		if ok && !strings.Contains(detail, `"machine" : "lights"`) {
			t.Errorf("%s: detail %q", what, detail)
		}
	}
	if err := exec(t, db, `SET LOCAL session_replication_role = replica`, `UPDATE lamp SET state = 'q'`); err == nil || !strings.Contains(err.Error(), "pgonce_states_state") {
		t.Errorf("where triggers are off: got %v", err)
	}
}

// The library's own moves pass, in a transaction of its own and in the caller's.
func TestFirePassesTheTrigger(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps+`; INSERT INTO lamp VALUES (1)`)
	b := bindLamps(t, pgxdriver.New(db.Pool(t)), sm.Table{})
	db.Exec(t, b.TriggerSQL(nil))
	for _, ev := range []sm.Event[light]{on, off, dim} {
		if res, err := b.Fire(t.Context(), 1, ev); err != nil || !res.Applied() {
			t.Errorf("%s: got %+v, %v", ev.Name(), res, err)
		}
	}
}

// Names, states and machines with every sign in them, states of all types, two machines on one row.
func TestTriggerOfHostileNames(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	long := strings.Repeat("ü", 31)
	db.Exec(t, `CREATE SCHEMA "we""ird $pgonce$"; CREATE TYPE phase AS ENUM ('a', 'b', 'c', 'z'); CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
		CREATE TABLE "we""ird $pgonce$"."t'$pgonce1$" (id bigint PRIMARY KEY, "st'ate $pgonce$" text, "`+long+`" phase DEFAULT 'a', pgonce varchar(5) DEFAULT 'a', c char(5) DEFAULT 'a', ci text COLLATE ci DEFAULT 'a', n smallint DEFAULT 1)`)
	const first, second light = `$pgonce$ it's "1" \ {} /*edges*/ NOT /*contract*/false`, `$pgonce2$ {2,\ NULL} -- +goose Down`
	odd := sm.MustNew(`o'dd "$pgonce$" %s\`, sm.Initial(first), sm.Final(second), from(first).On(on).To(second))
	d := pgxdriver.New(db.Pool(t))
	table := sm.Table{Name: `we"ird $pgonce$.t'$pgonce1$`}
	db.Exec(t, `INSERT INTO "we""ird $pgonce$"."t'$pgonce1$" VALUES (1, `+lit(string(first))+`)`)
	for _, tc := range []struct {
		column string
		m      *sm.Machine[light]
		to     light
	}{{"st'ate $pgonce$", odd, second}, {long, lights, "b"}, {"pgonce", lights, "b"}, {"c", lights, "b"}, {"ci", lights, "b"}} {
		table.State = tc.column
		b, err := sm.Bind[int64](tc.m, d, table)
		if err != nil {
			t.Fatal(err)
		}
		for _, cfg := range []*sm.TriggerConfig{nil, {Contract: true}, nil} { // it can be run again
			db.Exec(t, b.TriggerSQL(cfg))
		}
		update := `UPDATE "we""ird $pgonce$"."t'$pgonce1$" SET "` + tc.column + `" = `
		if detail, ok := refused(exec(t, db, `ALTER TABLE "we""ird $pgonce$"."t'$pgonce1$" DROP CONSTRAINT IF EXISTS "pgonce_states_`+tc.column+`"`, update+`'zz'`)); !ok && tc.column != long {
			t.Errorf("%s: an unknown state passed: %s", tc.column, detail)
		}
		if tc.column == "ci" { // equal to the collation
			if _, ok := refused(exec(t, db, update+`'A'`)); !ok {
				t.Error("a state in capitals passed")
			}
		}
		if res, err := b.Fire(t.Context(), 1, on); err != nil || !res.Applied() || res.To != tc.to {
			t.Errorf("%s: got %+v, %v", tc.column, res, err)
		}
		if err := b.Verify(t.Context()); err != nil {
			t.Errorf("%s: %v", tc.column, err)
		}
	}
	type number int16
	send := sm.NewEvent[number]("send")
	m := sm.MustNew("numbers", sm.Initial(number(1)), sm.Final(number(-8)), sm.From(number(1)).On(send).To(-8))
	table.State = "n"
	b, err := sm.Bind[int64](m, d, table)
	if err != nil {
		t.Fatal(err)
	}
	db.Exec(t, b.TriggerSQL(nil))
	if _, ok := refused(exec(t, db, `UPDATE "we""ird $pgonce$"."t'$pgonce1$" SET n = 3`)); !ok {
		t.Error("an unknown number passed")
	}
	if res, err := b.Fire(t.Context(), 1, send); err != nil || !res.Applied() {
		t.Errorf("got %+v, %v", res, err)
	}
	if err := b.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

func lit(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// A table in partitions, by the state too: moves between them pass, INSERTs straight into one are held to
// the initial states, and new partitions get their trigger when the migration runs again.
func TestTriggerOnPartitions(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE lamp (id bigint, state text NOT NULL DEFAULT 'a', watts bigint DEFAULT 1, PRIMARY KEY (id, state)) PARTITION BY LIST (state);
		CREATE TABLE lamp_a PARTITION OF lamp FOR VALUES IN ('a', 'b'); CREATE TABLE lamp_c PARTITION OF lamp FOR VALUES IN ('c') PARTITION BY HASH (id);
		CREATE TABLE lamp_c0 PARTITION OF lamp_c FOR VALUES WITH (MODULUS 1, REMAINDER 0); INSERT INTO lamp VALUES (1, 'a'), (2, 'c')`)
	b := bindLamps(t, pgxdriver.New(db.Pool(t)), sm.Table{})
	db.Exec(t, b.TriggerSQL(nil))
	db.Exec(t, `CREATE TABLE lamp_z PARTITION OF lamp FOR VALUES IN ('z')`)
	for sql, legal := range map[string]bool{
		`UPDATE lamp SET state = 'b' WHERE id = 1; UPDATE lamp SET state = 'c' WHERE id = 1; UPDATE lamp SET state = 'z' WHERE id = 1`: true,
		`UPDATE lamp SET state = 'c' WHERE id = 1`:   false,
		`UPDATE lamp_a SET state = 'c' WHERE id = 1`: false,
		`UPDATE lamp_c0 SET state = 'a'`:             false,
		`INSERT INTO lamp VALUES (3, 'a')`:           true,
		`INSERT INTO lamp VALUES (3, 'c')`:           false,
		`INSERT INTO lamp_a VALUES (3, 'a')`:         true,
		`INSERT INTO lamp_a VALUES (3, 'b')`:         false,
		`INSERT INTO lamp_c VALUES (3, 'c')`:         false,
		`INSERT INTO lamp_c0 VALUES (3, 'c')`:        false,
		`UPDATE lamp SET state = 'z' WHERE id = 2`:   true,
		`INSERT INTO lamp_z VALUES (3, 'z')`:         true, // the new one lacks it
		b.TriggerSQL(nil)[len("BEGIN;"):strings.Index(b.TriggerSQL(nil), "COMMIT;")] + `INSERT INTO lamp_z VALUES (3, 'z')`: false,
	} {
		if _, ok := refused(exec(t, db, sql)); ok == legal {
			t.Errorf("%s: refused is %t", sql, ok)
		}
	}
}

// A machine that has changed: what is added comes first, what rows still need is not taken away.
func TestTriggerExpandsThenContracts(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps+`; INSERT INTO lamp VALUES (1, 'a'), (2, 'b')`)
	d := pgxdriver.New(db.Pool(t))
	sqlOf := func(cfg *sm.TriggerConfig, rules ...sm.Rule[light]) string {
		b, err := sm.Bind[int64](sm.MustNew("lights", append(rules, sm.Initial[light]("a"), sm.Final[light]("z"))...), d, sm.Table{Name: "lamp"})
		if err != nil {
			t.Fatal(err)
		}
		return b.TriggerSQL(cfg)
	}
	run := func(sql string) error {
		conn, err := pgx.Connect(t.Context(), db.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
		_, err = conn.PgConn().Exec(t.Context(), sql).ReadAll()
		return err
	}
	want := func(what string, err error, says string) {
		t.Helper()
		if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want %q", what, err, says)
		}
	}
	short := []sm.Rule[light]{from("a").On(on).To("z")}
	long := []sm.Rule[light]{from("a").On(on).To("b"), from("b").On(off).To("z")}
	both := append(slices.Clone(short), from("a").On(dim).To("b"), from("b").On(off).To("z"))
	want("a state that rows are in is missing", run(sqlOf(nil, short...)), "pgonce_states_state") // the second transaction: rows of before
	want("expand", run(sqlOf(nil, both...)), "")
	want("an old and a new program", exec(t, db, `UPDATE lamp SET state = 'z' WHERE id = 1`, `UPDATE lamp SET state = 'z' WHERE id = 2`), "")
	want("contract while rows are there", run(sqlOf(nil, long...)), "rows are where edges begin that this takes away: a -> z")
	want("nothing was changed", exec(t, db, `UPDATE lamp SET state = 'z' WHERE id = 1`), "")
	want("contract", run(sqlOf(&sm.TriggerConfig{Contract: true}, long...)), "")
	want("the edge is gone", exec(t, db, `UPDATE lamp SET state = 'z' WHERE id = 1`), "does not lead from 'a' to 'z'")
	want("a state in use", run(sqlOf(&sm.TriggerConfig{Contract: true}, short...)), "rows are in states that this takes away: b")
	db.Exec(t, `UPDATE lamp SET state = 'z' WHERE id = 2`)
	want("a state out of use", run(sqlOf(&sm.TriggerConfig{Contract: true}, short...)), "")
	db.Exec(t, `DO $$ BEGIN EXECUTE (SELECT format('COMMENT ON FUNCTION %s IS NULL', oid::regprocedure) FROM pg_proc WHERE proname LIKE 'pgonce_lamp%'); END $$`)
	want("without a comment", run(sqlOf(nil, both...)), "a function of this name is there")
}

// The same machine gives the same text, in whatever order its rules are.
func TestTriggerTextIsStable(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	d := pgxdriver.New(db.Pool(t))
	rules := []sm.Rule[light]{sm.Initial[light]("a"), sm.Final[light]("z"), from("a").On(on).To("b"), from("b").On(off).To("c"), from("b").On(fail).To("c"), from("c").On(dim).To("z"), from("z").Ignore(on)}
	text := func() string {
		b, err := sm.Bind[int64](sm.MustNew("lights", rules...), d, sm.Table{Name: "lamp"})
		if err != nil {
			t.Fatal(err)
		}
		return b.TriggerSQL(nil)
	}
	first := text()
	slices.Reverse(rules)
	if second := text(); second != first {
		t.Errorf("got\n%s\nwant\n%s", second, first)
	}
	if strings.Contains(first, "/*") || strings.Contains(first, "orders") {
		t.Errorf("something was not filled in:\n%s", first)
	}
}
