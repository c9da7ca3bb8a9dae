//go:build unix

// Package pgtest gives every test a database of its own on a real Postgres, and
// checks after every test that nothing was left behind: no advisory lock, no open
// transaction, no connection, no goroutine.
//
// The server is $PGONCE_TEST_URL, or one started from local binaries for the life of
// the test binary. Databases are cloned from a migrated template. A schema per test would
// not do: advisory locks are per database, so tests would lock each other out.
package pgtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgonce/pgonce/internal/localpg"
)

const urlVariable = "PGONCE_TEST_URL"

// patience is how long to wait for what is bound to happen, on a slow machine. The
// tests of the leak checks, which wait for what never happens, have less of it.
func patience(t testing.TB) time.Duration {
	if p, ok := t.(interface{ Patience() time.Duration }); ok {
		return p.Patience()
	}
	return 60 * time.Second
}

// DB is a database for one test.
type DB struct {
	URL   string
	Name  string
	admin string
}

// target is the server that tests run on.
type target struct {
	url   string
	local *localpg.Server // keeps its pipe reachable: the garbage collector would close it
}

// server is shared by the tests of one binary. A local one stops when the process ends.
var server = sync.OnceValues(func() (target, error) {
	if u := os.Getenv(urlVariable); u != "" {
		return target{url: u}, nil
	}
	s, err := localpg.Start(nil)
	if err != nil {
		return target{}, err
	}
	return target{url: s.URL("postgres"), local: s}, nil
})

var (
	serial  atomic.Int64
	process = rand.N(1 << 16) // pids repeat across containers
)

// New clones the migrated template into a database for this test. Call it first:
// the goroutines that the test starts from here on are those it must end.
func New(t testing.TB) *DB {
	t.Helper()
	return create(t, true)
}

// NewEmpty is [New] without the library's schema.
func NewEmpty(t testing.TB) *DB {
	t.Helper()
	return create(t, false)
}

// name is for a database that no other process on the same server uses.
func name(kind string) string {
	return fmt.Sprintf("%s%d_%04x_%d", kind, os.Getpid(), process, serial.Add(1))
}

func create(t testing.TB, migrated bool) *DB {
	t.Helper()
	srv, err := server()
	if errors.Is(err, localpg.ErrNoBinaries) && os.Getenv("CI") == "" {
		t.Skipf("%v; or set %s to a server where this role may create databases", err, urlVariable)
	}
	must(t, err)
	admin := srv.url
	watchGoroutines(t)
	db := &DB{Name: name("t"), admin: admin}
	db.URL = withDatabase(t, admin, db.Name)
	template := ""
	if migrated {
		template, err = templateFor(t.Context(), admin)
		must(t, err)
	}
	must(t, createDatabase(t.Context(), admin, db.Name, template))
	t.Cleanup(func() { db.drop(t) })
	return db
}

// drop drops the database. It does so without FORCE, so a connection that somebody
// forgot makes the test fail.
func (db *DB) drop(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 4*patience(t))
	defer cancel()
	conn, err := pgx.Connect(ctx, db.admin)
	must(t, err)
	defer func() { _ = conn.Close(ctx) }()

	var left []string
	ok := until(t, func() bool {
		left = nil
		rows, _ := conn.Query(ctx, sqlClients, db.Name)
		left, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err == nil && len(left) == 0
	})
	if !ok {
		t.Errorf("pgtest: connections left behind (%v):\n%s", err, strings.Join(left, "\n"))
	}
	if _, err := conn.Exec(ctx, `DROP DATABASE IF EXISTS "`+db.Name+`" WITH (FORCE)`); err != nil {
		t.Errorf("pgtest: drop: %v", err)
	}
}

// Via is this database by another URL, such as that of a proxy.
func (db *DB) Via(url string) *DB {
	via := *db
	via.URL = url
	return &via
}

// Config is the pool configuration for this database, for a test to change.
func (db *DB) Config(t testing.TB) *pgxpool.Config {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(db.URL)
	must(t, err)
	cfg.MaxConns = 8
	return cfg
}

