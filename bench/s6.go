package main

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/idem"
)

// repeats is S6.
func repeats() target {
	return target{"S6", "repeats of keys that were executed, beside a bare SELECT by primary key", measureRepeats}
}

const (
	bareSelect  = "bare SELECT by primary key"
	repeatByDo  = "pgonce, Do"
	repeatCount = 1000
	// leastConnections are what a pgx pool has by default, at the least. The transaction of a repeat is ended after its answer: with one
	// connection, the next call would wait for that.
	leastConnections = 4
	// sqlResult is what somebody would write by hand.
	sqlResult = `SELECT result FROM pgonce.idem_record WHERE scope = $1 AND digest = $2`
)

func measureRepeats(ctx context.Context, g *ground) error {
	for _, workers := range []int{1, 32} {
		if err := g.repeatsAt(ctx, workers); err != nil {
			return err
		}
	}
	return nil
}

func (g *ground) repeatsAt(ctx context.Context, workers int) error {
	k, err := newKeys(ctx, g.postgres.url, max(workers, leastConnections), nil)
	if err != nil {
		return err
	}
	defer k.pool.Close()
	done, err := k.execute(ctx, fmt.Sprintf("repeats-%d-", workers))
	if err != nil {
		return err
	}
	hand, err := k.watch(ctx)
	if err != nil {
		return err
	}
	contenders := k.repeatContenders(workers, done, hand)
	row := fmt.Sprintf("c=%d", workers)
	found, err := g.alternate(ctx, "S6 "+row, contenders)
	if err != nil {
		return err
	}
	g.report.compare(row, "answers/s", contenders, found)
	bare := found[bareSelect]
	g.report.atLeast(row+" Lookup vs=select", "ratio", found[us].over(bare, (*sample).rate), 0.8)
	g.report.atLeast(row+" Do vs=select", "ratio", found[repeatByDo].over(bare, (*sample).rate), 0.4)
	g.report.floor(doByHand, found[doByHand], "the SELECT", bare)
	return nil
}

// finished is a key that was executed.
type finished struct {
	ID     string
	Digest []byte
}

// execute makes keys to be repeated, and finds where they are stored.
func (k *keys) execute(ctx context.Context, prefix string) (done []finished, err error) {
	for i := range repeatCount {
		if err := k.do(ctx, prefix+requestID(int64(i)), "a receipt"); err != nil {
			return nil, err
		}
	}
	rows, err := k.pool.Query(ctx, `SELECT id, digest FROM pgonce.idem_record WHERE id LIKE $1 || '%'`, prefix)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[finished])
}

func (k *keys) repeatContenders(workers int, done []finished, hand *byHand) []contender {
	var turn atomic.Int64
	next := func() finished { return done[turn.Add(1)%int64(len(done))] }
	return []contender{
		repeated(us, workers, false, func(ctx context.Context) error {
			id := next().ID
			_, ok, err := idem.Lookup[receipt](ctx, k.Store, refunds.Key("merchant-1", id), idem.Bytes([]byte(id)))
			if err == nil && !ok {
				err = fmt.Errorf("%s is not there", id)
			}
			return err
		}),
		repeated(repeatByDo, workers, false, func(ctx context.Context) error { return k.again(ctx, next().ID) }),
		repeated(doByHand, workers, false, func(ctx context.Context) error { return hand.again(ctx, next().Digest) }),
		repeated(bareSelect, workers, false, func(ctx context.Context) error {
			var data []byte
			return k.pool.QueryRow(ctx, sqlResult, "merchant-1", next().Digest).Scan(&data)
		}),
	}
}
