//go:build unix

package statemachine_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

// A program that reads the table and fires in one transaction, and the migration, which locks the table, do not deadlock: the migration waits
// for the whole transaction, or gives up.
func TestMigrationWaitsForWhoeverReads(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps+`; INSERT INTO lamp VALUES (1)`)
	pool := db.Pool(t)
	b := bindLamps(t, pgxdriver.New(pool), sm.Table{})
	for again := range 2 { // new, and over what is there
		db.Exec(t, `UPDATE lamp SET watts = 1`)
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), `SELECT FROM lamp`); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			conn, err := pgx.Connect(t.Context(), db.URL)
			if err == nil {
				_, err = conn.PgConn().Exec(t.Context(), b.TriggerSQL(nil)).ReadAll()
				err = errors.Join(err, conn.Close(t.Context()))
			}
			done <- err
		}()
		pgtest.Eventually(t, "the migration waits, or has given up", func() bool {
			return len(done) > 0 || db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) > 0
		})
		ev := []sm.Event[light]{on, off}[again]
		if res, err := b.FireTx(t.Context(), tx, 1, ev); err != nil || !res.Applied() {
			t.Errorf("got %+v, %v", res, err)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Error(err)
		}
		if e, ok := errors.AsType[*pgconn.PgError](<-done); ok && e.Code != "55P03" {
			t.Errorf("the migration: %v", e)
		}
		db.Exec(t, b.TriggerSQL(nil))
	}
}

// Whoever migrates under a row security policy, as an owner with FORCE does, cannot see which rows are in use, and is told so.
func TestMigrationUnderRowSecurity(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	role := db.Role(t)
	db.Exec(t, lamps+`; INSERT INTO lamp VALUES (1, 'b'); GRANT CREATE, USAGE ON SCHEMA public TO "`+role+`"`)
	b := bindLamps(t, pgxdriver.New(db.Pool(t)), sm.Table{})
	db.Exec(t, b.TriggerSQL(nil)+`DO $$ BEGIN EXECUTE (SELECT 'ALTER FUNCTION ' || oid::regprocedure || ' OWNER TO "`+role+`"' FROM pg_proc WHERE proname LIKE 'pgonce_lamp%'); END $$;
		ALTER TABLE lamp OWNER TO "`+role+`"; ALTER TABLE lamp ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; CREATE POLICY own ON lamp USING (false)`)
	fewer, err := sm.Bind[int64](sm.MustNew("lights", sm.Initial[light]("a"), sm.Final[light]("z"), from("a").On(on).To("z")), pgxdriver.New(db.Pool(t)), sm.Table{Name: "lamp"})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), db.As(t, role))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	_, err = conn.PgConn().Exec(t.Context(), fewer.TriggerSQL(&sm.TriggerConfig{Contract: true})).ReadAll()
	if err == nil || !strings.Contains(err.Error(), "row-level security") {
		t.Errorf("got %v", err)
	}
}
