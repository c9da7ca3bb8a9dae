//go:build unix

package statemachine_test

import (
	"context"
	"database/sql"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/driver/sqldriver"
	"github.com/pgonce/pgonce/driver/sqlxdriver"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/migrations"
	sm "github.com/pgonce/pgonce/statemachine"
)

func wantErr(t *testing.T, err, want error, text string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want %v that says %q", err, want, text)
	}
}

func TestBindRefuses(t *testing.T) {
	t.Parallel()
	_, errMachine := sm.Bind[int64]((*sm.Machine[light])(nil), sqldriver.New(nil), sm.Table{Name: "lamp"})
	_, errNil := sm.Bind[int64, light, pgx.Tx](lights, nil, sm.Table{Name: "lamp"})
	_, errTyped := sm.Bind[int64](lights, (*pgxdriver.Driver)(nil), sm.Table{Name: "lamp"})
	_, errPgx := sm.Bind[int64](lights, pgxdriver.New(nil), sm.Table{Name: "lamp"})
	_, errSQL := sm.Bind[int64](lights, sqldriver.New(nil), sm.Table{Name: "lamp"})
	_, errSqlx := sm.Bind[int64](lights, sqlxdriver.New(nil), sm.Table{Name: "lamp"})
	for _, err := range []error{errMachine, errNil, errTyped, errPgx, errSQL, errSqlx} {
		wantErr(t, err, sm.ErrInvalid, "nil")
	}
	d := sqldriver.New(nowhere(t))
	long := strings.Repeat("x", 64)
	for says, table := range map[string]sm.Table{
		"table's name is empty":                   {},
		"table's schema is empty":                 {Name: ".lamp"},
		"table's name has 64 bytes":               {Name: long},
		`"a.b.c" has more than one dot`:           {Name: "a.b.c"},
		"id column has the control":               {Name: "lamp", ID: "i\x00d"},
		"state column has 64":                     {Name: "lamp", State: long},
		"version column is not valid UTF-8":       {Name: "lamp", Version: "\xff"},
		"table has one column for two purposes":   {Name: "lamp", ID: "state"},
		"id column begins with pgonce_":           {Name: "lamp", ID: "pgonce_e"},
		"state column begins with pgonce_":        {Name: "lamp", State: "pgonce_f"},
		"version column begins with pgonce_":      {Name: "lamp", Version: "pgonce_v"},
		"since column begins with pgonce_":        {Name: "lamp", Since: "pgonce_"},
		"not a usable schema name":                {Name: "lamp", Schema: `x"; DROP SCHEMA y; --`},
		"event \"off\" leads to a state":          {Name: "lamp", NoHistory: true},
		"event \"fail\" leads to a state":         {Name: "lamp", NoHistory: true},
		`statemachine: bind "lights" to "a.b.c":`: {Name: "a.b.c"},
	} {
		_, err := sm.Bind[int64](lights, d, table)
		if says == "not a usable schema name" {
			wantErr(t, err, sm.ErrSchema, says)
			continue
		}
		wantErr(t, err, sm.ErrInvalid, says)
	}
	_, err := sm.Bind[int64](lights, d, sm.Table{Name: "a.b.c", State: long, NoHistory: true})
	for _, says := range []string{"one dot", "state column", `"off"`, `"fail"`} { // all at once
		wantErr(t, err, sm.ErrInvalid, says)
	}
}

