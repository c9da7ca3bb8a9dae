//go:build unix

package dblock_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// often calls fn every few milliseconds, with a number to make choices by, until stop is closed.
func often(stop <-chan struct{}, seed uint64, fn func(choice uint64)) {
	random := rand.New(rand.NewPCG(seed, 1))
	tick := time.NewTicker(8 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			fn(random.Uint64())
		}
	}
}

// killOne kills a session that holds a lock and does nothing.
func (b bench) killOne(t *testing.T, choice uint64) {
	t.Helper()
	b.Exec(t, fmt.Sprintf(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle' AND application_name <> 'work' AND datname = current_database()
		AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted) ORDER BY md5(pid::text || '%d') LIMIT 1`, choice))
}

// increment adds one to a counter by a read and a write under the lock, in one transaction. It reports whether
// that was committed.
func increment(t *testing.T, pool *pgxpool.Pool, l *locked, fenced bool) bool {
	t.Helper()
	ctx := t.Context()
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Error(err)
		return false
	}
	defer func() { _ = tx.Rollback(ctx) }()
	if fenced {
		err = l.FenceTx(ctx, tx)
	} else {
		err = l.Err()
	}
	if errors.Is(err, dblock.ErrLost) {
		return false
	}
	var n int64
	if err == nil {
		err = tx.QueryRow(ctx, `SELECT n FROM counter, pg_sleep(0.004)`).Scan(&n)
	}
	if err == nil && !fenced {
		if l.Err() != nil {
			return false // the best that can be done without a fence
		}
	}
	if err == nil {
		_, err = tx.Exec(ctx, `UPDATE counter SET n = $1`, n+1)
	}
	if err == nil {
		err = tx.Commit(ctx)
	}
	if err != nil {
		t.Error(err)
	}
	return err == nil
}

// Holders lose their sessions at random while they work in a transaction. With FenceTx no write of a holder
// who has lost the lock lands. Without it some do, which is what the fence is for; that figure is printed, not tested.
func TestFencedWritesOfPastHoldersNeverLand(t *testing.T) {
	t.Parallel()
	for _, fenced := range []bool{true, false} {
		t.Run(fmt.Sprintf("fenced %t", fenced), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.countUnderLosses(t, func() []*client { return b.clients(t, 3, nil) }, 300, fenced, func(choice uint64) { b.killOne(t, choice) })
		})
	}
}

// countUnderLosses has callers of all clients count, while trouble takes their locks away at random, until so many counts are committed and
// somebody has lost a lock. If they fence, no count may be lost.
func (b bench) countUnderLosses(t *testing.T, open func() []*client, enough int64, fenced bool, trouble func(choice uint64)) {
	t.Helper()
	seed := seedOf(t)
	b.Exec(t, `CREATE TABLE counter (n bigint NOT NULL); INSERT INTO counter VALUES (0)`)
	cfg := b.Config(t)
	cfg.MaxConns = 16
	cfg.ConnConfig.RuntimeParams["application_name"] = "work"
	pool := b.Open(t, cfg)
	var commits, losses atomic.Int64
	var wg, troubles sync.WaitGroup
	for _, c := range open() { // after the pool, which must find no lock when it is closed
		for range 3 {
			wg.Go(func() {
				for (commits.Load() < enough || losses.Load() == 0) && t.Context().Err() == nil {
					l, err := c.Acquire(within(t), key("1"), nil)
					if errors.Is(err, dblock.ErrUnavailable) { // its session was ended in that moment
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
					committed := increment(t, pool, l, fenced)
					if committed {
						commits.Add(1)
					}
					err = l.Release(t.Context())
					if err != nil && !errors.Is(err, dblock.ErrLost) {
						t.Error(err)
					}
					if !committed || err != nil {
						losses.Add(1)
					}
				}
			})
		}
	}
	stop := make(chan struct{})
	troubles.Go(func() { often(stop, seed, trouble) })
	wg.Wait()
	close(stop)
	troubles.Wait()
	n := b.Int(t, `SELECT n FROM counter`)
	t.Logf("fenced=%t commits=%d lost_in_time=%d updates_lost=%d", fenced, commits.Load(), losses.Load(), commits.Load()-n)
	if fenced && n != commits.Load() {
		t.Errorf("%d commits, and the counter says %d", commits.Load(), n)
	}
	if losses.Load() == 0 {
		t.Error("nobody lost a lock, so this shows nothing")
	}
}

// The session of a holder is gone and the holder does not know. FenceTx knows, whether somebody else has the lock by
// then or not; and then the holder knows too.
func TestFenceFindsTheLossOut(t *testing.T) {
	t.Parallel()
	for _, taken := range []bool{false, true} {
		b := newBench(t)
		c, err := dblock.New(t.Context(), deafDriver{pgxdriver.New(b.pool)}, &dblock.Config{TTL: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		other := b.client(t, nil)
		l := acquire(t, c, "1", nil)
		b.Exec(t, fmt.Sprintf(`SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND objid::bigint = %d`, key("1").Number()&0xffffffff))
		if taken {
			defer release(t, acquire(t, other, "1", nil))
		}
		tx, err := b.pool.BeginTx(t.Context(), pgx.TxOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if l.Err() != nil {
			t.Error("the holder knows already, so this shows nothing")
		}
		pgtest.Eventually(t, "the session is gone", func() bool { return taken || b.keyLocks(t, 2) == 0 })
		if err := l.FenceTx(t.Context(), tx); !errors.Is(err, dblock.ErrLost) {
			t.Errorf("got %v", err)
		}
		if e := lost(t, l); e.Kind != dblock.LostFence {
			t.Errorf("got %v", e)
		}
		_ = tx.Rollback(t.Context())
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// The next in line of the same process waits for the fenced transaction, too: the lock is not handed over in memory.
func TestFencedLockIsNotHandedOver(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.client(t, nil)
	c.SetHandOver(time.Hour)
	l := acquire(t, c, "1", nil)
	tx, err := b.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.FenceTx(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
	var committed atomic.Bool
	done := make(chan *locked)
	go func() {
		l := acquire(t, c, "1", nil)
		if !committed.Load() {
			t.Error("the lock was given out beside a fenced transaction")
		}
		done <- l
	}()
	pgtest.Eventually(t, "the next one is in line", func() bool { return c.InLine(key("1")) == 1 })
	release(t, l)
	waiting(t, b, 1) // for the companion, on the server
	committed.Store(true)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	release(t, <-done)
}

// slowFence is a driver on which something happens before a fence reaches the server.
type slowFence struct {
	pg.Driver[pgx.Tx]
	before func()
}

func (d slowFence) Tx(tx pgx.Tx) pg.TxQuerier { return slowTx{d.Driver.Tx(tx), d.before} }

type slowTx struct {
	pg.TxQuerier
	before func()
}

func (q slowTx) Run(ctx context.Context, st pg.Stmt) error {
	if st.SQL == dblock.SQLFence {
		q.before()
	}
	return q.TxQuerier.Run(ctx, st)
}

// The lock is released, and given to somebody else, while a fence is on its way: that is none, though the session lives.
func TestFenceOfALockThatIsReleasedMeanwhile(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var l, next *locked
	others := b.client(t, nil)
	c := clientOn(t, slowFence{pgxdriver.New(b.pool), func() {
		release(t, l)
		next = acquire(t, others, "1", nil)
	}}, nil)
	l = acquire(t, c, "1", nil)
	tx := b.begin(t)
	if err := l.FenceTx(t.Context(), tx); !errors.Is(err, dblock.ErrNotHeld) {
		t.Errorf("got %v", err)
	}
	if err := next.Err(); err != nil {
		t.Error(err)
	}
	release(t, next)
}

// Who may not have the lock beside a tenure does not get it beside a transaction that is fenced for it either, however he asks:
// alone, together with others, or by waiting.
func TestSuccessorsOfAFencedTenure(t *testing.T) {
	t.Parallel()
	for _, tenure := range []bool{false, true} {
		for _, successor := range []bool{false, true} {
			t.Run(fmt.Sprintf("shared=%t/successor shared=%t", tenure, successor), func(t *testing.T) {
				t.Parallel()
				b, wire := wired(t)
				c := b.client(t, quiet)
				l := acquire(t, b.client(t, nil), "1", &dblock.LockConfig{Shared: tenure})
				tx := b.begin(t)
				if err := l.FenceTx(t.Context(), tx); err != nil {
					t.Fatal(err)
				}
				release(t, l)
				free, cfg := tenure && successor, &dblock.LockConfig{Shared: successor}
				try := func() {
					l, err := c.TryAcquire(within(t), key("1"), cfg)
					if (err == nil) != free || err != nil && !errors.Is(err, dblock.ErrNotAcquired) {
						t.Errorf("got %v", err)
					}
					if err == nil {
						release(t, l)
					}
				}
				try()
				var wg sync.WaitGroup
				wire.HoldAfter(0)
				wg.Go(func() { release(t, acquire(t, c, "2", nil)) })
				pgtest.Eventually(t, "the first is on its way", func() bool { asked, _ := c.OnTheirWay(); return asked == 1 })
				wg.Go(try)
				wg.Go(func() { release(t, acquire(t, c, "3", cfg)) })
				pgtest.Eventually(t, "two more have come", func() bool { asked, _ := c.OnTheirWay(); return asked == 3 })
				wire.Release()
				wg.Wait()
				if !free {
					wg.Go(func() { release(t, acquire(t, c, "1", cfg)) })
					waiting(t, b, 1)
				}
				if err := tx.Commit(t.Context()); err != nil {
					t.Error(err)
				}
				wg.Wait()
			})
		}
	}
}