// Pool opens a pool of eight, which the test need not close.
func (db *DB) Pool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	return db.Open(t, db.Config(t))
}

// Open opens a pool by cfg. At the end of the test it must have no connection in use and no
// lock or transaction open.
func (db *DB) Open(t testing.TB, cfg *pgxpool.Config) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() {
		db.checkIdle(t)
		closed := make(chan struct{})
		go func() {
			pool.Close() // blocks while a connection is in use
			close(closed)
		}()
		select {
		case <-closed:
		case <-time.After(patience(t)):
			t.Errorf("pgtest: %d connections of the pool are still in use", pool.Stat().AcquiredConns())
		}
	})
	return pool
}

// SQL opens a database/sql pool over pgx, which the test need not close.
func (db *DB) SQL(t testing.TB) *sql.DB {
	t.Helper()
	std, err := sql.Open("pgx", db.URL)
	must(t, err)
	std.SetMaxOpenConns(8)
	db.Adopt(t, std)
	return std
}

// SQLConfig is [DB.SQL] for a connection configuration of the test's own.
func (db *DB) SQLConfig(t testing.TB, cfg *pgx.ConnConfig) *sql.DB {
	t.Helper()
	std := stdlib.OpenDB(*cfg)
	std.SetMaxOpenConns(8)
	db.Adopt(t, std)
	return std
}

// Adopt closes std at the end of the test, after the checks of [DB.Open].
func (db *DB) Adopt(t testing.TB, std *sql.DB) {
	t.Helper()
	t.Cleanup(func() {
		db.checkIdle(t)
		if !until(t, func() bool { return std.Stats().InUse == 0 }) {
			t.Errorf("pgtest: %d connections of the pool are still in use", std.Stats().InUse)
		}
		must(t, std.Close())
	})
}

// checkIdle fails the test when a connection still holds a lock or a transaction.
func (db *DB) checkIdle(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 4*patience(t))
	defer cancel()
	conn, err := pgx.Connect(ctx, db.admin)
	must(t, err)
	defer func() { _ = conn.Close(ctx) }()
	var left []string
	ok := until(t, func() bool {
		rows, _ := conn.Query(ctx, sqlBusy, db.Name)
		left, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err == nil && len(left) == 0
	})
	if !ok {
		t.Errorf("pgtest: locks or transactions left behind (%v):\n%s", err, strings.Join(left, "\n"))
	}
}

// Exec runs statements without arguments on a connection of their own.
func (db *DB) Exec(t testing.TB, sql string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context()) // cleanups use it too
	conn := db.connect(ctx, t)
	defer func() { _ = conn.Close(ctx) }()
	_, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	must(t, err)
}

// KillOthers ends every other backend of the database, and returns when they are gone: pg_terminate_backend by itself
// only asks, and a request that comes before the end is cut in the middle.
func (db *DB) KillOthers(t testing.TB) {
	t.Helper()
	db.Exec(t, `SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
		AND backend_type = 'client backend'`)
}

// Int is the one number that a query returns, read on a connection of its own.
func (db *DB) Int(t testing.TB, sql string, args ...any) int64 {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	conn := db.connect(ctx, t)
	defer func() { _ = conn.Close(ctx) }()
	var n int64
	must(t, conn.QueryRow(ctx, sql, args...).Scan(&n))
	return n
}

func (db *DB) connect(ctx context.Context, t testing.TB) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(ctx, db.URL)
	must(t, err)
	return conn
}

// As is the URL of this database for a role that [DB.Role] has made.
func (db *DB) As(t testing.TB, role string) string {
	t.Helper()
	u, err := url.Parse(db.URL)
	must(t, err)
	u.User = url.UserPassword(role, role)
	return u.String()
}

// Eventually waits for ok by asking again and again, and fails the test when it stays false.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !until(t, ok) {
		t.Fatalf("timed out: %s", what)
	}
}

func until(t testing.TB, ok func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(patience(t))
	for !ok() {
		if time.Now().After(deadline) {
			return false
		}
		<-tick.C
	}
	return true
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
}
