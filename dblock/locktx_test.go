//go:build unix

package dblock

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/localpg"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

var txKey = Key{Space: "order", ID: "1"}

// inTx runs fn in a transaction that is rolled back.
func inTx(t *testing.T, pool *pgxpool.Pool, fn func(tx pgx.Tx)) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	fn(tx)
}

// txClient is a client without a connection of its own, whose heartbeats would be counted as round trips.
func txClient(t *testing.T, pool *pgxpool.Pool) *Client[pgx.Tx] {
	t.Helper()
	cfg, err := (*Config)(nil).resolved()
	if err != nil {
		t.Fatal(err)
	}
	db := pgxdriver.New(pool)
	c := &Client[pgx.Tx]{db: db, engine: newEngine(t.Context(), db.Session, cfg)}
	t.Cleanup(func() { _ = c.Close(context.WithoutCancel(t.Context())) })
	return c
}

// A transaction that is fenced for a holder who is lost keeps LockTx waiting: an exclusive tenure's
// keeps all, a shared one's the exclusive ones. Where that is given up, a shared lock is left at most.
func TestLockTxWaitsForFencedTransactions(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		companion    int64
		shared, free bool
	}{
		"exclusive tenure, exclusive": {companionExclusive, false, false},
		"exclusive tenure, shared":    {companionExclusive, true, false},
		"shared tenure, exclusive":    {companionAny, false, false},
		"shared tenure, shared":       {companionAny, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			pool := db.Pool(t)
			c := txClient(t, pool)
			cfg := &TxConfig{Shared: tc.shared}
			inTx(t, pool, func(fenced pgx.Tx) {
				for _, companion := range []int64{companionAny, tc.companion} {
					if _, err := fenced.Exec(t.Context(), `SELECT pg_advisory_xact_lock_shared($1)`, txKey.number("pgonce")^companion); err != nil {
						t.Fatal(err)
					}
				}
				inTx(t, pool, func(tx pgx.Tx) {
					if err := c.TryLockTx(t.Context(), tx, txKey, cfg); (err == nil) != tc.free || !tc.free && !errors.Is(err, ErrNotAcquired) {
						t.Errorf("try: %v", err)
					}
				})
				inTx(t, pool, func(tx pgx.Tx) {
					wait := 50 * time.Millisecond
					if tc.free { // it does not have to wait, but the machine may be slow
						wait = time.Minute
					}
					ctx, cancel := context.WithTimeout(t.Context(), wait)
					defer cancel()
					if err := c.LockTx(ctx, tx, txKey, cfg); (err == nil) != tc.free || !tc.free && !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("lock: %v", err)
					}
				})
				if tc.free {
					return
				}
				inTx(t, pool, func(tx pgx.Tx) {
					result := make(chan error, 1)
					go func() { result <- c.LockTx(t.Context(), tx, txKey, cfg) }()
					pgtest.Eventually(t, "LockTx waits", func() bool {
						return db.Int(t, `SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == 1
					})
					if err := fenced.Commit(t.Context()); err != nil {
						t.Error(err)
					}
					if err := <-result; err != nil {
						t.Error(err)
					}
				})
			})
		})
	}
}

// A fence that comes late, when an exclusive LockTx has the key, is refused.
func TestLockTxRefusesALateFence(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t).Pool(t)
	c := txClient(t, pool)
	inTx(t, pool, func(tx pgx.Tx) {
		if err := c.LockTx(t.Context(), tx, txKey, nil); err != nil {
			t.Fatal(err)
		}
		inTx(t, pool, func(late pgx.Tx) {
			n := txKey.number("pgonce")
			for _, those := range []int64{companionAny, companionExclusive} {
				var verdict string
				err := late.QueryRow(t.Context(), sqlFence, n^companionAny, n^those, n+1).Scan(&verdict)
				if err != nil || verdict != "busy" {
					t.Errorf("fenced: %s, %v", verdict, err)
				}
			}
		})
	})
}

// A standby has locks of its own, so one taken there would exclude nobody.
func TestLockTxOnAStandby(t *testing.T) {
	t.Parallel()
	srv, err := localpg.Start(&localpg.Config{Standby: true})
	if errors.Is(err, localpg.ErrNoBinaries) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Stop(); err != nil {
			t.Error(err)
		}
	})
	pool, err := pgxpool.New(t.Context(), srv.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	c := txClient(t, pool) // New would refuse
	inTx(t, pool, func(tx pgx.Tx) {
		for _, cfg := range []*TxConfig{nil, {Shared: true}} {
			if err := c.LockTx(t.Context(), tx, txKey, cfg); !errors.Is(err, ErrReadOnly) {
				t.Errorf("LockTx: %v", err)
			}
			if err := c.TryLockTx(t.Context(), tx, txKey, cfg); !errors.Is(err, ErrReadOnly) {
				t.Errorf("TryLockTx: %v", err)
			}
		}
		var held int64
		err := tx.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()`).Scan(&held)
		if err != nil || held != 0 {
			t.Errorf("%d locks are held, %v", held, err)
		}
		if _, err := LockRowsTx(t.Context(), c, tx, Table{Name: "pg_catalog.pg_database", ID: "datname"}, []string{"postgres"}, nil); !errors.Is(err, ErrReadOnlyTx) {
			t.Errorf("LockRowsTx: %v", err)
		}
	})
}

// The process that waits dies. Its backend leaves the queue while the lock is still held, and with it all that
// its transaction holds.
func TestWaiterOfADeadClientLeavesTheQueue(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only on Linux does every version of the server look at its sockets")
	}
	db := pgtest.New(t)
	pool := db.Pool(t)
	c := txClient(t, pool)
	inTx(t, pool, func(holder pgx.Tx) {
		if err := c.LockTx(t.Context(), holder, txKey, nil); err != nil {
			t.Fatal(err)
		}
		cfg := db.Config(t).ConnConfig
		dial, dead := cfg.DialFunc, atomic.Bool{}
		cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if dead.Load() { // a dead client sends no request to cancel, as pgx does for a broken connection
				return nil, errors.New("dead")
			}
			return dial(ctx, network, addr)
		}
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		const waiting = `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'`
		result := make(chan error, 1)
		go func() { result <- c.LockTx(t.Context(), tx, txKey, nil) }()
		pgtest.Eventually(t, "it waits", func() bool { return db.Int(t, waiting) == 1 })
		dead.Store(true)
		_ = conn.PgConn().Conn().Close()
		if err := <-result; !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v", err)
		}
		pgtest.Eventually(t, "the waiter is gone", func() bool { return db.Int(t, waiting) == 0 })
	})
}

// The way back to the savepoint is tried again when a request to cancel hits it.
func TestRollbackIsRepeated(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t).Pool(t)
	for hits, ok := range map[int]bool{1: true, undoAttempts - 1: true, undoAttempts: false} {
		inTx(t, pool, func(tx pgx.Tx) {
			if _, err := tx.Exec(t.Context(), `SAVEPOINT pgonce_lock`); err != nil {
				t.Fatal(err)
			}
			canceled := &canceledUndo{TxQuerier: pgxdriver.New(pool).Tx(tx), hits: hits}
			cause := canceled.TxQuerier.Run(t.Context(), pg.Stmt{SQL: `SELECT 1/0`})
			err := bounded{tx: canceled}.undo(t.Context(), cause)
			if errors.Is(err, ErrTxUnusable) == ok {
				t.Errorf("after %d hits: %v", hits, err)
			}
			if _, err := tx.Exec(t.Context(), `SELECT 1`); (err == nil) != ok {
				t.Errorf("after %d hits the transaction says %v", hits, err)
			}
		})
	}
}

