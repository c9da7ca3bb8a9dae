//go:build unix

package idem_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/driver/sqldriver"
	"github.com/pgonce/pgonce/driver/sqlxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/migrations"
)

func emptySQL(context.Context, *sql.Tx) (string, error) { return "receipt", nil }

func wantErr(t *testing.T, err, want error, text string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want %v that says %q", err, want, text)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	_, errNil := idem.New[pgx.Tx](nil, nil)
	_, errTyped := idem.New((*pgxdriver.Driver)(nil), nil)
	_, errPgx := idem.New(pgxdriver.New(nil), nil)
	_, errSQL := idem.New(sqldriver.New(nil), nil)
	_, errSqlx := idem.New(sqlxdriver.New(nil), nil)
	for _, err := range []error{errNil, errTyped, errPgx, errSQL, errSqlx} {
		if err == nil || !strings.Contains(err.Error(), "nil") {
			t.Errorf("got %v, want an error about nil", err)
		}
	}
	std, err := sql.Open("pgx", "postgres:///nowhere")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = std.Close() }()
	_, err = idem.New(sqldriver.New(std), &idem.Config{Schema: `x"; DROP SCHEMA y; --`})
	wantErr(t, err, idem.ErrSchema, "not a usable schema name")
}

func TestNilStore(t *testing.T) {
	t.Parallel()
	var keys *idem.Store[*sql.Tx]
	_, err := idem.Do(t.Context(), keys, refund.Key("m1", "r1"), idem.NoFingerprint(), emptySQL)
	if err == nil || !strings.Contains(err.Error(), "nil store") {
		t.Errorf("got %v", err)
	}
}

// Nothing is sent for a key that cannot be one: this store's server does not exist.
func TestInvalidKeysAreRefusedBeforeTheDatabase(t *testing.T) {
	t.Parallel()
	std, err := sql.Open("pgx", "postgres://127.0.0.1:1/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = std.Close() }()
	keys, err := idem.New(sqldriver.New(std), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []idem.Key{{}, refund.Key("", "r1"), refund.Key("m1", "\x00"), refund.Key("m1", strings.Repeat("x", 256))} {
		_, err := idem.Do(t.Context(), keys, key, idem.NoFingerprint(), emptySQL)
		wantErr(t, err, idem.ErrInvalidKey, "")
		_, _, err = idem.Lookup[string](t.Context(), keys, key, idem.NoFingerprint())
		wantErr(t, err, idem.ErrInvalidKey, "")
	}
	_, err = idem.Do(t.Context(), keys, refund.Key("m1", "r1"), idem.Fingerprint{}, emptySQL)
	wantErr(t, err, idem.ErrInvalidKey, "fingerprint is missing")

	_, err = idem.Do(t.Context(), keys, refund.Key("m1", "r1"), idem.NoFingerprint(), emptySQL)
	wantErr(t, err, idem.ErrUnavailable, "no connection") // the dead server itself
}

func TestClosedPools(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool := db.Pool(t)
	onPgx := newStore(t, pool, nil)
	std := db.SQL(t)
	onSQL, err := idem.New(sqldriver.New(std), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // before and after the schema has been seen
		pool.Close()
		if err := std.Close(); err != nil {
			t.Fatal(err)
		}
		_, err := idem.Do(t.Context(), onPgx, refund.Key("m1", "r1"), idem.NoFingerprint(), insertEffect)
		wantErr(t, err, idem.ErrUnavailable, "closed pool")
		_, err = idem.Do(t.Context(), onSQL, refund.Key("m1", "r1"), idem.NoFingerprint(), emptySQL)
		wantErr(t, err, idem.ErrUnavailable, "closed")
	}
}

// A wrong schema is found by the first call as well as by Validate, and the error says what to run.
func TestWrongSchema(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ do, says string }{
		"missing": {`DROP SCHEMA pgonce CASCADE`, "migrations.Up"},
		"older":   {`UPDATE pgonce.schema_version SET version = version - 1000`, "migrations.Up"},
		"newer":   {`INSERT INTO pgonce.schema_version VALUES (1000, 1000)`, "upgrade the module"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			db.Exec(t, effects)
			db.Exec(t, tc.do)
			keys := newStore(t, db.Pool(t), nil)
			_, err := idem.Do(t.Context(), keys, refund.Key("m1", "r1"), idem.NoFingerprint(), insertEffect)
			wantErr(t, err, idem.ErrSchema, tc.says)
			wantErr(t, keys.Validate(t.Context()), idem.ErrSchema, tc.says)
			if n := db.Int(t, `SELECT count(*) FROM effect`); n != 0 {
				t.Errorf("%d effects", n)
			}
		})
	}
	t.Run("dropped while running", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		db.Exec(t, effects)
		keys := newStore(t, db.Pool(t), nil)
		if err := keys.Validate(t.Context()); err != nil {
			t.Fatal(err)
		}
		db.Exec(t, `DROP SCHEMA pgonce CASCADE`)
		_, err := idem.Do(t.Context(), keys, refund.Key("m1", "r1"), idem.NoFingerprint(), insertEffect)
		wantErr(t, err, idem.ErrSchema, "migrations.Up")
		_, _, err = idem.Lookup[string](t.Context(), keys, refund.Key("m1", "r1"), idem.NoFingerprint())
		wantErr(t, err, idem.ErrSchema, "migrations.Up")
	})
}

