//go:build unix

package dblock_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// leases is a client of leases, closed at the end of the test, which fails if that does not go well.
func (b bench) leases(t *testing.T, cfg *dblock.Config) *client {
	t.Helper()
	return leasesOf(t, pgxdriver.New(b.pool), cfg)
}

func leasesOf(t *testing.T, d pg.Driver[pgx.Tx], cfg *dblock.Config) *client {
	t.Helper()
	c, err := dblock.NewLeases(t.Context(), d, cfg)
	return closing(t, c, err)
}

// manyLeases are several such clients, made before the first is used, so that they meet.
func (b bench) manyLeases(t *testing.T, n int, cfg *dblock.Config) (all []*client) {
	t.Helper()
	for range n {
		all = append(all, b.leases(t, cfg))
	}
	return all
}

// rows counts the rows of leases.
func (b bench) rows(t *testing.T) int64 {
	t.Helper()
	return b.Int(t, `SELECT count(*) FROM pgonce.lease`)
}

// Callers in several clients, as in several processes, take turns on a few keys. Nothing is left.
func TestLeaseStorm(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	takeTurns(t, b.manyLeases(t, 4, nil), 20)
	if n := b.rows(t); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}

// Processes race for a key whose holder has died, again and again. One wins, and its token is greater.
func TestLeaseTakeOverHasOneWinner(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const processes, rounds = 5, 20
	clients := b.manyLeases(t, processes, quiet)
	var last dblock.Token
	for round := range rounds {
		b.Exec(t, `INSERT INTO pgonce.lease SELECT 1, now() - interval '1 hour', now() - interval '30 min', '30 min', 'order', '1', 'dead'
			ON CONFLICT (space, id) DO UPDATE SET nonce = 1, expires_at = EXCLUDED.expires_at`)
		won := make(chan *locked, processes)
		var wg sync.WaitGroup
		for _, c := range clients {
			wg.Go(func() {
				l, err := c.TryAcquire(within(t), key("1"), nil)
				if err == nil {
					won <- l
				} else if !errors.Is(err, dblock.ErrNotAcquired) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("round %d: %d winners", round, len(won))
		}
		l := <-won
		if l.Token() <= last {
			t.Errorf("token %d after %d", l.Token(), last)
		}
		last = l.Token()
		release(t, l)
	}
}

// The server's clock went back: a row claims to hold for longer than it can. It holds for a TTL more, in which its holder renews it if he
// lives.
func TestLeaseWhenTheClockGoesBack(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	alive, c := b.leases(t, &dblock.Config{TTL: 8 * time.Second}), b.leases(t, nil)
	held := acquire(t, alive, "alive", nil)
	for _, id := range []string{"alive", "dead"} {
		b.Exec(t, `INSERT INTO pgonce.lease SELECT 1, now(), now() + interval '1 day', '1 s', 'order', '`+id+`', 'dead'
			ON CONFLICT (space, id) DO UPDATE SET expires_at = EXCLUDED.expires_at`)
		if _, err := c.TryAcquire(within(t), key(id), nil); !errors.Is(err, dblock.ErrNotAcquired) {
			t.Errorf("got %v", err)
		}
	}
	release(t, acquire(t, c, "dead", nil))
	if held.Err() != nil {
		t.Error(held.Err())
	}
	if _, err := c.TryAcquire(within(t), key("alive"), nil); !errors.Is(err, dblock.ErrNotAcquired) {
		t.Errorf("got %v", err)
	}
	release(t, held)
}

// A renewal that comes when the lease has expired by the server's clock does not bring it back, and its holder is told.
func TestLateRenewalNeverResurrects(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]string{
		"expired": `UPDATE pgonce.lease SET expires_at = now() - interval '1 us'`,
		"removed": `DELETE FROM pgonce.lease`,
		"taken":   `UPDATE pgonce.lease SET nonce = nonce + 1`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			c := b.leases(t, &dblock.Config{TTL: 6 * time.Second})
			l, other := acquire(t, c, "1", nil), acquire(t, c, "2", nil)
			b.Exec(t, change+` WHERE id = '1'`)
			if e := lost(t, l); e.Kind != dblock.LostTaken {
				t.Errorf("got %v", e)
			}
			if name == "expired" && b.Int(t, `SELECT count(*) FROM pgonce.lease WHERE id = '1' AND expires_at > now()`) != 0 {
				t.Error("it was renewed")
			}
			if err := l.Release(t.Context()); !errors.Is(err, dblock.ErrLost) {
				t.Errorf("release: %v", err)
			}
			if other.Err() != nil {
				t.Error(other.Err())
			}
			release(t, other)
			b.Exec(t, `DELETE FROM pgonce.lease`)
		})
	}
}

