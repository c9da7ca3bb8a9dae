//go:build unix

package dblock_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// The ctx of a caller ends while the server has granted what he asked for and the answer is on its way. He is told at once; the grant is given back
// when the answer is there; and what others hold on the same connection is not touched.
func TestCancelledCallerLeavesTheSessionAlone(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	wire := pgtest.NewWire()
	cfg := b.Config(t)
	cfg.ConnConfig.DialFunc = wire.Dial(cfg.ConnConfig.DialFunc)
	c, other := clientOf(t, b.Open(t, cfg), &dblock.Config{TTL: time.Hour}), b.client(t, nil)
	kept := acquire(t, c, "kept", nil)
	wire.HoldAfter(0)
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan error, 1)
	go func() {
		_, err := c.Acquire(ctx, key("1"), nil)
		asked <- err
	}()
	pgtest.Eventually(t, "the server has granted it", func() bool { return b.keyLocks(t, 2) > 0 })
	cancel()
	if err := <-asked; !errors.Is(err, dblock.ErrNotAcquired) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	wire.Release()
	release(t, acquire(t, other, "1", nil))
	if err := kept.Err(); err != nil {
		t.Error(err)
	}
	release(t, kept)
}

// A wait is cut into slices, each a transaction of its own, so that it does not keep the server from cleaning up; and it goes on.
func TestWaitsAreSliced(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	holder, waiter := b.client(t, nil), b.client(t, nil)
	waiter.SetLimits(1000, 50*time.Millisecond, 50*time.Millisecond)
	l := acquire(t, holder, "1", nil)
	won := make(chan *locked, 1)
	go func() { won <- acquire(t, waiter, "1", nil) }()
	began := map[int64]bool{}
	pgtest.Eventually(t, "three slices", func() bool {
		at := b.Int(t, `SELECT coalesce(max(1000000 * extract(epoch FROM xact_start))::bigint, 0) FROM pg_stat_activity JOIN pg_locks l USING (pid)
			WHERE l.locktype = 'advisory' AND NOT l.granted AND datname = current_database()`)
		if at != 0 {
			began[at] = true
		}
		return len(began) >= 3
	})
	release(t, l)
	release(t, <-won)
}

// A fence is the transaction's from its savepoint on: rolling back to one from before drops it, as the documentation says, and to one from after does not.
func TestFenceAndSavepoints(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(bench) *client{
		"session": func(b bench) *client { return b.client(t, nil) },
		"lease":   func(b bench) *client { return b.leases(t, nil) },
	} {
		b := newBench(t)
		c, other := open(b), open(b)
		l := acquire(t, c, "1", nil)
		tx := b.begin(t)
		run := func(sql string) {
			t.Helper()
			if _, err := tx.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		fence := func() {
			t.Helper()
			if err := l.FenceTx(t.Context(), tx); err != nil {
				t.Fatal(err)
			}
		}
		run(`SAVEPOINT before`)
		fence()
		run(`SAVEPOINT after`)
		run(`ROLLBACK TO after`)
		release(t, l)
		if _, err := other.TryAcquire(within(t), key("1"), nil); !errors.Is(err, dblock.ErrNotAcquired) {
			t.Errorf("%s: beside a fenced transaction: %v", name, err)
		}
		run(`ROLLBACK TO before`)
		release(t, acquire(t, other, "1", nil))
		l = acquire(t, c, "1", nil)
		fence() // anew
		release(t, l)
		if _, err := other.TryAcquire(within(t), key("1"), nil); !errors.Is(err, dblock.ErrNotAcquired) {
			t.Errorf("%s: beside a transaction that is fenced again: %v", name, err)
		}
	}
}

// Locks of two databases, and of two schemas, have nothing to do with each other.
func TestDatabasesDoNotExclude(t *testing.T) {
	t.Parallel()
	here, there := newBench(t), newBench(t)
	l := acquire(t, here.client(t, nil), "1", nil)
	release(t, acquire(t, there.client(t, nil), "1", nil))
	if err := l.Err(); err != nil {
		t.Error(err)
	}
	release(t, l)
	if _, err := dblock.New(t.Context(), pgxdriver.New(here.pool), &dblock.Config{Schema: "elsewhere"}); !errors.Is(err, dblock.ErrSchema) {
		t.Errorf("a schema that is not there: %v", err)
	}
}