// nowhere is a database that cannot be reached.
func nowhere(t *testing.T) *sql.DB {
	t.Helper()
	std, err := sql.Open("pgx", "postgres://127.0.0.1:1/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = std.Close() })
	return std
}

// A call that cannot be made does not reach the database: this one's does not exist.
func TestBadCallsAreRefusedBeforeTheDatabase(t *testing.T) {
	t.Parallel()
	b := bindLamps(t, sqldriver.New(nowhere(t)), sm.Table{})
	long := strings.Repeat("x", 256)
	for says, opt := range map[string]sm.Option{
		"dedup id is empty":            sm.Dedup(""),
		"dedup id has 256 bytes":       sm.Dedup(long),
		"dedup id has the control":     sm.Dedup("a\x00"),
		"dedup id is not valid UTF-8":  sm.Dedup("\xff"),
		"actor has 256 bytes":          sm.Actor(long),
		"meta cannot be encoded":       sm.Meta(math.NaN()),
		"meta has 65538 bytes":         sm.Meta(strings.Repeat("x", 65536)),
		"meta has a NUL character":     sm.Meta("a\x00"),
		"ExpectVersion needs":          sm.ExpectVersion(1),
		"Set names no column":          sm.Set("", 1),
		`Set("id") would write`:        sm.Set("id", 1),
		`Set("state") would write`:     sm.SetExpr("state", "'b'"),
		"SetExpr has an empty express": sm.SetExpr("watts", ""),
	} {
		_, err := b.Fire(t.Context(), 1, on, opt)
		wantErr(t, err, sm.ErrInvalid, says)
	}
	_, err := b.Fire(t.Context(), 1, on, sm.Set("watts", 1), sm.SetExpr("watts", "2"), sm.Dedup(""))
	wantErr(t, err, sm.ErrInvalid, `Set("watts") is there twice`)
	wantErr(t, err, sm.ErrInvalid, "dedup id is empty") // all at once
	_, err = b.Fire(t.Context(), 1, sm.NewEvent[light]("other"))
	wantErr(t, err, sm.ErrInvalid, `event "other" is not one of machine "lights"`)
	_, err = b.FireTx(t.Context(), nil, 1, on)
	wantErr(t, err, sm.ErrInvalid, "transaction is nil")

	keys, err := sm.Bind[string](lights, sqldriver.New(nowhere(t)), sm.Table{Name: "lamp"})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a\x00", "\xff"} {
		_, err = keys.Fire(t.Context(), id, on)
		wantErr(t, err, sm.ErrInvalid, "id is not valid text")
	}

	_, err = b.Fire(t.Context(), 1, on, nil) // a nil option is none; now it is the server that is missing
	wantErr(t, err, sm.ErrUnavailable, "no connection")
	wantErr(t, b.Validate(t.Context()), sm.ErrUnavailable, "no connection")
}

func TestBadExpressionsAndIDsKeepTheTransaction(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE lamp (id uuid PRIMARY KEY, state text NOT NULL DEFAULT 'a', watts bigint)`)
	pool := db.Pool(t)
	b, err := sm.Bind[string](lights, pgxdriver.New(pool), sm.Table{Name: "lamp"})
	if err != nil {
		t.Fatal(err)
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	const id = "00000000-0000-0000-0000-000000000001"
	for says, opt := range map[string]sm.Option{
		`Where("true) OR (true") has an unexpected ')' at byte 4`: sm.Where("true) OR (true"),
		`Match("(SELECT true)") has a sub-query`:                  sm.Match("(SELECT true)"),
		`SetExpr("$1") uses $1 but has 0 arguments`:               sm.SetExpr("watts", "$1"),
		`Where("watts = 1") does not use its argument $1`:         sm.Where("watts = 1", 1),
		`Set("Watts") names no column of "public"."lamp"`:         sm.Set("Watts", 1),
	} {
		_, err := b.FireTx(t.Context(), tx, id, on, opt)
		wantErr(t, err, sm.ErrInvalid, says)
	}
	for _, bad := range []string{"", "1", "00000000-0000-0000-0000-00000000000g", id + "0", strings.Repeat("-", 32)} {
		_, err := b.FireTx(t.Context(), tx, bad, on)
		wantErr(t, err, sm.ErrInvalid, "id is not a UUID")
	}
	_, err = b.FireTx(t.Context(), tx, id, on)
	wantErr(t, err, sm.ErrNotFound, id)
	if _, err := tx.Exec(t.Context(), `SELECT 1`); err != nil {
		t.Error(err)
	}
}

func TestClosedPools(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps)
	pool, std := db.Pool(t), db.SQL(t)
	onPgx, onSQL := bindLamps(t, pgxdriver.New(pool), sm.Table{}), bindLamps(t, sqldriver.New(std), sm.Table{})
	if err := onSQL.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	tx, err := std.BeginTx(t.Context(), nil)
	if err == nil {
		err = tx.Rollback()
	}
	if err != nil {
		t.Fatal(err)
	}
	_, err = onSQL.FireTx(t.Context(), tx, 1, on)
	wantErr(t, err, sm.ErrUnavailable, "already")
	pool.Close()
	if err := std.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = onPgx.Fire(t.Context(), 1, on)
	wantErr(t, err, sm.ErrUnavailable, "closed pool")
	_, err = onSQL.Fire(t.Context(), 1, on)
	wantErr(t, err, sm.ErrUnavailable, "closed")
}

// What is wrong with a schema or a table is found by the first call as well as by Validate, and the error says what
// to do.
func TestWrongSchemaOrTable(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ do, says string }{
		"schema missing": {`DROP SCHEMA pgonce CASCADE`, "migrations.Up"},
		"schema older":   {`DELETE FROM pgonce.schema_version WHERE version > 1`, "migrations.Up"},
		"schema newer":   {`INSERT INTO pgonce.schema_version VALUES (1000, 1000)`, "upgrade the module"},
		"table missing":  {`DROP TABLE lamp`, `"public"."lamp": is not there`},
		"table in upper": {`ALTER TABLE lamp RENAME TO "Lamp"`, "as they are written"},
		"another schema": {`CREATE SCHEMA other; ALTER TABLE lamp SET SCHEMA other`, "search_path"},
		"a view":         {`ALTER TABLE lamp RENAME TO l; CREATE VIEW lamp AS SELECT * FROM l`, "is not a table"},
		"no id":          {`ALTER TABLE lamp RENAME id TO lamp_id`, `no column "id"`},
		"no state":       {`ALTER TABLE lamp RENAME state TO status`, `no column "state"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			db.Exec(t, lamps)
			db.Exec(t, tc.do)
			pool := db.Pool(t)
			b := bindLamps(t, pgxdriver.New(pool), sm.Table{})
			_, err := b.Fire(t.Context(), 1, on)
			wantErr(t, err, sm.ErrSchema, tc.says)
			wantErr(t, b.Validate(t.Context()), sm.ErrSchema, tc.says)
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(t.Context()) }()
			_, err = b.FireTx(t.Context(), tx, 1, on)
			wantErr(t, err, sm.ErrSchema, tc.says)
		})
	}
	t.Run("dropped while running", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		db.Exec(t, lamps)
		b := bindLamps(t, pgxdriver.New(db.Pool(t)), sm.Table{})
		if err := b.Validate(t.Context()); err != nil {
			t.Fatal(err)
		}
		db.Exec(t, `DROP SCHEMA pgonce CASCADE`)
		_, err := b.Fire(t.Context(), 1, on)
		wantErr(t, err, sm.ErrSchema, "migrations.Up")
	})
}

