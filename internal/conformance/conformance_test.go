//go:build unix

package conformance_test

import (
	"database/sql"
	"testing"

	"github.com/pgonce/pgonce/internal/conformance"
	"github.com/pgonce/pgonce/internal/pgtest"
)

func TestPgx(t *testing.T) {
	t.Parallel()
	for _, mode := range conformance.PgxModes {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			conformance.Run(t, conformance.Pgx(mode))
		})
	}
}

func TestDatabaseSQL(t *testing.T) {
	t.Parallel()
	conformance.Run(t, conformance.SQL(overPgx, conformance.Std))
}

func TestSqlx(t *testing.T) {
	t.Parallel()
	conformance.Run(t, conformance.SQL(overPgx, conformance.Sqlx("pgx")))
}

func overPgx(t *testing.T, db *pgtest.DB) *sql.DB {
	t.Helper()
	return db.SQL(t)
}
