//go:build unix

package dblock_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/sqldriver"
	"github.com/pgonce/pgonce/internal/localpg"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/migrations"
)

// More keys are waited for than there are connections for waiting: all are had in the end, by turns and by asking now and
// then; and a caller whose ctx ends before is told why.
func TestMoreWaitersThanConnections(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	holder, c := b.client(t, nil), b.client(t, &dblock.Config{MaxWaiters: 2})
	c.SetLimits(1000, 100*time.Millisecond, 20*time.Millisecond)
	const keys = 12
	var held []*locked
	for i := range keys {
		held = append(held, acquire(t, holder, fmt.Sprint(i), nil))
	}
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() { release(t, acquire(t, c, fmt.Sprint(i), nil)) })
	}
	waiting(t, b, 2)
	pgtest.Eventually(t, "the others line up", func() bool { n, _ := c.Used(); return n == keys })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	extra := acquire(t, holder, "extra", nil)
	if _, err := c.Acquire(ctx, key("extra"), nil); !errors.Is(err, dblock.ErrNotAcquired) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if n := b.Int(t, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`); n > 2 {
		t.Errorf("%d connections wait", n)
	}
	for _, l := range held {
		release(t, l)
	}
	wg.Wait()
	release(t, extra)
	pgtest.Eventually(t, "nothing is counted any more", func() bool { n, k := c.Used(); return n == 0 && k == 0 })
}

// Where holders have all connections for waiting, a caller who waits in vain is told so.
func TestOwnersTakeTheConnections(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	other, c := b.client(t, nil), b.client(t, &dblock.Config{MaxWaiters: 1})
	first := acquire(t, other, "1", nil)
	second := acquire(t, other, "2", nil)
	won := make(chan *locked)
	go func() { won <- acquire(t, c, "1", nil) }()
	waiting(t, b, 1)
	release(t, first)
	first = <-won
	pgtest.Eventually(t, "the caller is told", func() bool { // one whose time is up before the first try is back is not
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err := c.Acquire(ctx, key("2"), nil)
		if !errors.Is(err, dblock.ErrNotAcquired) {
			t.Errorf("got %v", err)
		}
		return errors.Is(err, dblock.ErrCapacity)
	})
	release(t, first)
	release(t, second)
}

// Locks beyond the budget are refused at once, and those given back make room. A shard takes no more than its share.
func TestBudget(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.client(t, &dblock.Config{MaxLocks: 25})
	c.SetLimits(10, time.Second, time.Second)
	var held []*locked
	for i := range 25 {
		held = append(held, acquire(t, c, fmt.Sprint(i), nil))
	}
	if n := b.Int(t, `SELECT count(DISTINCT pid) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`); n != 3 {
		t.Errorf("%d shards for 25 locks of 10 each", n)
	}
	for _, verb := range []func() (*locked, error){
		func() (*locked, error) { return c.Acquire(within(t), key("26"), nil) },
		func() (*locked, error) { return c.TryAcquire(within(t), key("26"), nil) },
	} {
		if _, err := verb(); !errors.Is(err, dblock.ErrCapacity) {
			t.Errorf("got %v", err)
		}
	}
	release(t, held[0])
	held[0] = acquire(t, c, "26", nil)
	for _, l := range held {
		release(t, l)
	}
	if locks, keys := c.Used(); locks != 0 || keys != 0 {
		t.Errorf("%d locks and %d keys are still counted", locks, keys)
	}
}

// The server itself runs out of room for locks, since others use it up. Callers are told, the session
// lives on, and nothing is left held of the request that failed.
func TestCapacityOfTheServer(t *testing.T) {
	t.Parallel()
	pgtest.New(t) // skips where there is no server to start, and watches for leaks
	srv, err := localpg.Start(&localpg.Config{Settings: map[string]string{"max_connections": "20", "max_locks_per_transaction": "10"}})
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
	if _, err := migrations.UpPool(t.Context(), pool, nil); err != nil {
		t.Fatal(err)
	}
	c := clientOf(t, pool, &dblock.Config{MaxLocks: 200, TTL: time.Hour})
	first := acquire(t, c, "first", nil)
	greedy, err := pgx.Connect(t.Context(), srv.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = greedy.Close(t.Context()) }()
	for i := 0; err == nil; i++ {
		_, err = greedy.Exec(t.Context(), `SELECT pg_advisory_lock($1)`, i)
	}
	for i := range 30 { // room for some of a request, not for all
		if _, err := greedy.Exec(t.Context(), `SELECT pg_advisory_unlock($1)`, i); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	var held, refused atomic.Int64
	for i := range 150 {
		wg.Go(func() {
			l, err := c.Acquire(within(t), key(fmt.Sprint(i)), nil)
			switch {
			case err == nil:
				held.Add(1)
				release(t, l)
			case errors.Is(err, dblock.ErrCapacity):
				refused.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	t.Logf("held %d, refused %d", held.Load(), refused.Load())
	if refused.Load() == 0 {
		t.Error("nobody was refused, so this shows nothing")
	}
	if first.Err() != nil {
		t.Error(first.Err())
	}
	_ = greedy.Close(t.Context())
	release(t, first)
	var left int64
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid <> $1`, greedy.PgConn().PID()).Scan(&left); err != nil {
		t.Fatal(err)
	}
	if left != 2 {
		t.Errorf("%d locks are left on the server, want those that say the session is alive, which are two", left)
	}
	release(t, acquire(t, c, "again", nil))
}

// On database/sql the client's connections are the pool's. Where that has too few, callers are told what to do, in the time that a
// connection may take; nobody waits for ever, and nothing is left behind.
func TestPoolOfTooFewConnections(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	pool := func(conns int) *sql.DB {
		db := b.SQLConfig(t, b.Config(t).ConnConfig)
		db.SetMaxOpenConns(conns)
		return db
	}
	ctx := pg.WithNetTimeout(t.Context(), 10*time.Second) // instead of 15
	want := func(what string, err error, conns int) {
		if !errors.Is(err, dblock.ErrUnavailable) || !strings.Contains(err.Error(), fmt.Sprintf("all %d connections of the pool are in use: raise SetMaxOpenConns", conns)) {
			t.Errorf("%s: %v", what, err)
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	one := pool(1)
	wg.Go(func() {
		_, err := dblock.New(ctx, sqldriver.New(one), nil)
		want("New with one connection", err, 1)
		if n := one.Stats().InUse; n != 0 {
			t.Errorf("%d connections are in use after New has failed", n)
		}
	})

	two := pool(2)
	c, err := dblock.New(ctx, sqldriver.New(two), &dblock.Config{TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	other := acquire(t, b.client(t, nil), "1", nil)
	mine, err := two.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Acquire(within(t), key("1"), nil)
	want("Acquire of a held key", err, 2)
	if l, err := c.Acquire(within(t), key("2"), nil); err != nil { // which needs no other connection
		t.Error(err)
	} else if err := l.Release(t.Context()); err != nil {
		t.Error(err)
	}

	if err := mine.Close(); err != nil {
		t.Fatal(err)
	}
	won := make(chan error, 1)
	go func() {
		l, err := c.Acquire(within(t), key("1"), nil)
		if err == nil {
			err = l.Release(t.Context())
		}
		won <- err
	}()
	waiting(t, b, 1)
	release(t, other)
	if err := <-won; err != nil {
		t.Error(err)
	}
}
