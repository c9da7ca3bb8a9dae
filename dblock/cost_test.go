//go:build unix

package dblock_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// wired is a bench whose connections count their round trips.
func wired(t *testing.T) (bench, *pgtest.Wire) {
	t.Helper()
	db := pgtest.New(t)
	cfg := db.Config(t)
	wire := pgtest.NewWire()
	cfg.ConnConfig.DialFunc = wire.Dial(cfg.ConnConfig.DialFunc)
	return bench{db, db.Open(t, cfg)}, wire
}

var quiet = &dblock.Config{TTL: time.Hour} // no heartbeats

// A free key costs one round trip to take and one to give back; a hand-over in memory none; many keys at once few.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	b, wire := wired(t)
	c := b.client(t, quiet)
	for range 3 { // statements are prepared
		release(t, acquire(t, c, "1", nil))
		release(t, acquire(t, c, "1", &dblock.LockConfig{Shared: true}))
	}
	trips := func(what string, least, most int64, fn func()) {
		t.Helper()
		before := wire.Trips()
		fn()
		if n := wire.Trips() - before; n < least || n > most {
			t.Errorf("%s: %d round trips, want %d to %d", what, n, least, most)
		}
	}
	var l *locked
	trips("take", 1, 1, func() { l = acquire(t, c, "1", nil) })
	trips("refused in memory", 0, 0, func() {
		if _, err := c.TryAcquire(within(t), key("1"), nil); err == nil {
			t.Error("taken twice")
		}
	})
	trips("give back", 1, 1, func() { release(t, l) })
	trips("shared", 1, 1, func() {
		l = acquire(t, c, "1", &dblock.LockConfig{Shared: true})
	})
	release(t, l)
}

// What comes while a request is under way travels in the next one: at most two round trips for many keys, to take them and to
// give them back, and one to prepare the statement for several. All of them may have come before the first was sent.
func TestKeysTravelTogether(t *testing.T) {
	t.Parallel()
	const n = 200
	all := func(fn func(i int)) (done func()) {
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() { fn(i) })
		}
		return wg.Wait
	}
	for what, back := range map[string]bool{"taken": false, "given back": true} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			b, wire := wired(t)
			c := b.client(t, quiet)
			release(t, acquire(t, c, "0", nil))
			var held [n]*locked
			act := func(i int) { held[i] = acquire(t, c, fmt.Sprint(i), nil) }
			if back {
				all(act)()
				act = func(i int) { release(t, held[i]) }
			}
			before := wire.Trips()
			wire.HoldAfter(0)
			done := all(act)
			pgtest.Eventually(t, "all have come", func() bool {
				asked, held := c.OnTheirWay()
				return held == 0 && (back || asked == n)
			})
			wire.Release()
			done()
			if got := wire.Trips() - before; got > 3 {
				t.Errorf("%d keys are %s in %d round trips", n, what, got)
			}
			if !back {
				all(func(i int) { release(t, held[i]) })()
			}
		})
	}
}

// Callers of one process hand a key over in memory: far less than a round trip for each.
func TestHandOversCostNoTrip(t *testing.T) {
	t.Parallel()
	b, wire := wired(t)
	c := b.client(t, quiet)
	release(t, acquire(t, c, "1", nil))
	const callers, rounds = 16, 200
	before := wire.Trips()
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range rounds {
				release(t, acquire(t, c, "1", nil))
			}
		})
	}
	wg.Wait()
	trips := wire.Trips() - before
	t.Logf("%d trips for %d tenures", trips, callers*rounds)
	if trips > callers*rounds/4 {
		t.Errorf("%d round trips for %d tenures", trips, callers*rounds)
	}
}
