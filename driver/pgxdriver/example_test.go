//go:build unix

package pgxdriver_test

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

func Example() {
	pgtest.Example(``, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		op := idem.Op{Name: "greet"}
		res, err := idem.Do(ctx, keys, op.Key("tenant", "1"), idem.NoFingerprint(),
			func(ctx context.Context, tx pgx.Tx) (greeting string, err error) {
				err = tx.QueryRow(ctx, `SELECT 'by pgx'`).Scan(&greeting)
				return greeting, err
			})
		fmt.Println(res.Value, err)
		return nil
	})
	// Output: by pgx <nil>
}
