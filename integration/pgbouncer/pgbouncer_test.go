//go:build unix

// Package pgbouncer runs the conformance suite through PgBouncer, and shows what a pooler between a
// program and its database does to the library's promises.
package pgbouncer_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	_ "github.com/lib/pq"
	"github.com/pgonce/pgonce/internal/conformance"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// every is what there is of PgBouncer on this machine. TestMain sets it.
var every []program

func TestMain(m *testing.M) {
	if url := os.Getenv("BOUNCER_HOLDER"); url != "" {
		hold(url, os.Getenv("BOUNCER_HOLDER_SQL"))
	}
	var err error
	if every, err = programs(); err != nil {
		fmt.Printf("integration/pgbouncer: %v\n", err)
		os.Exit(1)
	}
	missing := map[string]bool{"below 1.21": true, "1.21 or newer": true}
	for _, p := range every {
		fmt.Printf("integration/pgbouncer: running on PgBouncer %s, %s\n", p.version, p.path)
		delete(missing, map[bool]string{false: "below 1.21", true: "1.21 or newer"}[p.prepares])
	}
	for what := range missing {
		fmt.Printf("integration/pgbouncer: NOT RUN on PgBouncer %s: there is none here; scripts/pgbouncer.sh gets one, %s names some\n", what, binVariable)
	}
	if len(missing) > 0 && os.Getenv("CI") != "" {
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// onEach runs a test on every PgBouncer.
func onEach(t *testing.T, test func(*testing.T, program)) {
	t.Helper()
	for _, p := range every {
		t.Run(p.version, func(t *testing.T) {
			t.Parallel()
			test(t, p)
		})
	}
}

// through puts a PgBouncer between a client's pool and the server. Sessions of the library's own go past it: a
// pooler in transaction mode cannot carry them, as dblock.New says.
func through[TX any](p program, c conformance.Client[TX], settings map[string]string) conformance.Client[TX] {
	open := c.Open
	c.Open = func(t *testing.T, db *pgtest.DB, conns int) conformance.Pool[TX] {
		t.Helper()
		t.Helper()
		pool := open(t, db.Via(start(t, p, db.URL, settings).url), conns)
		pool.Driver = past[TX]{pool.Driver, open(t, db, conns).Driver}
		return pool
	}
	return c
}

type past[TX any] struct {
	pg.Driver[TX]
	direct pg.Driver[TX]
}

func (d past[TX]) Session(ctx context.Context) (pg.Session, error) { return d.direct.Session(ctx) }

func TestPgx(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, p program) {
		t.Helper()
		t.Helper()
		for _, mode := range conformance.PgxModes {
			if mode == pgx.QueryExecModeCacheStatement && !p.prepares {
				continue // TestPreparedStatementsAreExplained
			}
			t.Run(mode.String(), func(t *testing.T) {
				t.Parallel()
				c := conformance.Pgx(mode)
				if mode == pgx.QueryExecModeCacheStatement {
					c.Without = keptStatements
				}
				conformance.Run(t, through(p, c, nil))
			})
		}
	})
}

// keptStatements are the suites that prepare a statement again: after the server has refused to prepare it, when PgBouncer closes the
// connection (FATAL 08P01, "prepared statement name is already in use"), as it also does when a wait for a table that is being altered has been given
// up while the statement was prepared, or after a migration (TestStalePlanUntilReconnect).
var keptStatements = []string{"idem/StalePlan", "idem/StaleWait", "machine/Forbidden", "lock/TxFailed", "lock/RowsAltered"}

func TestDatabaseSQL(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, p program) {
		t.Helper()
		t.Helper()
		overPgx := func(t *testing.T, db *pgtest.DB) *sql.DB {
			t.Helper()
			cfg := db.Config(t).ConnConfig
			if !p.prepares {
				cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
			}
			return db.SQLConfig(t, cfg)
		}
		c := conformance.SQL(overPgx, conformance.Std)
		if p.prepares {
			c.Without = keptStatements
		}
		conformance.Run(t, through(p, c, nil))
	})
}

// TestLibPQ runs the suite in the form that sends a statement with its arguments in one trip. The other one prepares without
// a name first, and executes whatever has no name where it comes by then: not to be used behind a pooler in transaction mode.
func TestLibPQ(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, p program) {
		t.Helper()
		t.Helper()
		c := conformance.SQL(func(t *testing.T, db *pgtest.DB) *sql.DB {
			t.Helper()
			std, err := sql.Open("postgres", db.URL+"&binary_parameters=yes")
			if err != nil {
				t.Fatal(err)
			}
			db.Adopt(t, std)
			return std
		}, conformance.Std)
		c.BeginsReadWrite = true
		conformance.Run(t, through(p, c, nil))
	})
}