// Release finds out that the row is somebody else's.
func TestLeaseReleaseAfterTheLoss(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := acquire(t, b.leases(t, quiet), "1", nil)
	b.Exec(t, `UPDATE pgonce.lease SET nonce = nonce + 1`)
	for range 2 {
		err := l.Release(t.Context())
		if e, ok := errors.AsType[*dblock.LostError](err); !ok || e.Kind != dblock.LostTaken {
			t.Errorf("got %v", err)
		}
	}
	if n := b.rows(t); n != 1 {
		t.Errorf("%d rows, want the one of the next holder", n)
	}
}

// What crashed processes have left, and nobody asks for, is removed by others, but nothing that is held or fenced.
func TestLeasesOfTheDeadAreRemoved(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.Exec(t, `INSERT INTO pgonce.lease SELECT i, now(), now() - interval '2 hour', '1 s', 'order', i::text, 'dead' FROM generate_series(1, 1500) AS i;
		INSERT INTO pgonce.lease SELECT i, now(), now() + interval '1 hour', '2 hour', 'held', i::text, 'alive' FROM generate_series(1, 10) AS i`)
	tx := b.begin(t)
	if _, err := tx.Exec(t.Context(), `SELECT FROM pgonce.lease WHERE space = 'order' AND id IN ('1', '2') FOR KEY SHARE`); err != nil {
		t.Fatal(err)
	}
	b.leases(t, nil)
	if n := b.rows(t); n != 510 {
		t.Errorf("%d rows, want 510: a thousand at a time", n)
	}
	b.leases(t, nil)
	if n := b.rows(t); n != 12 {
		t.Errorf("%d rows, want the 10 that are held and the 2 that are fenced", n)
	}
}

// Close gives everything back, while others acquire.
func TestLeaseCloseUnderLoad(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c, err := dblock.NewLeases(t.Context(), pgxdriver.New(b.pool), nil)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var held atomic.Int64
	for i := range 20 {
		wg.Go(func() {
			for {
				l, err := c.Acquire(within(t), key(fmt.Sprint(i%7)), nil)
				if errors.Is(err, dblock.ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				held.Add(1)
				if i%2 == 0 {
					<-time.After(time.Millisecond)
				}
				if err := l.Release(t.Context()); err != nil && !errors.Is(err, dblock.ErrLost) {
					t.Error(err)
				}
			}
		})
	}
	pgtest.Eventually(t, "many were held", func() bool { return held.Load() > 50 })
	if err := c.Close(within(t)); err != nil {
		t.Error(err)
	}
	if n := b.rows(t); n != 0 {
		t.Errorf("%d rows are left", n)
	}
	wg.Wait()
}

// A role with the rights of an application has leases; one without is told what it needs.
func TestLeasesOfAPlainRole(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	role := b.Role(t)
	cfg := b.Config(t)
	cfg.ConnConfig.User, cfg.ConnConfig.Password = role, role
	pool := b.Open(t, cfg)
	b.Exec(t, `GRANT USAGE ON SCHEMA pgonce TO "`+role+`"; GRANT SELECT ON ALL TABLES IN SCHEMA pgonce TO "`+role+`"`)
	if _, err := dblock.NewLeases(t.Context(), pgxdriver.New(pool), nil); !errors.Is(err, dblock.ErrSchema) {
		t.Errorf("got %v", err)
	}
	b.GrantDML(t, role)
	c := leasesOf(t, pgxdriver.New(pool), nil)
	l := acquire(t, c, "1", nil)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.FenceTx(t.Context(), tx), tx.Commit(t.Context())); err != nil {
		t.Error(err)
	}
	release(t, l)
}

