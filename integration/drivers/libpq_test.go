//go:build unix

// Package drivers runs the conformance suite on client libraries that the library itself does not
// depend on.
package drivers_test

import (
	"database/sql"
	"maps"
	"net/url"
	"testing"

	_ "github.com/lib/pq"
	"github.com/pgonce/pgonce/internal/conformance"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// TestLibPQ runs the suite on the two forms in which lib/pq sends a statement with arguments:
// prepared, with the arguments as text; and in one trip, with those that can be as binary.
func TestLibPQ(t *testing.T) {
	t.Parallel()
	for name, params := range map[string]url.Values{"text": {}, "binary": {"binary_parameters": {"yes"}}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			t.Run("sql", func(t *testing.T) {
				t.Parallel()
				run(t, params, conformance.Std)
			})
			t.Run("sqlx", func(t *testing.T) {
				t.Parallel()
				run(t, params, conformance.Sqlx("postgres"))
			})
		})
	}
}

func run[TX conformance.StdTx](t *testing.T, params url.Values, wrap func(*sql.DB) conformance.Pool[TX]) {
	t.Helper()
	client := conformance.SQL(func(t *testing.T, db *pgtest.DB) *sql.DB {
		t.Helper()
		return open(t, db, params)
	}, wrap)
	client.BeginsReadWrite = true
	conformance.Run(t, client)
}

func open(t *testing.T, db *pgtest.DB, params url.Values) *sql.DB {
	t.Helper()
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	query := u.Query()
	maps.Copy(query, params)
	u.RawQuery = query.Encode()
	std, err := sql.Open("postgres", u.String())
	if err != nil {
		t.Fatal(err)
	}
	db.Adopt(t, std)
	return std
}
