//go:build unix

package sqldriver_test

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgonce/pgonce/driver/sqldriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

func Example() {
	pgtest.Example(``, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(sqldriver.New(stdlib.OpenDBFromPool(pool)), nil)
		if err != nil {
			return err
		}
		op := idem.Op{Name: "greet"}
		res, err := idem.Do(ctx, keys, op.Key("tenant", "1"), idem.NoFingerprint(),
			func(ctx context.Context, tx *sql.Tx) (greeting string, err error) {
				err = tx.QueryRowContext(ctx, `SELECT 'by database/sql'`).Scan(&greeting)
				return greeting, err
			})
		fmt.Println(res.Value, err)
		return nil
	})
	// Output: by database/sql <nil>
}