func TestAnotherSchema(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, effects)
	pool := db.Pool(t)
	if _, err := migrations.UpPool(t.Context(), pool, &migrations.Config{Schema: "billing"}); err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []*idem.Config{nil, {Schema: "billing"}} {
		res, err := idem.Do(t.Context(), newStore(t, pool, cfg), refund.Key("m1", "r1"), idem.NoFingerprint(), insertEffect)
		if err != nil || res.Replayed {
			t.Errorf("%+v, %v", res, err)
		}
	}
	if a, b := db.Int(t, `SELECT count(*) FROM pgonce.idem_record`), db.Int(t, `SELECT count(*) FROM billing.idem_record`); a != 1 || b != 1 {
		t.Errorf("%d and %d records", a, b)
	}
}

// An application's role with DML rights, a search_path that points elsewhere and temporary
// tables that shadow ours.
func TestRoleWithDMLRightsOnly(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	role := db.Role(t)
	cfg := db.Config(t)
	cfg.ConnConfig.User = role
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `SET search_path = nowhere`)
		if err == nil {
			_, err = conn.Exec(ctx, `CREATE TEMP TABLE idem_record (scope text)`)
		}
		return err
	}
	db.Exec(t, `GRANT TEMPORARY ON DATABASE "`+db.Name+`" TO "`+role+`"`)
	keys := newStore(t, db.Open(t, cfg), nil)
	nothing := func(context.Context, pgx.Tx) (string, error) { return "receipt", nil }

	_, err := idem.Do(t.Context(), keys, refund.Key("m1", "r1"), idem.NoFingerprint(), nothing)
	wantErr(t, err, idem.ErrSchema, "GRANT")
	db.GrantDML(t, role)
	for _, replayed := range []bool{false, true} {
		res, err := idem.Do(t.Context(), keys, refund.Key("m1", "r1"), idem.NoFingerprint(), nothing)
		if err != nil || res.Replayed != replayed {
			t.Errorf("%+v, %v", res, err)
		}
	}
	if _, err := keys.PurgeOnce(t.Context()); err != nil {
		t.Errorf("purge with DML rights only: %v", err)
	}
	if rec, err := keys.Inspect(t.Context(), refund.Key("m1", "r1")); err != nil || rec.State != idem.StateDone {
		t.Errorf("inspect with DML rights only: %v, %v", rec, err)
	}
	for _, err := range keys.List(t.Context(), "m1", nil) {
		if err != nil {
			t.Errorf("list with DML rights only: %v", err)
		}
	}
	db.Exec(t, `REVOKE DELETE ON pgonce.idem_record FROM "`+role+`"`)
	_, err = keys.PurgeOnce(t.Context())
	wantErr(t, err, idem.ErrSchema, "GRANT")
	wantErr(t, keys.Forget(t.Context(), refund.Key("m1", "r1"), "no right to"), idem.ErrSchema, "GRANT")
	db.Exec(t, `GRANT DELETE ON pgonce.idem_record TO "`+role+`"`)
	if err := keys.Forget(t.Context(), refund.Key("m1", "r1"), "test"); err != nil {
		t.Errorf("forget with DML rights only: %v", err)
	}
}

func TestUnknownFingerprintIsLogged(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, effects)
	var log bytes.Buffer
	keys := newStore(t, db.Pool(t), &idem.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	for range 2 {
		if _, err := idem.Do(t.Context(), keys, refund.Key("m1", "secret-id"), idem.Bytes([]byte("a")), insertEffect); err != nil {
			t.Fatal(err)
		}
		db.Exec(t, `UPDATE pgonce.idem_record SET fp_ver = 77`)
	}
	if !strings.Contains(log.String(), "stored=77") || strings.Contains(log.String(), "secret-id") {
		t.Errorf("logged %q", log.String())
	}
}

func TestHideIDs(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, effects)
	pool := db.Pool(t)
	for id, cfg := range map[string]*idem.Config{"seen": nil, "hidden": {HideIDs: true}} {
		if _, err := idem.Do(t.Context(), newStore(t, pool, cfg), refund.Key("m1", id), idem.NoFingerprint(), insertEffect); err != nil {
			t.Fatal(err)
		}
	}
	if n := db.Int(t, `SELECT count(*) FROM pgonce.idem_record WHERE id = 'seen' OR id = ''`); n != 2 {
		t.Errorf("%d records as expected, want 2", n)
	}
}

