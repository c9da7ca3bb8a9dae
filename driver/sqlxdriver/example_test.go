//go:build unix

package sqlxdriver_test

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/jmoiron/sqlx"
	"github.com/pgonce/pgonce/driver/sqlxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

func Example() {
	pgtest.Example(``, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(sqlxdriver.New(sqlx.NewDb(stdlib.OpenDBFromPool(pool), "pgx")), nil)
		if err != nil {
			return err
		}
		op := idem.Op{Name: "greet"}
		res, err := idem.Do(ctx, keys, op.Key("tenant", "1"), idem.NoFingerprint(),
			func(ctx context.Context, tx *sqlx.Tx) (greeting string, err error) {
				err = tx.GetContext(ctx, &greeting, `SELECT 'by sqlx'`)
				return greeting, err
			})
		fmt.Println(res.Value, err)
		return nil
	})
	// Output: by sqlx <nil>
}
