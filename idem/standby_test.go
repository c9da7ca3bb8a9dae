//go:build unix

package idem_test

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/driver/sqldriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/localpg"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/migrations"
)

// cancelSpy counts connections that brought a cancel request, when the server has done with them.
type cancelSpy struct {
	net.Conn
	closed  *atomic.Int64
	request atomic.Bool
}

func (c *cancelSpy) Write(p []byte) (int, error) {
	if len(p) >= 8 && binary.BigEndian.Uint32(p[4:8]) == 80877102 {
		c.request.Store(true)
	}
	return c.Conn.Write(p)
}

func (c *cancelSpy) Close() error {
	if c.request.Swap(false) {
		c.closed.Add(1)
	}
	return c.Conn.Close()
}

// unreplicated is a server that acknowledges no commit, since its synchronous standby is not there. goOn lets it do without.
func unreplicated(t *testing.T) (pool *pgxpool.Pool, canceled *atomic.Int64, goOn func()) {
	t.Helper()
	pgtest.New(t) // skips where there is no server to start, and watches for leaks
	server, err := localpg.Start(&localpg.Config{Settings: map[string]string{"synchronous_commit": "on"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	cfg, err := pgxpool.ParseConfig(server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	canceled = new(atomic.Int64)
	dial := cfg.ConnConfig.DialFunc
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return &cancelSpy{Conn: conn, closed: canceled}, err
	}
	if pool, err = pgxpool.NewWithConfig(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if _, err := migrations.UpPool(t.Context(), pool, nil); err != nil {
		t.Fatal(err)
	}
	say := func(statements ...string) {
		for _, sql := range statements {
			if _, err := pool.Exec(t.Context(), sql); err != nil {
				t.Error(err)
			}
		}
	}
	say(`CREATE TABLE effect (name text NOT NULL)`, `CREATE TABLE canary (n int)`,
		`ALTER SYSTEM SET synchronous_standby_names = 'away'`, `SELECT pg_reload_conf()`)
	var waits atomic.Bool
	over := make(chan struct{})
	go func() { // the setting alone is not enough: another process of the server has to have read it too
		defer close(over)
		for !waits.Load() && !t.Failed() {
			say(`INSERT INTO canary VALUES (1)`)
		}
	}()
	pgtest.Eventually(t, "commits wait", func() bool {
		var n int
		err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`).Scan(&n)
		waits.Store(err == nil && n == 1)
		return waits.Load()
	})
	return pool, canceled, func() {
		say(`ALTER SYSTEM RESET synchronous_standby_names`, `SELECT pg_reload_conf()`)
		<-over
	}
}

// A COMMIT that waits for a standby is not acknowledged, however long it waits. Whoever broke the wait off would make a
// commit visible that no standby has: it would be replayed, and a promotion would take it back.
func TestCommitThatWaitsForAStandby(t *testing.T) {
	t.Parallel()
	const effect = `INSERT INTO effect VALUES ('1')`
	key, fp := refund.Key("m1", "1"), idem.NoFingerprint()
	for name, open := range map[string]func(*testing.T, *pgxpool.Pool) func(context.Context) error{
		"pgx": func(t *testing.T, pool *pgxpool.Pool) func(context.Context) error {
			t.Helper()
			keys, err := idem.New(pgxdriver.New(pool), nil)
			if err != nil {
				t.Fatal(err)
			}
			return func(ctx context.Context) error {
				_, err := idem.Do(ctx, keys, key, fp, func(ctx context.Context, tx pgx.Tx) (string, error) {
					_, err := tx.Exec(ctx, effect)
					return "receipt", err
				})
				return err
			}
		},
		"database/sql": func(t *testing.T, pool *pgxpool.Pool) func(context.Context) error {
			t.Helper()
			db := stdlib.OpenDB(*pool.Config().ConnConfig)
			t.Cleanup(func() { _ = db.Close() })
			keys, err := idem.New(sqldriver.New(db), nil)
			if err != nil {
				t.Fatal(err)
			}
			return func(ctx context.Context) error {
				_, err := idem.Do(ctx, keys, key, fp, func(ctx context.Context, tx *sql.Tx) (string, error) {
					_, err := tx.ExecContext(ctx, effect)
					return "receipt", err
				})
				return err
			}
		},
		"a statement by itself": func(t *testing.T, pool *pgxpool.Pool) func(context.Context) error {
			t.Helper()
			return func(ctx context.Context) error {
				return pgxdriver.New(pool).Pool().Run(ctx, pg.Stmt{SQL: effect})
			}
		},
		"a statement by itself, on database/sql": func(t *testing.T, pool *pgxpool.Pool) func(context.Context) error {
			t.Helper()
			db := stdlib.OpenDB(*pool.Config().ConnConfig)
			t.Cleanup(func() { _ = db.Close() })
			return func(ctx context.Context) error {
				return sqldriver.New(db).Pool().Run(ctx, pg.Stmt{SQL: effect})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, canceled, goOn := unreplicated(t)
			do := open(t, pool)
			effects := func() (n int) {
				if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM effect`).Scan(&n); err != nil {
					t.Error(err)
				}
				return n
			}
			if err := do(pg.WithNetTimeout(t.Context(), time.Second)); err == nil {
				t.Error("it was acknowledged")
			} else if keyed := name == "pgx" || name == "database/sql"; keyed && !errors.Is(err, idem.ErrUnknownOutcome) {
				t.Errorf("got %v, want ErrUnknownOutcome", err)
			}
			pgtest.Eventually(t, "pgx has asked the server to cancel it", func() bool { return canceled.Load() > 0 })
			var waiting int
			err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`).Scan(&waiting)
			if n := effects(); n != 0 || waiting != 2 || err != nil {
				t.Errorf("%d effects can be seen that no standby has, %d commits wait: %v", n, waiting, err)
			}
			goOn()
			pgtest.Eventually(t, "it is committed", func() bool { return effects() == 1 })
			if name == "pgx" || name == "database/sql" {
				if err := do(t.Context()); err != nil || effects() != 1 {
					t.Errorf("%d effects, %v", effects(), err)
				}
			}
		})
	}
}
