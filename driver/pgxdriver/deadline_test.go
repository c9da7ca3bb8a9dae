//go:build unix

package pgxdriver_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// The deadline of a trip ends with the trip: what the application does next on the connection may take longer. Where the trip
// itself was too slow, the connection is another one, and has none.
func TestNoDeadlineIsLeftBehind(t *testing.T) {
	t.Parallel()
	for name, trip := range map[string]func(ctx context.Context, d *pgxdriver.Driver, tx pg.OwnedTx[pgx.Tx]){
		"commit":   func(ctx context.Context, _ *pgxdriver.Driver, tx pg.OwnedTx[pgx.Tx]) { _ = tx.Commit(ctx) },
		"rollback": func(ctx context.Context, _ *pgxdriver.Driver, tx pg.OwnedTx[pgx.Tx]) { tx.Rollback(ctx) },
		"abandon":  func(ctx context.Context, _ *pgxdriver.Driver, tx pg.OwnedTx[pgx.Tx]) { tx.Abandon(ctx) },
		"run": func(ctx context.Context, d *pgxdriver.Driver, tx pg.OwnedTx[pgx.Tx]) {
			tx.Rollback(ctx)
			_ = d.Pool().Run(ctx, pg.Stmt{SQL: `SELECT 1`})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			cfg := db.Config(t)
			cfg.MaxConns = 1
			pool := db.Open(t, cfg)
			d := pgxdriver.New(pool)
			ctx := pg.WithNetTimeout(t.Context(), time.Second)
			tx, err := d.Begin(t.Context(), pg.ReadCommitted)
			if err != nil {
				t.Fatal(err)
			}
			trip(ctx, d, tx)
			if _, err := pool.Exec(t.Context(), `SELECT pg_sleep(1.5)`); err != nil {
				t.Errorf("after the trip: %v", err)
			}
		})
	}
}
