//go:build unix

package dblock_test

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/internal/pgtest"
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

// A wait that began when nobody else wanted its connection is cut when somebody does: the key that has waited for
// the longest time gets the connection next.
func TestWaitsFromBeforeTheCapAreCut(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	holder, rival, c := b.client(t, nil), b.client(t, nil), b.client(t, &dblock.Config{MaxWaiters: 2})
	c.SetLimits(1000, time.Hour, 20*time.Millisecond)
	var held []*locked
	for k := range 3 {
		held = append(held, acquire(t, holder, fmt.Sprint(k), nil))
	}
	var wg sync.WaitGroup
	want := func(c *client, k string) {
		wg.Go(func() { release(t, acquire(t, c, k, nil)) })
	}
	want(c, "0") // for as long as it takes
	waiting(t, b, 1)
	owned := make(chan *locked)
	go func() { owned <- acquire(t, c, "1", nil) }()
	waiting(t, b, 2)
	release(t, held[1])
	second := <-owned // it stays on the other connection
	want(rival, "2")  // so that asking now and then is no way to have it
	waiting(t, b, 2)
	want(c, "2")
	pgtest.Eventually(t, "both wait for the third key", func() bool {
		return b.Int(t, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND (classid::bigint << 32) | objid::bigint = $1`, key("2").Number()) == 2
	})
	pgtest.Eventually(t, "turns are taken", func() bool {
		return b.Int(t, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND (classid::bigint << 32) | objid::bigint = $1`, key("0").Number()) == 1
	})
	release(t, held[0])
	release(t, held[2])
	release(t, second)
	wg.Wait()
}

// Connections of one database are made ready one by one. Who has to wait for that waits for as long as for a server that is
// slow, however short the waits for keys are.
func TestConnectingWaitsForOthers(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.client(t, nil)
	c.SetLimits(1000, time.Millisecond, time.Millisecond)
	held := acquire(t, b.client(t, nil), "1", nil)
	_, gate, _ := dblock.Join()
	tx, err := b.pool.Begin(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(within(t), `SELECT pg_advisory_xact_lock($1)`, gate); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { release(t, acquire(t, c, "1", nil)) })
	pgtest.Eventually(t, "it has waited for longer than for a key", func() bool {
		return b.Int(t, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND waitstart < clock_timestamp() - interval '50 ms'`) == 1
	})
	if err := tx.Rollback(within(t)); err != nil {
		t.Error(err)
	}
	release(t, held)
	wg.Wait()
}
