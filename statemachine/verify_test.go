//go:build unix

package statemachine_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

// found is what Verify has found, one line each, as "kind object: problem; fix".
func found(t *testing.T, err error) []string {
	t.Helper()
	e, ok := errors.AsType[*sm.VerifyError](err)
	if err != nil && (!ok || !errors.Is(err, sm.ErrSchema)) {
		t.Fatalf("got %v", err)
	}
	var out []string
	if ok {
		for _, f := range e.Findings {
			out = append(out, f.String())
			if f.Problem == "" || f.Fix == "" || f.Object == "" || !strings.Contains(err.Error(), f.String()) {
				t.Errorf("incomplete: %+v", f)
			}
		}
	}
	return out
}

// Each thing that can be wrong is found, by itself, with what to do.
func TestVerifyFindsEachDifference(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'`)
	pool := db.Pool(t)
	setUp := lamps + `; INSERT INTO lamp VALUES (1, 'a'), (2, 'b');`
	b := bindLamps(t, pgxdriver.New(pool), sm.Table{})
	older, err := sm.Bind[int64](sm.MustNew("lights", sm.Initial[light]("a", "b"), sm.Final[light]("z", "y"), from("a").On(on).To("b"), from("b").On(off).To("z"), from("a").On(off).To("y")),
		pgxdriver.New(pool), sm.Table{Name: "lamp"})
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := sm.Bind[int64](sm.MustNew("lights", sm.Initial[light]("c"), sm.Final[light]("z"), from("c").On(on).To("a"), from("a").On(on).To("b"), from("b").On(off).To("z")),
		pgxdriver.New(pool), sm.Table{Name: "lamp"})
	if err != nil {
		t.Fatal(err)
	}
	version := db.Int(t, `SELECT current_setting('server_version_num')::int / 10000`)
	function := `(SELECT oid::regprocedure::text FROM pg_proc WHERE proname LIKE 'pgonce_lamp_state%')`
	for what, tc := range map[string]struct {
		sql  string
		want []string // the beginning of each, and after "..." what it says besides
	}{
		"nothing": {``, nil},
		"disabled": {`ALTER TABLE lamp DISABLE TRIGGER zzzz_pgonce_move_state`, []string{
			`trigger public.lamp: trigger "zzzz_pgonce_move_state" is disabled...ALTER TABLE public.lamp ENABLE TRIGGER "zzzz_pgonce_move_state"`,
		}},
		"all disabled": {`ALTER TABLE lamp DISABLE TRIGGER ALL`, []string{
			`trigger public.lamp: trigger "zzzz_pgonce_move_state" is disabled`, `trigger public.lamp: trigger "zzzz_pgonce_new_state" is disabled`,
		}},
		"for replicas": {`ALTER TABLE lamp ENABLE REPLICA TRIGGER zzzz_pgonce_new_state`, []string{`trigger public.lamp: trigger "zzzz_pgonce_new_state" fires for replication only`}},
		"always":       {`ALTER TABLE lamp ENABLE ALWAYS TRIGGER zzzz_pgonce_move_state`, nil},
		"missing": {`DROP TRIGGER zzzz_pgonce_move_state ON lamp; DROP TRIGGER zzzz_pgonce_new_state ON lamp`, []string{
			`trigger public.lamp: trigger "zzzz_pgonce_move_state" is missing...TriggerSQL`, `trigger public.lamp: trigger "zzzz_pgonce_new_state" is missing`,
		}},
		"never fires": {`DO $$ BEGIN EXECUTE 'CREATE OR REPLACE TRIGGER zzzz_pgonce_move_state BEFORE UPDATE ON lamp FOR EACH ROW WHEN (false) EXECUTE FUNCTION ' || ` + function + `; END $$`, []string{
			`trigger public.lamp: trigger "zzzz_pgonce_move_state" fires on something else`,
		}},
		"one column only": {`DO $$ BEGIN EXECUTE 'CREATE OR REPLACE TRIGGER zzzz_pgonce_move_state BEFORE UPDATE OF watts ON lamp FOR EACH ROW WHEN (OLD.state::text COLLATE "C" IS DISTINCT FROM NEW.state::text COLLATE "C") EXECUTE FUNCTION ' || ` + function + `; END $$`, []string{
			`trigger public.lamp: trigger "zzzz_pgonce_move_state" fires on something else`,
		}},
		"too late": {`DO $$ BEGIN EXECUTE 'CREATE OR REPLACE TRIGGER zzzz_pgonce_move_state AFTER UPDATE ON lamp FOR EACH ROW WHEN (OLD.state::text COLLATE "C" IS DISTINCT FROM NEW.state::text COLLATE "C") EXECUTE FUNCTION ' || ` + function + `; END $$`, []string{
			`trigger public.lamp: trigger "zzzz_pgonce_move_state" fires on something else`,
		}},
		"another function": {`CREATE OR REPLACE TRIGGER zzzz_pgonce_move_state BEFORE UPDATE ON lamp FOR EACH ROW WHEN (OLD.state::text COLLATE "C" IS DISTINCT FROM NEW.state::text COLLATE "C") EXECUTE FUNCTION other()`, []string{
			`trigger public.lamp: trigger "zzzz_pgonce_move_state" calls "public"."other" and not "public"."pgonce_lamp_state_`,
		}},
		"a hole in the function": {`DO $$ BEGIN EXECUTE 'CREATE OR REPLACE FUNCTION ' || ` + function + ` || ' RETURNS trigger LANGUAGE plpgsql AS ''BEGIN RETURN NEW; END'''; END $$`, []string{
			`trigger "public"."pgonce_lamp_state_...its text was changed by hand`,
		}},
		"a comment by hand": {`DO $$ BEGIN EXECUTE 'COMMENT ON FUNCTION ' || ` + function + ` || ' IS ''mine'''; END $$`, []string{`trigger "public"."pgonce_lamp_state_...its comment`}},
		"older": {older.TriggerSQL(&sm.TriggerConfig{Contract: true}), []string{
			`trigger "public"."pgonce_lamp_state_...this machine is...it lacks the edges b -> c, c -> z...it still has the edges a -> y, b -> z...it lacks the states c...it still has the states y...it still lets rows begin in b`,
			`check "pgonce_states_state": allows the states a, b, y, z`,
		}},
		"begins elsewhere": {elsewhere.TriggerSQL(&sm.TriggerConfig{Contract: true}), []string{
			`trigger "public"."pgonce_lamp_state_...it does not let rows begin in a; it still lets rows begin in c`,
		}},
		"after ours": {`CREATE TRIGGER zzzz_z BEFORE INSERT OR UPDATE ON lamp FOR EACH ROW EXECUTE FUNCTION other()`, []string{
			`other public.lamp: trigger "zzzz_z" fires after "zzzz_pgonce_move_state"...RENAME`,
		}},
		"not after ours": {`CREATE TRIGGER zzzy BEFORE UPDATE ON lamp FOR EACH ROW EXECUTE FUNCTION other(); CREATE TRIGGER zzzzz AFTER UPDATE ON lamp FOR EACH ROW EXECUTE FUNCTION other();
			CREATE TRIGGER zzzzy BEFORE UPDATE ON lamp FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger(); CREATE TRIGGER zzzz_off BEFORE UPDATE ON lamp FOR EACH ROW EXECUTE FUNCTION other();
			ALTER TABLE lamp DISABLE TRIGGER zzzz_off`, nil},
		"NULL": {`ALTER TABLE lamp ALTER state DROP NOT NULL`, []string{`table "public"."lamp": state column "state" can be NULL`}},
		"no CHECK, unknown states": {`ALTER TABLE lamp DROP CONSTRAINT pgonce_states_state, ALTER state DROP NOT NULL, DISABLE TRIGGER ALL; INSERT INTO lamp VALUES (8, 'q'), (9, NULL), (10, 'A'), (11, 'q'), (12, ''); ALTER TABLE lamp ENABLE TRIGGER ALL`, []string{
			`table "public"."lamp": state column "state" can be NULL`,
			`check "pgonce_states_state": is missing`,
			`rows "public"."lamp": 1 rows are in "", which`, `rows "public"."lamp": 1 rows are in NULL, which`, `rows "public"."lamp": 1 rows are in "A", which`, `rows "public"."lamp": 2 rows are in "q", which`,
		}},
		"not valid": {`DO $$ DECLARE c text := (SELECT obj_description(oid) FROM pg_constraint WHERE conname = 'pgonce_states_state'); BEGIN
			ALTER TABLE lamp DROP CONSTRAINT pgonce_states_state, ADD CONSTRAINT pgonce_states_state CHECK (state = ANY ('{a,b,c,z}'::text[])) NOT VALID;
			EXECUTE 'COMMENT ON CONSTRAINT pgonce_states_state ON lamp IS ' || quote_literal(c); END $$`, []string{`check "pgonce_states_state": is not valid...VALIDATE CONSTRAINT`}},
		"18: not enforced": {`DO $$ DECLARE c text := (SELECT obj_description(oid) FROM pg_constraint WHERE conname = 'pgonce_states_state'); BEGIN
			ALTER TABLE lamp DROP CONSTRAINT pgonce_states_state;
			EXECUTE 'ALTER TABLE lamp ADD CONSTRAINT pgonce_states_state CHECK (state = ANY (''{a,b,c,z}''::text[])) NOT ENFORCED';
			EXECUTE 'COMMENT ON CONSTRAINT pgonce_states_state ON lamp IS ' || quote_literal(c); END $$`, []string{`check "pgonce_states_state": is not enforced`}},
		"id not unique":     {`ALTER TABLE lamp DROP CONSTRAINT lamp_pkey; CREATE UNIQUE INDEX ON lamp (id, watts); CREATE UNIQUE INDEX ON lamp (id) WHERE watts > 0; CREATE INDEX ON lamp (id)`, []string{`table "public"."lamp": id column "id" is not unique`}},
		"id unique another": {`ALTER TABLE lamp DROP CONSTRAINT lamp_pkey; CREATE UNIQUE INDEX ON lamp (id) INCLUDE (watts)`, nil},
		"heirs": {`CREATE TABLE heir () INHERITS (lamp)`, []string{
			`trigger public.heir: trigger "zzzz_pgonce_move_state" is missing on a table that inherits`, `trigger public.heir: trigger "zzzz_pgonce_new_state" is missing`,
		}},
		"generated": {`DROP TABLE lamp; CREATE TABLE lamp (id bigint PRIMARY KEY, state text NOT NULL GENERATED ALWAYS AS ('a') STORED)`, []string{
			`table "public"."lamp": state column "state" is generated`, `trigger`, `trigger`, `check`,
		}},
		"wrong types": {`DROP TABLE lamp; CREATE TABLE lamp (id numeric PRIMARY KEY, state jsonb NOT NULL)`, []string{
			`table "public"."lamp": id column "id" is of type pg_catalog."numeric"`, `table "public"."lamp": state column "state" is of type pg_catalog.jsonb`, `trigger`, `trigger`, `check`,
		}},
		"no such column": {`DROP TABLE lamp; CREATE TABLE lamp (key bigint PRIMARY KEY, st text NOT NULL)`, []string{
			`table "public"."lamp": has no column "id"`, `table "public"."lamp": has no column "state"`,
		}},
		"a view":        {`ALTER TABLE lamp RENAME TO hidden; CREATE VIEW lamp AS SELECT * FROM hidden`, []string{`table "public"."lamp": is not a table`, `table`, `table`, `trigger`, `trigger`, `check`}},
		"no table":      {`DROP TABLE lamp`, []string{`table "public"."lamp": is not there`}},
		"no history":    {`ALTER SCHEMA pgonce RENAME TO gone`, []string{`schema "pgonce": cannot be used by this code...not there; run migrations.Up`}},
		"triggers off":  {`ALTER DATABASE "` + db.Name + `" SET session_replication_role = replica`, []string{`trigger "public"."lamp": session_replication_role is replica`}},
		"state renamed": {`ALTER TABLE lamp RENAME COLUMN watts TO w`, nil},
	} {
		if strings.HasPrefix(what, "18: ") && version < 18 {
			continue
		}
		db.Exec(t, `DROP TABLE IF EXISTS lamp CASCADE; `+setUp)
		db.Exec(t, b.TriggerSQL(nil))
		db.Exec(t, `SELECT 1; `+tc.sql)
		fresh := db.Pool(t) // for settings of the database
		v := bindLamps(t, pgxdriver.New(fresh), sm.Table{})
		got := found(t, v.Verify(t.Context()))
		db.Exec(t, `ALTER DATABASE "`+db.Name+`" RESET session_replication_role; DO $$ BEGIN IF to_regnamespace('gone') IS NOT NULL THEN ALTER SCHEMA gone RENAME TO pgonce; END IF;
			IF to_regclass('hidden') IS NOT NULL THEN DROP TABLE hidden CASCADE; END IF;
			EXECUTE (SELECT coalesce('DROP FUNCTION ' || string_agg(oid::regprocedure::text, ',') || ' CASCADE', 'SELECT') FROM pg_proc WHERE proname LIKE 'pgonce_lamp%'); END $$`)
		fresh.Close()
		same := len(got) == len(tc.want)
		for i := range tc.want {
			parts := strings.Split(tc.want[i], "...")
			same = same && strings.HasPrefix(got[i], parts[0]) && !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(got[i], p) })
		}
		if !same {
			t.Errorf("%s: found\n  %s\nwant\n  %s", what, strings.Join(got, "\n  "), strings.Join(tc.want, "\n  "))
		}
	}
}

