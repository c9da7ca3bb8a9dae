//go:build unix

// Package drivers runs the conformance suite on client libraries that the library itself does not
// depend on.
package drivers_test

import (
	"context"
	"database/sql"
	"net/url"
	"testing"

	"github.com/jmoiron/sqlx"
	_ "github.com/lib/pq"
	"github.com/pgonce/pgonce/driver/sqldriver"
	"github.com/pgonce/pgonce/driver/sqlxdriver"
	"github.com/pgonce/pgonce/internal/conformance"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// forms are the two ways in which lib/pq sends arguments: as text of a prepared statement, or in
// binary without preparing.
var forms = map[string]url.Values{
	"text":   {},
	"binary": {"binary_parameters": {"yes"}},
}

func TestLibPQ(t *testing.T) {
	t.Parallel()
	for name, params := range forms {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conformance.Run(t, client(func(t *testing.T, db *pgtest.DB, conns int) pg.Driver[*sql.Tx] {
				return sqldriver.New(open(t, db, conns, params))
			}))
		})
	}
}

func TestLibPQBySqlx(t *testing.T) {
	t.Parallel()
	for name, params := range forms {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conformance.Run(t, client(func(t *testing.T, db *pgtest.DB, conns int) pg.Driver[*sqlx.Tx] {
				return sqlxdriver.New(sqlx.NewDb(open(t, db, conns, params), "postgres"))
			}))
		})
	}
}

func open(t *testing.T, db *pgtest.DB, conns int, params url.Values) *sql.DB {
	t.Helper()
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	query := u.Query()
	for name, values := range params {
		query[name] = values
	}
	u.RawQuery = query.Encode()
	std, err := sql.Open("postgres", u.String())
	if err != nil {
		t.Fatal(err)
	}
	std.SetMaxOpenConns(conns)
	db.Adopt(t, std)
	return std
}

// stdTx is what *sql.Tx and *sqlx.Tx have in common.
type stdTx interface {
	ExecContext(ctx context.Context, sql string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, sql string, args ...any) (*sql.Rows, error)
	Commit() error
	Rollback() error
}

func client[TX stdTx](open func(*testing.T, *pgtest.DB, int) pg.Driver[TX]) conformance.Client[TX] {
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

		BeginsReadWrite: true,
	}
}
