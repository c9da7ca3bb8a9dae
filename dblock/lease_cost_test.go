//go:build unix

package dblock_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// A free key costs one round trip and one commit to take, and the same to give back; a busy one a round trip and nothing else.
func TestLeaseRoundTrips(t *testing.T) {
	t.Parallel()
	b, wire := wired(t)
	c := b.leases(t, quiet)
	other := b.leases(t, quiet)
	for range 9 { // statements are prepared, on each connection
		release(t, acquire(t, c, "1", nil))
	}
	trips := func(what string, want int64, fn func()) {
		t.Helper()
		before := wire.Trips()
		fn()
		if n := wire.Trips() - before; n != want {
			t.Errorf("%s: %d round trips, want %d", what, n, want)
		}
	}
	var l *locked
	trips("take", 1, func() { l = acquire(t, c, "1", nil) })
	trips("refused in memory", 0, func() {
		if _, err := c.TryAcquire(within(t), key("1"), nil); err == nil {
			t.Error("taken twice")
		}
	})
	trips("refused by the server", 1, func() {
		if _, err := other.TryAcquire(within(t), key("1"), nil); err == nil {
			t.Error("taken twice")
		}
	})
	trips("give back", 1, func() { release(t, l) })
	expired := func() {
		b.Exec(t, `INSERT INTO pgonce.lease VALUES (1, now() - interval '1 h', now() - interval '1 s', '1 s', 'order', '1', 'dead')`)
	}
	expired()
	release(t, acquire(t, c, "1", nil)) // prepares the statements
	expired()
	trips("take over", 3, func() { l = acquire(t, c, "1", nil) })
	release(t, l)
	tx := b.begin(t)
	for range 2 {
		if err := c.TryLockTx(within(t), tx, key("tx"), nil); err != nil {
			t.Fatal(err)
		}
	}
	trips("LockTx", 2, func() {
		if err := c.LockTx(within(t), tx, key("tx2"), nil); err != nil {
			t.Error(err)
		}
	})
}

// What leases write, on a server that writes no WAL but theirs: a try that fails writes nothing and takes no transaction number, nor does a
// LockTx; heartbeats are HOT, and leave the index alone.
func TestLeaseWrites(t *testing.T) {
	t.Parallel()
	pool := pgtest.Quiet(t)
	wal := func(fn func()) (bytes, xids int64) {
		t.Helper()
		b, x := pgtest.WAL(t, pool), pgtest.XIDs(t, pool)
		fn()
		return pgtest.WAL(t, pool) - b, pgtest.XIDs(t, pool) - x
	}
	a, c := leasesOf(t, pgxdriver.New(pool), quiet), leasesOf(t, pgxdriver.New(pool), quiet)
	const n = 200
	l := acquire(t, a, "1", nil)
	release(t, acquire(t, c, "warm", nil))
	if bytes, xids := wal(func() {
		for range n {
			if _, err := c.TryAcquire(within(t), key("1"), nil); !errors.Is(err, dblock.ErrNotAcquired) {
				t.Fatal(err)
			}
		}
	}); bytes != 0 || xids != 0 {
		t.Errorf("losers wrote %d bytes of WAL and took %d transaction numbers", bytes, xids)
	}
	if bytes, xids := wal(func() {
		for i := range n {
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := c.TryLockTx(within(t), tx, key(fmt.Sprint(i%2)), nil); err != nil != (i%2 == 1) {
				t.Error(err)
			}
			_ = tx.Commit(t.Context())
		}
	}); bytes != 0 || xids != 0 {
		t.Errorf("LockTx wrote %d bytes of WAL and took %d transaction numbers", bytes, xids)
	}
	if _, xids := wal(func() { release(t, acquire(t, c, "2", nil)) }); xids != 2 {
		t.Errorf("a lease took %d commits, want one to take it and one to give it back", xids)
	}
	for range n {
		a.Beat()
	}
	release(t, l)
	pool.Reset() // a backend reports its last figures when it ends
	pgtest.Eventually(t, "the statistics are in", func() bool {
		return pgtest.Number(t, pool, `SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'lease'`) >= n
	})
	updates, hot := pgtest.Number(t, pool, `SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'lease'`), pgtest.Number(t, pool, `SELECT n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'lease'`)
	if updates != n || hot != n {
		t.Errorf("%d heartbeats, %d updates, %d of them HOT", n, updates, hot)
	}
}

// The heartbeats of all leases of a process are one round trip.
func TestOneHeartbeatForAll(t *testing.T) {
	t.Parallel()
	b, wire := wired(t)
	c := b.leases(t, quiet)
	var held []*locked
	for i := range 100 {
		held = append(held, acquire(t, c, fmt.Sprint(i), nil))
	}
	for range 9 {
		c.Beat()
	}
	before := wire.Trips()
	c.Beat()
	if n := wire.Trips() - before; n != 1 {
		t.Errorf("%d round trips", n)
	}
	for _, l := range held {
		if l.Err() != nil {
			t.Error(l.Err())
		}
	}
	before = wire.Trips()
	if err := c.Close(within(t)); err != nil {
		t.Error(err)
	}
	if n := wire.Trips() - before; n > 2 { // 2 where the statement is prepared
		t.Errorf("Close of %d leases took %d round trips", len(held), n)
	}
	if n := b.rows(t); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}