// What a role lacks is named so that it can be granted; partitions without their trigger are named one by one.
func TestVerifyFindsRightsAndPartitions(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE lamp (id bigint PRIMARY KEY, state text NOT NULL DEFAULT 'a') PARTITION BY HASH (id); CREATE TABLE lamp_0 PARTITION OF lamp FOR VALUES WITH (MODULUS 3, REMAINDER 0); CREATE TABLE lamp_2 PARTITION OF lamp FOR VALUES WITH (MODULUS 3, REMAINDER 2)`)
	admin := bindLamps(t, pgxdriver.New(db.Pool(t)), sm.Table{})
	db.Exec(t, admin.TriggerSQL(nil))
	if err := admin.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	db.Exec(t, `CREATE TABLE lamp_1 PARTITION OF lamp FOR VALUES WITH (MODULUS 3, REMAINDER 1)`)
	got := found(t, admin.Verify(t.Context()))
	if len(got) != 1 || !strings.HasPrefix(got[0], `trigger public.lamp_1: trigger "zzzz_pgonce_new_state" is missing, so rows can be inserted straight into this partition`) {
		t.Errorf("got %q", got)
	}
	db.Exec(t, admin.TriggerSQL(nil))
	if err := admin.Verify(t.Context()); err != nil {
		t.Error(err)
	}

	role := db.Role(t)
	pool, err := pgxpool.New(t.Context(), db.As(t, role))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	b := bindLamps(t, pgxdriver.New(pool), sm.Table{})
	db.Exec(t, `GRANT USAGE ON SCHEMA pgonce TO "`+role+`"; GRANT SELECT ON pgonce.schema_version TO "`+role+`"; REVOKE ALL ON SCHEMA public FROM PUBLIC`)
	want := "right \"public\".\"lamp\": this role lacks USAGE ON SCHEMA public, SELECT ON public.lamp, UPDATE (state) ON public.lamp, SELECT, INSERT ON pgonce.transition; GRANT it"
	if got := found(t, b.Verify(t.Context())); len(got) != 1 || got[0] != want {
		t.Errorf("got %q, want %q", got, want)
	}
	db.Exec(t, `GRANT USAGE ON SCHEMA public TO "`+role+`"; GRANT SELECT, UPDATE (state) ON lamp TO "`+role+`"; GRANT SELECT, INSERT ON pgonce.transition TO "`+role+`"`)
	if err := b.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	db.Exec(t, `INSERT INTO lamp VALUES (1)`)
	if res, err := b.Fire(t.Context(), 1, on); err != nil || !res.Applied() {
		t.Errorf("got %+v, %v", res, err) // these rights are enough
	}
}

// A version counts, so its column has to be of integers.
func TestVerifyFindsAVersionThatCannotCount(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps+`; ALTER TABLE lamp ADD COLUMN version text`)
	b := bindLamps(t, pgxdriver.New(db.Pool(t)), sm.Table{Version: "version"})
	db.Exec(t, b.TriggerSQL(nil))
	if got := found(t, b.Verify(t.Context())); len(got) != 1 || !strings.HasPrefix(got[0], `table "public"."lamp": version column "version" is of type pg_catalog.text`) {
		t.Errorf("got %q", got)
	}
}

// Verify says so when it cannot look, and is no finding then.
func TestVerifyCannotLook(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps)
	pool := db.Pool(t)
	b := bindLamps(t, pgxdriver.New(pool), sm.Table{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var e *sm.VerifyError
	if err := b.Verify(ctx); !errors.Is(err, context.Canceled) || errors.As(err, &e) {
		t.Errorf("got %v", err)
	}
	tx, err := pool.BeginTx(t.Context(), pgx.TxOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_ = tx.Rollback(t.Context())
	pool.Close()
	if err := b.Verify(t.Context()); !errors.Is(err, sm.ErrUnavailable) || errors.As(err, &e) {
		t.Errorf("got %v", err)
	}
}

// What Since, Scope, Require and the statements' own names want of the table is found too.
func TestVerifyFindsWhatTheBindingWants(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	m := sm.MustNew("lights", sm.Initial[light]("a"), sm.Final[light]("z"), sm.Require[light]("z", "watts"), from("a").On(on).To("z").Setting("watts"))
	role := db.Role(t)
	db.Exec(t, `GRANT USAGE ON SCHEMA pgonce TO "`+role+`"; GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA pgonce TO "`+role+`"`)
	for what, tc := range map[string]struct {
		sql  string
		want []string
	}{
		"nothing":        {``, nil},
		"no since":       {`DROP COLUMN since`, []string{`table "public"."lamp": has no column "since"`}},
		"a date":         {`ALTER since TYPE date`, []string{`table "public"."lamp": since column "since" is of type pg_catalog.date`}},
		"no scope":       {`DROP COLUMN shop`, []string{`table "public"."lamp": Scope "shop = $1" cannot be used`}},
		"not required":   {`DROP COLUMN watts`, []string{`table "public"."lamp": has no column "watts"; the machine names it`, `check "pgonce_requires_state": is missing`}},
		"a reserved one": {`ADD COLUMN pgonce_o int`, []string{`table "public"."lamp": has a column "pgonce_o"; rename it`}},
		"all at once": {`DROP COLUMN watts, DROP COLUMN since, ADD COLUMN pgonce_o int`, []string{
			`table "public"."lamp": has no column "since"`, `table "public"."lamp": has a column "pgonce_o"`, `table "public"."lamp": has no column "watts"`, `check "pgonce_requires_state": is missing`,
		}},
	} {
		db.Exec(t, `DROP TABLE IF EXISTS lamp; `+lamps+`; ALTER TABLE lamp ADD COLUMN since timestamptz, ADD COLUMN shop bigint; INSERT INTO lamp VALUES (1, 'a')`)
		fresh, err := pgxpool.New(t.Context(), db.As(t, role))
		if err != nil {
			t.Fatal(err)
		}
		open, err := sm.Bind[int64](m, pgxdriver.New(fresh), sm.Table{Name: "lamp", Since: "since", Scope: "shop = $1"})
		if err != nil {
			t.Fatal(err)
		}
		b := open.In(7)
		db.Exec(t, open.TriggerSQL(nil)+`GRANT SELECT, UPDATE ON lamp TO "`+role+`"`)
		if tc.sql != "" {
			db.Exec(t, `ALTER TABLE lamp `+tc.sql)
		}
		for who, b := range map[string]*sm.Binding[int64, light, pgx.Tx]{"In": b, "without In": open} {
			got := found(t, b.Verify(t.Context()))
			same := len(got) == len(tc.want)
			for i := range got {
				same = same && strings.HasPrefix(got[i], tc.want[i])
			}
			if !same {
				t.Errorf("%s, %s: found\n  %s\nwant\n  %s", what, who, strings.Join(got, "\n  "), strings.Join(tc.want, "\n  "))
			}
		}
		want := sm.ErrSchema // what Fire is told
		if what == "nothing" {
			want = sm.ErrNotFound
		}
		if _, err := b.Fire(t.Context(), 1, on, sm.Set("watts", 1)); what != "no scope" && !errors.Is(err, want) {
			t.Errorf("%s: Fire is told %v", what, err)
		}
		fresh.Close()
	}
}

// The rights that a bound column of Since and a Scope need.
func TestVerifyFindsRightsOnSinceAndScope(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps+`; ALTER TABLE lamp ADD COLUMN since timestamptz, ADD COLUMN shop bigint`)
	role := db.Role(t)
	pool, err := pgxpool.New(t.Context(), db.As(t, role))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	b := bindLamps(t, pgxdriver.New(pool), sm.Table{Since: "since", Scope: "shop = 7"})
	db.Exec(t, b.TriggerSQL(nil)+`GRANT USAGE ON SCHEMA pgonce TO "`+role+`"; GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA pgonce TO "`+role+`"; GRANT SELECT (id, state), UPDATE (state) ON lamp TO "`+role+`"`)
	got := found(t, b.Verify(t.Context()))
	if len(got) != 2 || !strings.Contains(got[0], "UPDATE (state, since) ON public.lamp") || !strings.HasPrefix(got[1], `right "public"."lamp": this role lacks a right that Scope needs`) {
		t.Errorf("got %q", got)
	}
	db.Exec(t, `GRANT SELECT (shop), UPDATE (since) ON lamp TO "`+role+`"`)
	if err := b.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}