// A history of another schema, a search_path that points elsewhere, and temporary tables that shadow ours.
func TestAnotherSchemaAndSearchPath(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps+`; INSERT INTO lamp VALUES (1)`)
	cfg := db.Config(t)
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `SET search_path = nowhere; CREATE TEMP TABLE lamp (id bigint); CREATE TEMP TABLE transition (id bigint)`)
		return err
	}
	pool := db.Open(t, cfg)
	if _, err := migrations.UpPool(t.Context(), pool, &migrations.Config{Schema: "billing"}); err != nil {
		t.Fatal(err)
	}
	b := bindLamps(t, pgxdriver.New(pool), sm.Table{Schema: "billing"})
	for _, want := range []sm.Outcome{sm.Applied, sm.AlreadyApplied} {
		if res, err := b.Fire(t.Context(), 1, on, sm.Dedup("d")); err != nil || res.Outcome != want {
			t.Errorf("got %+v, %v", res, err)
		}
	}
	if mine, other := db.Int(t, `SELECT count(*) FROM billing.transition`), db.Int(t, `SELECT count(*) FROM pgonce.transition`); mine != 1 || other != 0 {
		t.Errorf("%d and %d rows of history", mine, other)
	}
}

func TestErrorsAreDistinct(t *testing.T) {
	t.Parallel()
	all := []error{
		sm.ErrInvalid, sm.ErrConflict, sm.ErrNotFound, sm.ErrGuard, sm.ErrUnknownState, sm.ErrDedupReused, sm.ErrBusy,
		sm.ErrRetryTx, sm.ErrDiverted, sm.ErrReadOnly, sm.ErrUnknownOutcome, sm.ErrUnavailable, sm.ErrSchema,
	}
	for i, a := range all {
		for j, b := range all {
			if errors.Is(a, b) != (i == j) {
				t.Errorf("%v and %v", a, b)
			}
		}
	}
	for err, want := range map[error]error{
		&sm.InvalidError{}: sm.ErrInvalid, &sm.ConflictError{}: sm.ErrConflict, &sm.GuardError{}: sm.ErrGuard,
		&sm.UnknownStateError{}: sm.ErrUnknownState, &sm.DedupReusedError{}: sm.ErrDedupReused, &pg.SchemaError{}: sm.ErrSchema,
	} {
		if !errors.Is(err, want) {
			t.Errorf("%T does not match %v", err, want)
		}
	}
	for o, want := range map[sm.Outcome]string{sm.Applied: "Applied", sm.AlreadyApplied: "AlreadyApplied", sm.Superseded: "Superseded", 0: "Outcome(0)"} {
		if o.String() != want {
			t.Errorf("got %v, want %s", o, want)
		}
	}
}

