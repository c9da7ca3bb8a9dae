package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/dblock"
)

// manyLocks is the part of S10 that is about locks.
func manyLocks() target {
	return target{"S10", "many locks held by one process, over a few connections", measureManyLocks}
}

const (
	applicationName = "pgonce-bench-many"
	mostConnections = 24
	ownLocksOfEach  = 2 // by which a session says that it is alive

	sqlConnections = `
SELECT count(*), (SELECT count(*) FROM pg_locks l JOIN pg_stat_activity b USING (pid)
                  WHERE l.locktype = 'advisory' AND l.granted AND b.application_name LIKE '%' || $1)
FROM pg_stat_activity WHERE application_name LIKE '%' || $1`
)

func measureManyLocks(ctx context.Context, g *ground) error {
	count := 20_000
	if g.opt.smoke {
		count = 2_000
	}
	ours, err := newLocks(ctx, g.postgres.as(applicationName), &dblock.Config{MaxLocks: count + 1_000, Holder: applicationName})
	if err != nil {
		return err
	}
	return errors.Join(g.hold(ctx, ours, count), ours.close(ctx))
}

func (g *ground) hold(ctx context.Context, ours *locks, count int) error {
	keys := make([]dblock.Key, count)
	for i := range keys {
		keys[i] = dblock.Key{Space: "many", ID: strconv.Itoa(i)}
	}
	held := make([]*dblock.Lock[pgx.Tx], count)
	before, began := memory(), time.Now()
	if err := inParallel(256, count, func(i int) (err error) {
		held[i], err = ours.Acquire(ctx, keys[i], nil)
		return err
	}); err != nil {
		return err
	}
	took := time.Since(began)
	perLock := float64(memory()-before) / float64(count)
	connections, err := g.connections(ctx, count)
	if err != nil {
		return err
	}
	perWaiter, err := wait(ctx, ours, keys)
	if err != nil {
		return err
	}
	g.report.printf("| locks held | taken in | connections | memory of a held lock | memory of a waiter, with its goroutine |\n|---:|---:|---:|---:|---:|\n")
	g.report.printf("| %s | %v | %d | %s bytes | %s bytes |\n\n", grouped(float64(count)), took.Round(time.Millisecond), connections, grouped(perLock), grouped(perWaiter))
	g.report.atMost(fmt.Sprintf("locks=%d", count), "connections", float64(connections), mostConnections)
	return inParallel(256, count, func(i int) error { return held[i].Release(ctx) })
}

// connections counts those of our client, on the server, and sees to it that the locks are there.
func (g *ground) connections(ctx context.Context, locks int) (n int, err error) {
	conn, err := pgx.Connect(ctx, g.postgres.url)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close(ctx) }()
	var there int
	if err := conn.QueryRow(ctx, sqlConnections, applicationName).Scan(&n, &there); err != nil {
		return 0, err
	}
	if least, most := locks, locks+n*ownLocksOfEach; there < least || there > most {
		return n, fmt.Errorf("the server has %d locks of ours, not %d to %d", there, least, most)
	}
	return n, nil
}

// wait lets somebody wait for every key, in this process, and says what memory that takes for each.
func wait(ctx context.Context, ours *locks, keys []dblock.Key) (bytes float64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in := &countingContext{Context: ctx}
	var wg sync.WaitGroup
	var wrong atomic.Int64
	before := memory()
	for _, key := range keys {
		wg.Go(func() {
			if _, err := ours.Acquire(in, key, nil); !errors.Is(err, dblock.ErrNotAcquired) {
				wrong.Add(1)
			}
		})
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for in.waiting.Load() < int64(len(keys)) {
		<-tick.C
	}
	bytes = float64(memory()-before) / float64(len(keys))
	cancel()
	wg.Wait()
	if n := wrong.Load(); n > 0 {
		return 0, fmt.Errorf("%d of those that waited got a lock that was held", n)
	}
	return bytes, nil
}

// countingContext knows how many wait for its end.
type countingContext struct {
	context.Context
	waiting atomic.Int64
}

// Done implements context.Context.
func (c *countingContext) Done() <-chan struct{} {
	c.waiting.Add(1)
	return c.Context.Done()
}

// memory is what is in use after a collection, stacks included.
func memory() int64 {
	runtime.GC()
	runtime.GC() // what finalizers and pools held on to
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// inParallel does n things in some goroutines.
func inParallel(workers, n int, do func(i int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, workers)
	for w := range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && errs[w] == nil; i = int(next.Add(1)) - 1 {
				errs[w] = do(i)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
