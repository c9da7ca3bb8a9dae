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
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// keyLocks counts the locks that sessions of this database hold on keys 0 to n-1, companions included.
func (b bench) keyLocks(t *testing.T, n int) (held int64) {
	t.Helper()
	for i := range n {
		held += b.Int(t, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND ((classid::bigint << 32) | objid::bigint) IN ($1::bigint, $1::bigint # $2::bigint, $1::bigint # $3::bigint)`,
			key(fmt.Sprint(i)).Number(), int64(dblock.CompanionExclusive), int64(dblock.CompanionAny))
	}
	return held
}

// R4: a wait on the server that ends, by its slice or by the caller's ctx, can be granted in that very moment.
// 5,000 of them leave no lock behind. A client that believes the error, and does not ask what has become of the wait,
// leaves many.
func TestTimeoutsLeaveNoLock(t *testing.T) {
	t.Parallel()
	seed := seedOf(t)
	var unsettled atomic.Int64
	believing := tampering(func(ctx context.Context, s *tampered, stmts []pg.Stmt) error {
		return believe(ctx, s, stmts, &unsettled)
	})
	believed := int64(0)
	for round := uint64(0); round < 20 && (unsettled.Load() == 0 || soak && round < 10); round++ {
		n, _, _ := timeouts(t, seed+round, 1000, believing)
		believed += n
	}
	n, granted, left := timeouts(t, seed, scale(5000, 100_000), nil)
	t.Logf("R4 timeouts=%d granted=%d left=%d without_settlement_left=%d_of_%d seed=%d", n, granted, left, unsettled.Load(), believed, seed)
	if left != 0 {
		t.Errorf("%d locks are left", left)
	}
	if unsettled.Load() == 0 {
		t.Error("nothing is left without settlement either, so this shows nothing")
	}
}

// believe has the client believe that a wait which ended in an error was not granted. What it leaves behind is counted, and
// given back behind its back, or the storm would be over.
func believe(ctx context.Context, s *tampered, stmts []pg.Stmt, left *atomic.Int64) error {
	if err := s.Session.RunAll(ctx, stmts...); err != nil || stmts[0].SQL != dblock.SQLHeld {
		return err
	}
	n := stmts[0].Dest[0].(*int64)
	if *n == 0 {
		return nil
	}
	left.Add(1)
	*n = 0
	return s.Run(ctx, pg.Stmt{SQL: `SELECT pg_advisory_unlock($1::bigint)`, Args: stmts[0].Args, Dest: []any{new(bool)}})
}

// timeouts makes that many, and counts what is left of them.
func timeouts(t *testing.T, seed uint64, want int, driver func(pg.Driver[pgx.Tx]) pg.Driver[pgx.Tx]) (timedOut, granted, left int64) {
	t.Helper()
	b := newBench(t)
	const keys = 4
	var out, in atomic.Int64
	var wg sync.WaitGroup
	for p := range 3 {
		d := pg.Driver[pgx.Tx](pgxdriver.New(b.pool))
		if driver != nil {
			d = driver(d)
		}
		c := clientOn(t, d, &dblock.Config{TTL: time.Hour}) // or idle sessions would be closed, with what they hold
		c.SetLimits(1000, 2*time.Millisecond, time.Millisecond)
		for caller := range 16 {
			random := rand.New(rand.NewPCG(seed, uint64(16*p+caller)))
			wg.Go(func() {
				for out.Load() < int64(want) && t.Context().Err() == nil {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(random.Int64N(int64(30*time.Millisecond))))
					l, err := c.Acquire(ctx, key(fmt.Sprint(random.IntN(keys))), nil)
					switch {
					case err == nil:
						in.Add(1)
						pause(ctx.Done(), time.Duration(random.Int64N(int64(4*time.Millisecond))))
						release(t, l)
					case errors.Is(err, dblock.ErrNotAcquired) && errors.Is(err, context.DeadlineExceeded):
						out.Add(1)
					default:
						t.Error(err)
					}
					cancel()
				}
			})
		}
	}
	wg.Wait()
	pgtest.Eventually(t, "waits are over", func() bool { left = b.keyLocks(t, keys); return left == 0 })
	return out.Load(), in.Load(), left
}

