//go:build unix

package pgbouncer_test

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/driver/sqldriver"
	"github.com/pgonce/pgonce/internal/conformance"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// sizes are of pools of all sizes, and of both ways to choose a server connection.
var sizes = map[string]map[string]string{
	"two connections":            {"default_pool_size": "2"},
	"many connections":           {"default_pool_size": "30"},
	"many connections, in turns": {"default_pool_size": "30", "server_round_robin": "1"},
	"reset after each":           {"default_pool_size": "5", "server_reset_query_always": "1"},
	"one connection":             {"default_pool_size": "1"},
}

// Session locks do not hold behind a pooler in transaction mode, and New finds out, always: with few and with many
// server connections, while nobody else and while many others use them.
func TestNewRefusesTransactionMode(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, p program) {
		t.Helper()
		t.Helper()
		for name, settings := range sizes {
			for _, busy := range []int{0, 1, 8} {
				t.Run(name+", "+strconv.Itoa(busy)+" at work", func(t *testing.T) {
					t.Parallel()
					all := map[string]string{"server_round_robin": "0", "query_wait_timeout": "60"}
					for k, v := range settings {
						all[k] = v
					}
					refuses(t, p, all, busy)
				})
			}
		}
	})
}

func refuses(t *testing.T, p program, settings map[string]string, busy int) {
	t.Helper()
	db := pgtest.New(t)
	b := start(t, p, db.URL, settings)
	cfg := db.Via(b.url).Config(t).ConnConfig
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	pool, std := pgxdriver.New(poolOf(t, db, b, 4)), sqldriver.New(db.SQLConfig(t, cfg))
	drivers := map[string]func() error{
		"pgx":          func() error { _, err := dblock.New(t.Context(), pool, nil); return err },
		"database/sql": func() error { _, err := dblock.New(t.Context(), std, nil); return err },
	}
	stop := work(t, db, b, busy)
	defer stop()
	const times = 10 // of each driver, in 15 places
	for name, create := range drivers {
		for n := range times {
			if err := create(); !errors.Is(err, dblock.ErrSessionNotPinned) {
				t.Errorf("%s, time %d: got %v, want ErrSessionNotPinned", name, n, err)
				return
			}
		}
	}
	if n := db.Int(t, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`); n != 0 {
		t.Errorf("%d locks are left behind on the pooler's connections", n)
	}
}

// work keeps n clients of the pooler busy with short transactions, until it is told to stop.
func work(t *testing.T, db *pgtest.DB, b *pooler, n int) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	pool := poolOf(t, db, b, int32(max(n, 1)))
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := pool.Exec(t.Context(), `SELECT pg_sleep(0.001)`); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

// A pooler in session mode gives each client a server connection of its own until it leaves, and all the locks
// hold. What the library sets on its sessions does not outlive them: server_reset_query is DISCARD ALL.
func TestSessionMode(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, p program) {
		t.Helper()
		t.Helper()
		t.Run("pgx", func(t *testing.T) {
			t.Parallel()
			conformance.Run(t, inSessions(p, conformance.Pgx(pgx.QueryExecModeCacheStatement)))
		})
		t.Run("sql", func(t *testing.T) {
			t.Parallel()
			pool := func(t *testing.T, db *pgtest.DB) *sql.DB {
				t.Helper()
				return db.SQL(t)
			}
			conformance.Run(t, inSessions(p, conformance.SQL(pool, conformance.Std)))
		})
	})
}

func inSessions[TX any](p program, c conformance.Client[TX]) conformance.Client[TX] {
	open := c.Open
	c.Open = func(t *testing.T, db *pgtest.DB, conns int) conformance.Pool[TX] {
		t.Helper()
		b := start(t, p, db.URL, map[string]string{"pool_mode": "session", "default_pool_size": "60"})
		return open(t, db.Via(b.url), conns)
	}
	c.Only = "lock/"
	return c
}

// Who gets a lock holder's server connection next gets nothing of its holder: no lock, no time limit, no name.
func TestSessionModeHandsNothingOn(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, p program) {
		t.Helper()
		t.Helper()
		db := pgtest.New(t)
		b := start(t, p, db.URL, map[string]string{"pool_mode": "session", "server_round_robin": "0"})
		pool := poolOf(t, db, b, 4)
		locks, err := dblock.New(t.Context(), pgxdriver.New(pool), nil)
		if err != nil {
			t.Fatal(err)
		}
		var pid int64
		if _, err := locks.Acquire(t.Context(), dblock.Key{Space: "order", ID: "1"}, nil); err != nil { // and is not released
			t.Fatal(err)
		}
		if err := locks.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		sessions := map[int64]bool{}
		pgtest.Eventually(t, "no lock is left", func() bool {
			return db.Int(t, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == 0
		})
		for range 4 { // of which some are connections that the client had
			conn, err := pgxdriver.New(pool).Session(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
			var idle, name string
			err = conn.Run(t.Context(), pg.Stmt{
				SQL:  `SELECT pg_backend_pid(), current_setting('idle_session_timeout'), current_setting('application_name')`,
				Dest: []any{&pid, &idle, &name},
			})
			if err != nil || idle != "0" {
				t.Errorf("idle_session_timeout is %s (application_name %q), %v", idle, name, err)
			}
			sessions[pid] = true
		}
		if len(sessions) != 4 {
			t.Errorf("%d sessions on 4 connections", len(sessions))
		}
	})
}
