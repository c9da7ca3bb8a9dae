//go:build unix

package dblock_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
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

func key(id string) dblock.Key { return dblock.Key{Space: "order", ID: id} }

// bench is a database with one pool, over which every client of a test is made: each client has sessions of
// its own, as a process has.
type bench struct {
	*pgtest.DB
	pool *pgxpool.Pool
}

func newBench(t *testing.T) bench {
	t.Helper()
	db := pgtest.New(t)
	return bench{db, db.Pool(t)}
}

// client is closed at the end of the test, which fails if that does not go well.
func (b bench) client(t *testing.T, cfg *dblock.Config) *dblock.Client[pgx.Tx] {
	t.Helper()
	return clientOf(t, b.pool, cfg)
}

// clients are several, made before the first is used, so that they meet.
func (b bench) clients(t *testing.T, n int, cfg *dblock.Config) (all []*dblock.Client[pgx.Tx]) {
	t.Helper()
	for range n {
		all = append(all, b.client(t, cfg))
	}
	return all
}

func clientOf(t *testing.T, pool *pgxpool.Pool, cfg *dblock.Config) *dblock.Client[pgx.Tx] {
	t.Helper()
	return clientOn(t, pgxdriver.New(pool), cfg)
}

func clientOn(t *testing.T, d pg.Driver[pgx.Tx], cfg *dblock.Config) *dblock.Client[pgx.Tx] {
	t.Helper()
	c, err := dblock.New(t.Context(), d, cfg)
	return closing(t, c, err)
}

// closing closes a new client at the end of the test, which fails if that does not go well.
func closing(t *testing.T, c *client, err error) *client {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return c
}

type (
	client = dblock.Client[pgx.Tx]
	locked = dblock.Lock[pgx.Tx]
)

// seedOf is a number to make choices by: $DBLOCK_SEED, or a new one.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(rand.Int64())
	if s := os.Getenv("DBLOCK_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("seed %d: set DBLOCK_SEED to repeat its choices", seed)
	return seed
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func acquire(t *testing.T, c *dblock.Client[pgx.Tx], id string, cfg *dblock.LockConfig) *dblock.Lock[pgx.Tx] {
	t.Helper()
	l, err := c.Acquire(within(t), key(id), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func release(t *testing.T, l *dblock.Lock[pgx.Tx]) {
	t.Helper()
	if err := l.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

// Callers in several clients, as in several processes, take turns on a few keys.
func TestStorm(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	takeTurns(t, b.clients(t, 4, nil), 40)
}

// takeTurns has callers of all clients take turns on a few keys: never two at once, and tokens that grow.
func takeTurns(t *testing.T, clients []*client, rounds int) {
	t.Helper()
	const callers, keys = 6, 3
	var inside, last [keys]atomic.Int64
	var wg sync.WaitGroup
	for _, c := range clients {
		for caller := range callers {
			wg.Go(func() {
				for i := range rounds {
					k := (caller + i) % keys
					l, err := c.Acquire(within(t), key(fmt.Sprint(k)), nil)
					if err != nil {
						t.Error(err)
						return
					}
					if n := inside[k].Add(1); n != 1 {
						t.Errorf("%d inside", n)
					}
					if token := int64(l.Token()); last[k].Swap(token) >= token {
						t.Error("tokens went backwards")
					}
					inside[k].Add(-1)
					release(t, l)
				}
			})
		}
	}
	wg.Wait()
}

func TestTryNeverWaits(t *testing.T) {
	t.Parallel()
	bench := newBench(t)
	a, b := bench.client(t, nil), bench.client(t, nil)
	l := acquire(t, a, "1", nil)
	for _, c := range []*dblock.Client[pgx.Tx]{a, b} {
		if _, err := c.TryAcquire(within(t), key("1"), nil); !errors.Is(err, dblock.ErrNotAcquired) {
			t.Errorf("got %v", err)
		}
	}
	release(t, l)
	l, err := b.TryAcquire(within(t), key("1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	release(t, l)
}
