//go:build unix

package dblock_test

import (
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgonce/pgonce/dblock"
)

// Many more keys are wanted all the time by every process than it has connections for waiting. All are served, by turns; nobody
// starves. Waits are counted in hand-overs of the key, and shares in grants, so that a slow machine changes nothing.
func TestHotKeysBeyondTheCap(t *testing.T) {
	t.Parallel()
	const processes = 4
	keys, each := scale(60, 1000), scale(15, 20)
	b := newBench(t)
	h := &hotKeys{turns: make([]atomic.Int64, keys), served: make([][processes]int64, keys), longest: make([][processes]int64, keys), waited: make([][processes]time.Duration, keys)}
	for p, c := range b.clients(t, processes, &dblock.Config{MaxWaiters: 8, TTL: time.Hour}) {
		for k := range keys {
			h.wg.Go(func() {
				for h.total.Load() < int64(processes*keys*each) && t.Context().Err() == nil {
					h.turn(t, c, p, k)
				}
			})
		}
	}
	h.wg.Wait()
	least, most, longest, waited := int64(math.MaxInt64), int64(0), int64(0), time.Duration(0)
	for k := range keys {
		for p := range processes {
			least, most = min(least, h.served[k][p]), max(most, h.served[k][p])
			longest, waited = max(longest, h.longest[k][p]), max(waited, h.waited[k][p])
		}
	}
	t.Logf("keys=%d processes=%d connections=8 grants=%d least_served=%d most_served=%d longest_wait=%d hand-overs (%v)", keys, processes, h.total.Load(), least, most, longest, waited)
	if least == 0 {
		t.Error("somebody starved")
	}
}

// hotKeys counts for each key and process.
type hotKeys struct {
	wg      sync.WaitGroup
	total   atomic.Int64
	turns   []atomic.Int64 // of a key so far
	served  [][4]int64
	longest [][4]int64
	waited  [][4]time.Duration
}

func (h *hotKeys) turn(t *testing.T, c *client, p, k int) {
	t.Helper()
	asked, before := time.Now(), h.turns[k].Load()
	l, err := c.Acquire(t.Context(), keyNumber(k), nil)
	if err != nil {
		t.Error(err)
		return
	}
	h.waited[k][p] = max(h.waited[k][p], time.Since(asked))
	h.longest[k][p] = max(h.longest[k][p], h.turns[k].Add(1)-1-before)
	h.served[k][p]++
	h.total.Add(1)
	pause(nil, time.Millisecond)
	release(t, l)
}
