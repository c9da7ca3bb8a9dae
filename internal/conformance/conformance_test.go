//go:build unix

package conformance_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jmoiron/sqlx"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/driver/sqldriver"
	"github.com/pgonce/pgonce/driver/sqlxdriver"
	"github.com/pgonce/pgonce/internal/conformance"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

func TestPgx(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			conformance.Run(t, conformance.Client[pgx.Tx]{
				Open: func(t *testing.T, db *pgtest.DB, conns int) conformance.Pool[pgx.Tx] {
					cfg := db.Config(t)
					cfg.MaxConns = int32(conns)
					cfg.ConnConfig.DefaultQueryExecMode = mode
					pool := db.Open(t, cfg)
					return conformance.Pool[pgx.Tx]{
						Driver: pgxdriver.New(pool),
						BeginTx: func(ctx context.Context, level pg.Isolation) (pgx.Tx, error) {
							return pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.TxIsoLevel(level)})
						},
					}
				},
				Exec: func(ctx context.Context, tx pgx.Tx, sql string, args ...any) error {
					_, err := tx.Exec(ctx, sql, args...)
					return err
				},
				LeaveOpen: func(ctx context.Context, tx pgx.Tx, sql string) error {
					_, err := tx.Query(ctx, sql) //nolint:sqlclosecheck // that is the point
					return err
				},
				Commit:   func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) },
				Rollback: func(ctx context.Context, tx pgx.Tx) error { return tx.Rollback(ctx) },
				Guarded:  true,
			})
		})
	}
}

func TestDatabaseSQL(t *testing.T) {
	t.Parallel()
	conformance.Run(t, sqlClient(func(t *testing.T, db *pgtest.DB, conns int) conformance.Pool[*sql.Tx] {
		std := db.SQL(t)
		std.SetMaxOpenConns(conns)
		return conformance.Pool[*sql.Tx]{Driver: sqldriver.New(std), BeginTx: beginSQL(std.BeginTx)}
	}))
}

func TestSqlx(t *testing.T) {
	t.Parallel()
	conformance.Run(t, sqlClient(func(t *testing.T, db *pgtest.DB, conns int) conformance.Pool[*sqlx.Tx] {
		std := sqlx.NewDb(db.SQL(t), "pgx")
		std.SetMaxOpenConns(conns)
		return conformance.Pool[*sqlx.Tx]{Driver: sqlxdriver.New(std), BeginTx: beginSQL(std.BeginTxx)}
	}))
}

// stdTx is what *sql.Tx and *sqlx.Tx have in common.
type stdTx interface {
	ExecContext(ctx context.Context, sql string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, sql string, args ...any) (*sql.Rows, error)
	Commit() error
	Rollback() error
}

func beginSQL[TX any](begin func(context.Context, *sql.TxOptions) (TX, error)) func(context.Context, pg.Isolation) (TX, error) {
	levels := map[pg.Isolation]sql.IsolationLevel{
		pg.ReadCommitted: sql.LevelReadCommitted, pg.RepeatableRead: sql.LevelRepeatableRead, pg.Serializable: sql.LevelSerializable,
	}
	return func(ctx context.Context, level pg.Isolation) (TX, error) {
		return begin(ctx, &sql.TxOptions{Isolation: levels[level]})
	}
}

func sqlClient[TX stdTx](open func(*testing.T, *pgtest.DB, int) conformance.Pool[TX]) conformance.Client[TX] {
	return conformance.Client[TX]{
		Open: open,
		Exec: func(ctx context.Context, tx TX, sql string, args ...any) error {
			_, err := tx.ExecContext(ctx, sql, args...)
			return err
		},
		LeaveOpen: func(ctx context.Context, tx TX, sql string) error {
			_, err := tx.QueryContext(ctx, sql) //nolint:rowserrcheck,sqlclosecheck // that is the point
			return err
		},
		Commit:   func(_ context.Context, tx TX) error { return tx.Commit() },
		Rollback: func(_ context.Context, tx TX) error { return tx.Rollback() },
	}
}