// Two keys with one number: the second is refused, in one process; it would wait for itself.
func TestCollisionsAreFoundOut(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.client(t, nil)
	c.SetNumber(func(dblock.Key) int64 { return 7 })
	l := acquire(t, c, "1", nil)
	if _, err := c.Acquire(within(t), key("2"), nil); !errors.Is(err, dblock.ErrCollision) {
		t.Errorf("got %v", err)
	}
	if _, err := c.Acquire(l.Context(), key("2"), nil); !errors.Is(err, dblock.ErrCollision) {
		t.Errorf("with the ctx of the first: got %v", err)
	}
	release(t, l)
	release(t, acquire(t, c, "2", nil))
}

// A holder that takes longer than it said is reported once, and keeps the lock.
func TestOverrun(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var mu sync.Mutex
	seen := map[dblock.EventKind]int{}
	c := b.client(t, &dblock.Config{Observe: func(e dblock.Event) {
		mu.Lock()
		defer mu.Unlock()
		seen[e.Kind]++
	}})
	count := func(kind dblock.EventKind) int {
		mu.Lock()
		defer mu.Unlock()
		return seen[kind]
	}
	l, err := c.Acquire(within(t), key("1"), &dblock.LockConfig{Expect: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "it is reported", func() bool { return count(dblock.Overrun) == 1 })
	if l.Err() != nil {
		t.Error(l.Err())
	}
	release(t, l)
	quick, err := c.Acquire(within(t), key("1"), &dblock.LockConfig{Expect: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	release(t, quick)
	if _, err := c.TryAcquire(within(t), key("x\n"), nil); err == nil {
		t.Error("a bad key was accepted")
	}
	for kind, want := range map[dblock.EventKind]int{dblock.Acquired: 2, dblock.Released: 2, dblock.Overrun: 1, dblock.Lost: 0} {
		if got := count(kind); got != want {
			t.Errorf("%v: %d events, want %d", kind, got, want)
		}
	}
}

// Callers whose ctx has no end send by themselves what they ask for. They exclude each other as all do, and leave nothing.
func TestCallersThatLead(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.client(t, nil)
	const callers, rounds, keys = 24, 60, 8
	var inside [keys]atomic.Int32
	var wg sync.WaitGroup
	for caller := range callers {
		wg.Go(func() {
			for round := range rounds {
				k := (caller + round) % keys
				l, err := c.Acquire(context.Background(), key(fmt.Sprint(k)), nil)
				if err != nil {
					t.Error(err)
					return
				}
				if n := inside[k].Add(1); n != 1 {
					t.Errorf("%d holders", n)
				}
				inside[k].Add(-1)
				if err := l.Release(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if locks, entries := c.Used(); locks != 0 || entries != 0 {
		t.Errorf("%d locks and %d keys are still counted", locks, entries)
	}
}

// Close in the middle of a storm: every caller gets an answer, nothing is left, and the others go on.
func TestCloseUnderLoad(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	all := b.clients(t, 3, nil)
	closing, other := all[0], all[1:]
	var wg sync.WaitGroup
	var told atomic.Int64
	began := make(chan struct{}, 1)
	for range 20 {
		wg.Go(func() {
			for i := 0; ; i++ {
				l, err := closing.Acquire(within(t), key(fmt.Sprint(i%3)), nil)
				if errors.Is(err, dblock.ErrClosed) {
					told.Add(1)
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				if err := l.Release(t.Context()); err != nil && !errors.Is(err, dblock.ErrLost) {
					t.Error(err)
				}
				if i == 20 {
					select {
					case began <- struct{}{}:
					default:
					}
				}
			}
		})
	}
	for _, c := range other {
		wg.Go(func() {
			for i := range 60 {
				release(t, acquire(t, c, fmt.Sprint(i%3), nil))
			}
		})
	}
	<-began
	if err := closing.Close(within(t)); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if told.Load() != 20 {
		t.Errorf("%d callers were told", told.Load())
	}
	if locks, keys := closing.Used(); locks != 0 || keys != 0 {
		t.Errorf("%d locks and %d keys are still counted", locks, keys)
	}
}
