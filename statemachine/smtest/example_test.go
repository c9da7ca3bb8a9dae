//go:build unix

package smtest_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	sm "github.com/pgonce/pgonce/statemachine"
	"github.com/pgonce/pgonce/statemachine/smtest"
)

// In a test of the user's, with a pool on a database for tests. It prints nothing; the test fails, or says in its log what was tried.
func ExampleRun() {
	_ = func(t *testing.T, pool *pgxpool.Pool, orders *sm.Binding[int64, order, pgx.Tx]) { //nolint:thelper // it stands for a test
		create := func(ctx context.Context, state order) (id int64, err error) {
			err = pool.QueryRow(ctx, `INSERT INTO orders (state, amount) VALUES ($1, 100) RETURNING id`, string(state)).Scan(&id)
			return id, err
		}
		smtest.Run(t, pgxdriver.New(pool), orders, create, &smtest.Config[order]{
			Options: func(_ order, ev sm.Event[order]) []sm.Option { // what a CHECK of the table wants
				if ev == pay {
					return []sm.Option{sm.SetExpr("paid_at", "statement_timestamp()")}
				}
				return nil
			},
		})
	}
	// Output:
}

// In a test of the user's. PGONCE_UPDATE=1 go test writes the file.
func ExampleGolden() {
	_ = func(t *testing.T) { //nolint:thelper // it stands for a test
		smtest.Golden(t, "testdata/order.mmd", flow.Mermaid())
	}
	// Output:
}