// A version that is NULL is none: it is not counted, and it is not the 0 that somebody expects.
func TestVersionThatIsNull(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps+`; ALTER TABLE lamp ADD COLUMN version int; INSERT INTO lamp VALUES (1)`)
	b := bindLamps(t, pgxdriver.New(db.Pool(t)), sm.Table{Version: "version"})
	_, err := b.Fire(t.Context(), 1, on, sm.ExpectVersion(0))
	wantErr(t, err, sm.ErrConflict, "has no version (NULL)")
	res, err := b.Fire(t.Context(), 1, on)
	if err != nil || !res.Applied() || res.Version != 0 {
		t.Errorf("got %+v, %v", res, err)
	}
}

// What a commit has refused was not done.
func TestAdoptCountsWhatIsCommitted(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps+`; INSERT INTO lamp SELECT generate_series(1, 600); CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END';
		CREATE CONSTRAINT TRIGGER no AFTER INSERT ON pgonce.transition DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.entity = '550') EXECUTE FUNCTION no()`)
	b := bindLamps(t, pgxdriver.New(db.Pool(t)), sm.Table{})
	n, err := b.Adopt(t.Context(), "")
	if kept := db.Int(t, `SELECT count(*) FROM pgonce.transition`); err == nil || n != 500 || kept != 500 {
		t.Errorf("said %d, kept %d, %v", n, kept, err)
	}
}

// What Fire would refuse is not shown as something that runs.
func TestSQLRefusesWhatFireDoes(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps)
	d := pgxdriver.New(db.Pool(t))
	_, err := bindLamps(t, d, sm.Table{}).SQL(t.Context(), sm.ExpectVersion(1), sm.Dedup(""), sm.Set("state", "b"))
	wantErr(t, err, sm.ErrInvalid, "ExpectVersion needs Table.Version")
	wantErr(t, err, sm.ErrInvalid, "dedup id is empty")
	wantErr(t, err, sm.ErrInvalid, "a column that the machine keeps")
	_, err = bindLamps(t, d, sm.Table{NoHistory: true}).SQL(t.Context(), sm.Dedup("d"))
	wantErr(t, err, sm.ErrInvalid, "needs the history")
}

// What tries to move the row first is shown where the options allow it, as the server takes it.
func TestSQLShowsTheMove(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps)
	pool := db.Pool(t)
	b := bindLamps(t, pgxdriver.New(pool), sm.Table{})
	shown, err := b.SQL(t.Context(), sm.Set("watts", 1))
	if err != nil || !strings.Contains(shown.Move, `UPDATE "public"."lamp"`) || strings.Contains(shown.Move, "FOR NO KEY UPDATE") {
		t.Errorf("%v, %s", err, shown.Move)
	}
	if _, err := pool.Exec(t.Context(), "PREPARE moving AS "+shown.Move, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Errorf("%v in %s", err, shown.Move)
	}
	for _, opt := range []sm.Option{sm.Where("watts > 1"), sm.Match("watts > 1"), sm.Dedup("1"), sm.Lock()} {
		if shown, err := b.SQL(t.Context(), opt); err != nil || shown.Move != "" {
			t.Errorf("%v, %s", err, shown.Move)
		}
	}
}

// An argument that the client library does not take was never sent: it is no loss of a connection, and no reason to try again.
func TestArgumentsThatDoNotFit(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps+`; ALTER TABLE lamp ADD COLUMN note int; INSERT INTO lamp VALUES (1)`)
	unfit(t, pgxdriver.New(db.Pool(t)))
	unfit(t, sqldriver.New(db.SQL(t)))
}

func unfit[TX any](t *testing.T, d pg.Driver[TX]) {
	t.Helper()
	b, ctx := bindLamps(t, d, sm.Table{}), t.Context()
	for what, opt := range map[string]sm.Option{
		"a number": sm.Set("note", 1<<40), "a channel": sm.Set("note", make(chan int)), "of an expression": sm.Match("note = $1::int", make(chan int)),
	} {
		_, errFire := b.Fire(ctx, 1, on, opt)
		_, errMany := b.FireMany(ctx, []int64{1}, on, opt)
		_, errFunc := b.FireFunc(ctx, 1, on, func(context.Context, TX, light) error { return nil }, opt)
		tx, err := d.Begin(ctx, pg.ReadCommitted)
		if err != nil {
			t.Fatal(err)
		}
		_, errTx := b.FireTx(ctx, tx.Handle(), 1, on, opt)
		for _, err := range []error{errFire, errMany, errFunc, errTx} {
			if !errors.Is(err, sm.ErrInvalid) || errors.Is(err, sm.ErrUnknownOutcome) || sm.IsRetryable(err) {
				t.Errorf("%s: got %v", what, err)
			}
		}
		if err := tx.Run(ctx, pg.Stmt{SQL: `SELECT 1`}); err != nil {
			t.Errorf("%s: the transaction: %v", what, err)
		}
		tx.Rollback(ctx)
	}
}
