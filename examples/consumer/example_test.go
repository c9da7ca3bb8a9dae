//go:build unix

package consumer_test

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/examples/consumer"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// The bank publishes a credit of a euro twice, and something that is none.
func ExamplePoller() {
	pgtest.Example(consumer.Tables, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		for _, m := range []struct{ id, body string }{
			{"m1", `{"account": "a", "cents": 100}`}, {"m1", `{"account": "a", "cents": 100}`}, {"m2", `{"account": "a"}`},
		} {
			if _, err := pool.Exec(ctx, `INSERT INTO inbox (source, message, body) VALUES ('bank', $1, $2)`, m.id, []byte(m.body)); err != nil {
				return err
			}
		}
		poller := &consumer.Poller{Pool: pool, Handle: consumer.Once(keys, consumer.AddCredit), Invisible: time.Minute, MaxAttempts: 5}
		for worked := true; worked; {
			if worked, err = poller.Next(ctx); err != nil {
				return err
			}
		}
		var cents, waiting, aside int64
		err = pool.QueryRow(ctx, `SELECT (SELECT sum(cents) FROM credit), count(*) FILTER (WHERE dead IS NULL), count(dead) FROM inbox`).Scan(&cents, &waiting, &aside)
		fmt.Printf("%d cents, %d waiting, %d put aside\n", cents, waiting, aside)
		return err
	})
	// Output: 100 cents, 0 waiting, 1 put aside
}