// canceledUndo is a transaction in which the first statements are cancelled.
type canceledUndo struct {
	pg.TxQuerier
	hits int
}

func (c *canceledUndo) Run(ctx context.Context, s pg.Stmt) error {
	if c.hits > 0 {
		c.hits--
		return &pg.Error{Code: pg.CodeQueryCanceled, Err: errors.New("canceling statement due to user request")}
	}
	return c.TxQuerier.Run(ctx, s)
}

// A request to cancel that comes before the wait has begun, or gets lost, is followed by others.
func TestCancelIsRepeated(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool := db.Pool(t)
	inTx(t, pool, func(holder pgx.Tx) {
		if _, err := holder.Exec(t.Context(), `SELECT pg_advisory_xact_lock(1)`); err != nil {
			t.Fatal(err)
		}
		inTx(t, pool, func(tx pgx.Tx) {
			q := pgxdriver.New(pool).Tx(tx)
			ctx, cancel := context.WithCancel(t.Context())
			early := &earlyCancel{TxQuerier: q, lost: 2}
			result := make(chan error, 1)
			go func() { result <- bounded{tx: early}.run(ctx, pg.Stmt{SQL: sqlAwaitTx, Args: []any{1}}) }()
			pgtest.Eventually(t, "it waits", func() bool {
				return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'`) == 1
			})
			cancel()
			if err := <-result; !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
	})
}

// earlyCancel is a transaction whose first requests to cancel hit nothing.
type earlyCancel struct {
	pg.TxQuerier
	lost int
}

func (c *earlyCancel) Cancel(ctx context.Context) error {
	if c.lost > 0 {
		c.lost--
		return nil
	}
	return c.TxQuerier.(pg.Canceler).Cancel(ctx)
}
