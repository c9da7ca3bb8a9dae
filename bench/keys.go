package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/migrations"
)

// keys is this library's store of keys, on a pool that those beside it use too.
type keys struct {
	*idem.Store[pgx.Tx]
	pool      *pgxpool.Pool
	merchants int // whose keys are executed; 0 is as 1
}

// merchant is the scope of a new key.
func (k *keys) merchant() string {
	if k.merchants == 0 {
		return "merchant-1"
	}
	return "merchant-" + strconv.Itoa(rand.IntN(k.merchants))
}

// newKeys has as many connections as asked for.
func newKeys(ctx context.Context, url string, connections int, cfg *idem.Config) (*keys, error) {
	poolCfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	poolCfg.MaxConns = int32(connections)
	pool, err := pgxpool.NewWithConfig(ctx, poolCfg)
	if err != nil {
		return nil, err
	}
	store, err := idem.New(pgxdriver.New(pool), cfg)
	if err == nil {
		err = prepare(ctx, pool, cfg)
	}
	if err != nil {
		pool.Close()
		return nil, err
	}
	return &keys{Store: store, pool: pool}, nil
}

// prepare makes the tables: ours, and one for the business.
func prepare(ctx context.Context, pool *pgxpool.Pool, cfg *idem.Config) error {
	schema := ""
	if cfg != nil {
		schema = cfg.Schema
	}
	_, err1 := migrations.UpPool(ctx, pool, &migrations.Config{Schema: schema})
	_, err2 := pool.Exec(ctx, `CREATE TABLE IF NOT EXISTS refund (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, request text NOT NULL, amount bigint NOT NULL)`)
	return errors.Join(err1, err2)
}

// receipt is the answer of a refund.
type receipt struct {
	RefundID int64
	Note     string
}

// sqlRefund is the write of the business.
const sqlRefund = `INSERT INTO refund (request, amount) VALUES ($1, $2) RETURNING id`

var refunds = idem.Op{Name: "refund.create", Wait: time.Minute}

// requests numbers what is asked for; each number is used once.
type requests struct{ last atomic.Int64 }

// next is an id of the length of a UUID's text.
func (r *requests) next() string { return requestID(r.last.Add(1)) }

func requestID(n int64) string { return fmt.Sprintf("5f1b0c2e-8d1c-4e09-9c59-%012d", n) }

// do executes a new key with one write of the business.
func (k *keys) do(ctx context.Context, id, note string) error {
	res, err := idem.Do(ctx, k.Store, refunds.Key(k.merchant(), id), idem.Bytes([]byte(id)), func(ctx context.Context, tx pgx.Tx) (receipt, error) {
		r := receipt{Note: note}
		return r, tx.QueryRow(ctx, sqlRefund, id, 100).Scan(&r.RefundID)
	})
	if err == nil && res.Replayed {
		err = fmt.Errorf("%s was not new", id)
	}
	return err
}

// again asks for a key that was executed.
func (k *keys) again(ctx context.Context, id string) error {
	res, err := idem.Do(ctx, k.Store, refunds.Key("merchant-1", id), idem.Bytes([]byte(id)), func(context.Context, pgx.Tx) (receipt, error) {
		return receipt{}, fmt.Errorf("%s is new", id)
	})
	if err == nil && !res.Replayed {
		err = fmt.Errorf("%s was executed again", id)
	}
	return err
}

// bare is the same write without a key.
func (k *keys) bare(ctx context.Context, id string) error {
	tx, err := k.pool.Begin(ctx)
	if err != nil {
		return err
	}
	var refundID int64
	if err := tx.QueryRow(ctx, sqlRefund, id, 100).Scan(&refundID); err != nil {
		return errors.Join(err, tx.Rollback(ctx))
	}
	return tx.Commit(ctx)
}

// repeated is a contender that does one thing again and again in some goroutines. Its waits are how long each took.
func repeated(name string, workers int, timed bool, op func(ctx context.Context) error) contender {
	return contender{name: name, run: func(ctx context.Context, d time.Duration) (sample, error) {
		return hammer(ctx, workers, d, func(ctx context.Context, _ int) (time.Duration, error) {
			if !timed {
				return 0, op(ctx)
			}
			began := time.Now()
			err := op(ctx)
			return time.Since(began), err
		})
	}}
}

// quantile is a figure of a sample.
func quantile(part float64) func(*sample) float64 {
	return func(s *sample) float64 { return float64(s.waits.quantile(part)) }
}

// latencies writes a table of how long each contender takes.
func (r *report) latencies(row string, contenders []contender, found map[string]series) {
	r.printf("| %s | p50 | p99 | p50, pgonce to this one |\n|---|---:|---:|---:|\n", row)
	for _, c := range contenders {
		s, times := found[c.name], ""
		if c.name != us {
			times = fmt.Sprintf("%.2fx", found[us].over(s, quantile(0.5)))
		}
		r.printf("| %s | %v | %v | %s |\n", c.name, rounded(s.of(quantile(0.5))), rounded(s.of(quantile(0.99))), times)
	}
	r.printf("\n")
}

func rounded(ns float64) time.Duration { return time.Duration(ns).Round(time.Microsecond) }
