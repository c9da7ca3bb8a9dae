//go:build unix

package conformance

import (
	"context"
	"database/sql"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jmoiron/sqlx"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/driver/sqldriver"
	"github.com/pgonce/pgonce/driver/sqlxdriver"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// PgxModes are the ways in which pgx can talk to the server.
var PgxModes = []pgx.QueryExecMode{
	pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
	pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
}

// Pgx is pgx in one of its modes.
func Pgx(mode pgx.QueryExecMode) Client[pgx.Tx] {
	return Client[pgx.Tx]{
		Open: func(t *testing.T, db *pgtest.DB, conns int) Pool[pgx.Tx] {
			cfg := db.Config(t)
			cfg.MaxConns = int32(conns)
			cfg.ConnConfig.DefaultQueryExecMode = mode
			pool := db.Open(t, cfg)
			return Pool[pgx.Tx]{
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
	}
}

// StdTx is what *sql.Tx and *sqlx.Tx have in common.
type StdTx interface {
	ExecContext(ctx context.Context, sql string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, sql string, args ...any) (*sql.Rows, error)
	Commit() error
	Rollback() error
}

// Std is database/sql as it is.
func Std(db *sql.DB) Pool[*sql.Tx] {
	return Pool[*sql.Tx]{Driver: sqldriver.New(db), BeginTx: beginSQL(db.BeginTx)}
}

// Sqlx is sqlx over database/sql, with the name of the client library below.
func Sqlx(name string) func(*sql.DB) Pool[*sqlx.Tx] {
	return func(db *sql.DB) Pool[*sqlx.Tx] {
		x := sqlx.NewDb(db, name)
		return Pool[*sqlx.Tx]{Driver: sqlxdriver.New(x), BeginTx: beginSQL(x.BeginTxx)}
	}
}

func beginSQL[TX any](begin func(context.Context, *sql.TxOptions) (TX, error)) func(context.Context, pg.Isolation) (TX, error) {
	levels := map[pg.Isolation]sql.IsolationLevel{
		pg.ReadCommitted: sql.LevelReadCommitted, pg.RepeatableRead: sql.LevelRepeatableRead, pg.Serializable: sql.LevelSerializable,
	}
	return func(ctx context.Context, level pg.Isolation) (TX, error) {
		return begin(ctx, &sql.TxOptions{Isolation: levels[level]})
	}
}

// SQL is a driver of database/sql. db makes its pool, which the test closes; wrap is [Std] or [Sqlx].
func SQL[TX StdTx](db func(*testing.T, *pgtest.DB) *sql.DB, wrap func(*sql.DB) Pool[TX]) Client[TX] {
	return Client[TX]{
		Open: func(t *testing.T, on *pgtest.DB, conns int) Pool[TX] {
			std := db(t, on)
			std.SetMaxOpenConns(conns)
			return wrap(std)
		},
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
