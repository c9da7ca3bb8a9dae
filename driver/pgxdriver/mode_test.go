//go:build unix

package pgxdriver_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// batches counts what is sent as a batch.
type batches struct{ n atomic.Int64 }

func (b *batches) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	b.n.Add(1)
	return ctx
}
func (*batches) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (*batches) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}
func (*batches) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (*batches) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// In the mode that would describe one statement and execute another, a statement that is alone travels as a batch: whether the pool has that
// mode, or a hook gives it to the connection.
func TestStatementAloneInDescribeExec(t *testing.T) {
	t.Parallel()
	const split, whole = pgx.QueryExecModeDescribeExec, pgx.QueryExecModeCacheStatement
	for name, tc := range map[string]struct {
		pool, hook pgx.QueryExecMode
		want       int64
	}{
		"the pool's":            {split, split, 2},
		"the hook's":            {whole, split, 2},
		"not the hook's":        {split, whole, 0},
		"neither's":             {whole, whole, 0},
		"the pool's, no hook":   {split, -1, 2},
		"not the pool's either": {whole, -1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, seen := pgtest.New(t), &batches{}
			cfg := db.Config(t)
			cfg.ConnConfig.Tracer, cfg.ConnConfig.DefaultQueryExecMode = seen, tc.pool
			if tc.hook >= 0 {
				cfg.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
					c.DefaultQueryExecMode = tc.hook
					return nil
				}
			}
			q := pgxdriver.New(db.Open(t, cfg)).Pool()
			if err := q.Run(t.Context(), pg.Stmt{SQL: pg.SQLBackendPID, Dest: []any{new(int64)}}); err != nil {
				t.Fatal(err)
			}
			for _, err := range q.Query(t.Context(), pg.SQLBackendPID) {
				if err != nil {
					t.Fatal(err)
				}
			}
			if got := seen.n.Load(); got != tc.want {
				t.Errorf("%d of two statements travelled as a batch, want %d", got, tc.want)
			}
		})
	}
}

// Whoever only writes a migration has a pool that was never opened.
func TestPoolThatWasNotOpened(t *testing.T) {
	t.Parallel()
	if err := pgxdriver.New(new(pgxpool.Pool)).Err(); err != nil {
		t.Error(err)
	}
}