// A hidden id is the empty text in a record, by whichever verb, and NULL where 0.1.0 has written it. Whoever reads finds none in
// either, and the log of what was forgotten has NULL for both.
func TestHiddenIDsOfBothReleases(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, effects)
	pool := db.Pool(t)
	keys := newStore(t, pool, &idem.Config{HideIDs: true})
	key := func(id string) idem.Key { return refund.Key("m1", id) }
	refused := func(context.Context, pgx.Tx) (string, error) { return "", idem.Final(errors.New("no")) }
	stepless := func(context.Context, *idem.Run[pgx.Tx], string) (string, error) { return "receipt", nil }
	tx, err1 := pool.Begin(t.Context())
	if err1 != nil {
		t.Fatal(err1)
	}
	_, err1 = keys.SeenTx(t.Context(), tx, key("seen"))
	_, err2 := idem.Do(t.Context(), keys, key("new"), idem.NoFingerprint(), insertEffect)
	_, err3 := idem.Do(t.Context(), keys, key("old"), idem.NoFingerprint(), insertEffect)
	_, err4 := idem.Do(t.Context(), keys, key("refused"), idem.NoFingerprint(), refused)
	_, err5 := idem.RunSteps(t.Context(), keys, key("steps"), idem.NoFingerprint(), "request", stepless)
	if err := errors.Join(err1, tx.Commit(t.Context()), err2, err3, err5); err != nil || !errors.Is(err4, idem.ErrRefused) {
		t.Fatal(err, err4)
	}
	if n := db.Int(t, `SELECT count(*) FROM pgonce.idem_record WHERE id = ''`); n != 5 {
		t.Errorf("%d records have the empty id, want all 5", n)
	}
	old, err := keys.Inspect(t.Context(), key("old"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `UPDATE pgonce.idem_record SET id = NULL WHERE digest = $1`, old.Digest); err != nil {
		t.Fatal(err)
	}
	for rec, err := range keys.List(t.Context(), "m1", nil) {
		if err != nil || rec.ID != "" {
			t.Errorf("listed %q, %v", rec.ID, err)
		}
	}
	for _, id := range []string{"old", "new"} {
		if err := keys.Forget(t.Context(), key(id), "a test"); err != nil {
			t.Fatal(err)
		}
	}
	if n := db.Int(t, `SELECT count(*) FROM pgonce.idem_forgotten WHERE id IS NULL`); n != 2 {
		t.Errorf("%d of 2 forgotten keys have no id", n)
	}
}

// The record as a row: what operators and purges rely on.
func TestUnknownStateIsNotReplayed(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, effects)
	keys := newStore(t, db.Pool(t), nil)
	do := func() error {
		_, err := idem.Do(t.Context(), keys, refund.Key("m1", "r1"), idem.NoFingerprint(), insertEffect)
		return err
	}
	if err := do(); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, `ALTER TABLE pgonce.idem_record DROP CONSTRAINT idem_record_state_check; UPDATE pgonce.idem_record SET state = 4`) // a state of a later release
	wantErr(t, do(), idem.ErrSchema, "upgrade the module")
	if n := db.Int(t, `SELECT count(*) FROM effect`); n != 1 {
		t.Errorf("%d effects", n)
	}
}

func TestErrorsAreDistinct(t *testing.T) {
	t.Parallel()
	all := []error{
		idem.ErrInvalidKey, idem.ErrInFlight, idem.ErrMismatch, idem.ErrExpired, idem.ErrUnknownOutcome,
		idem.ErrTxEnded, idem.ErrTxUnusable, idem.ErrHandlerTimeout, idem.ErrRefused, idem.ErrNested, idem.ErrReentrant, idem.ErrRetryTx, idem.ErrReadOnly, idem.ErrSchema, idem.ErrUnavailable,
		idem.ErrNoRecord, idem.ErrLeaseLost, idem.ErrStepsChanged, idem.ErrDead, idem.ErrNotStuck, idem.ErrUnfinished,
	}
	for i, a := range all {
		for j, b := range all {
			if errors.Is(a, b) != (i == j) {
				t.Errorf("%v and %v", a, b)
			}
		}
	}
	if !errors.Is(&idem.MismatchError{}, idem.ErrMismatch) || !errors.Is(&idem.KeyError{}, idem.ErrInvalidKey) || !errors.Is(&idem.RefusedError{}, idem.ErrRefused) || !errors.Is(&pg.SchemaError{}, idem.ErrSchema) {
		t.Error("a struct error does not match its sentinel")
	}
}