// Whatever a role has set, a lease is a lease: it is granted, taken over, renewed and flushed.
func TestLeasesUnderHostileDefaults(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"repeatable read", "serializable"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			cfg := b.Config(t)
			cfg.ConnConfig.RuntimeParams["default_transaction_isolation"] = level
			cfg.ConnConfig.RuntimeParams["synchronous_commit"] = "off"
			pool := b.Open(t, cfg)
			const callers, rounds = 6, 15
			var inside, last atomic.Int64
			var wg sync.WaitGroup
			for range 3 {
				c := leasesOf(t, pgxdriver.New(pool), nil)
				for range callers / 3 {
					wg.Go(func() {
						for range rounds {
							l := acquire(t, c, "1", nil)
							if n := inside.Add(1); n != 1 {
								t.Errorf("%d inside", n)
							}
							if token := int64(l.Token()); last.Swap(token) >= token {
								t.Error("tokens went backwards")
							}
							inside.Add(-1)
							release(t, l)
						}
					})
				}
			}
			wg.Wait()
			c := leasesOf(t, pgxdriver.New(pool), &dblock.Config{TTL: 4 * time.Second})
			l := acquire(t, c, "2", nil)
			began := time.Now()
			pgtest.Eventually(t, "two TTLs", func() bool { return time.Since(began) > 8*time.Second })
			release(t, l)
		})
	}
}

// NewLeases refuses what cannot be, and a client of leases what it has not.
func TestLeasesRefuse(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for name, cfg := range map[string]*dblock.Config{
		"use 100ms":     {TTL: 99 * time.Millisecond},
		"use at most":   {TTL: 48 * time.Hour},
		"control":       {Holder: "a\nb"},
		"limit is 63":   {Holder: fmt.Sprintf("%064d", 1)},
		"negative":      {MaxLocks: -1},
		"not there":     {Schema: "nowhere"},
		"usable schema": {Schema: "No"},
	} {
		if _, err := dblock.NewLeases(t.Context(), pgxdriver.New(b.pool), cfg); err == nil || !contains(err, name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	cfg := b.Config(t)
	cfg.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	if _, err := dblock.NewLeases(t.Context(), pgxdriver.New(b.Open(t, cfg)), nil); !errors.Is(err, dblock.ErrReadOnly) {
		t.Errorf("got %v", err)
	}
	c := b.leases(t, &dblock.Config{MaxLocks: 1, Holder: "worker 7"})
	if _, err := c.Acquire(within(t), key("1"), &dblock.LockConfig{Shared: true}); err == nil || !contains(err, "exclusive") {
		t.Errorf("got %v", err)
	}
	if err := c.LockTx(within(t), b.begin(t), key("1"), &dblock.TxConfig{Shared: true}); err == nil || !contains(err, "exclusive") {
		t.Errorf("got %v", err)
	}
	l := acquire(t, c, "1", nil)
	if _, err := c.Acquire(within(t), key("2"), nil); !errors.Is(err, dblock.ErrCapacity) {
		t.Errorf("got %v", err)
	}
	if n := b.Int(t, `SELECT count(*) FROM pgonce.lease WHERE holder = 'worker 7' AND ttl = '15 s' AND acquired_at + ttl <= expires_at`); n != 1 {
		t.Error("the row does not say who has it")
	}
	release(t, l)
	if err := c.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

func contains(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }
