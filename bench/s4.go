package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// newKeysOfDo is S4.
func newKeysOfDo() target {
	return target{"S4", "`idem.Do` of a new key with one business write, beside the same write in a bare transaction", measureNewKeys}
}

const (
	bareTransaction = "bare transaction"
	proxyDelay      = time.Millisecond
)

func measureNewKeys(ctx context.Context, g *ground) error {
	var ids requests
	for _, workers := range []int{1, 32} {
		if err := g.newKeysAt(ctx, workers, &ids); err != nil {
			return err
		}
	}
	return g.newKeysFarAway(ctx, &ids)
}

// newKeysAt measures with a number of goroutines, and a connection for each.
func (g *ground) newKeysAt(ctx context.Context, workers int, ids *requests) error {
	k, err := newKeys(ctx, g.postgres.url, workers, nil)
	if err != nil {
		return err
	}
	defer k.pool.Close()
	hand, err := k.watch(ctx)
	if err != nil {
		return err
	}
	contenders := append(k.newKeyContenders(workers, false, ids),
		repeated(doByHand, workers, false, func(ctx context.Context) error { return hand.do(ctx, ids.next()) }))
	row := fmt.Sprintf("c=%d", workers)
	found, err := g.alternate(ctx, "S4 "+row, contenders)
	if err != nil {
		return err
	}
	g.report.compare(row, "keys/s", contenders, found)
	g.report.atLeast(row+" vs=bare", "ratio", found[us].over(found[bareTransaction], (*sample).rate), 0.75)
	g.report.floor(doByHand, found[doByHand], "the bare transaction", found[bareTransaction])
	return nil
}

func (k *keys) newKeyContenders(workers int, timed bool, ids *requests) []contender {
	return []contender{
		repeated(us, workers, timed, func(ctx context.Context) error { return k.do(ctx, ids.next(), "") }),
		repeated(bareTransaction, workers, timed, func(ctx context.Context) error { return k.bare(ctx, ids.next()) }),
	}
}

// newKeysFarAway measures over a network that takes a millisecond for a round trip.
func (g *ground) newKeysFarAway(ctx context.Context, ids *requests) (err error) {
	proxy, url, err := newDelay(g.postgres.url, proxyDelay)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, proxy.close()) }()
	k, err := newKeys(ctx, url, 1, nil)
	if err != nil {
		return err
	}
	defer k.pool.Close()
	contenders := k.newKeyContenders(1, true, ids)
	found, err := g.alternate(ctx, "S4 trip=1ms", contenders)
	if err != nil {
		return err
	}
	g.report.latencies("c=1, 1 ms a round trip", contenders, found)
	g.report.atMost("trip=1ms vs=bare", "p50", found[us].over(found[bareTransaction], quantile(0.5)), 1.1)
	return nil
}
