package pgtest

import (
	"errors"
	"os"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/internal/localpg"
	"github.com/pgonce/pgonce/migrations"
)

// Quiet is a pool on a migrated server of the test's own, which writes no WAL by itself: what is
// counted there was written by the test.
func Quiet(t testing.TB) *pgxpool.Pool {
	t.Helper()
	server, err := localpg.Start(&localpg.Config{Settings: map[string]string{
		"autovacuum": "off", "wal_level": "minimal", "max_wal_senders": "0", "full_page_writes": "off", "checkpoint_timeout": "1h",
	}})
	if errors.Is(err, localpg.ErrNoBinaries) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	must(t, err)
	pool, err := pgxpool.New(t.Context(), server.URL("postgres"))
	must(t, err)
	t.Cleanup(func() {
		pool.Close()
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	_, err = migrations.UpPool(t.Context(), pool, nil)
	must(t, err)
	return pool
}

// Number asks for one.
func Number(t testing.TB, pool *pgxpool.Pool, sql string) (n int64) {
	t.Helper()
	must(t, pool.QueryRow(t.Context(), sql).Scan(&n))
	return n
}

// WAL is how many bytes of it a server has written so far.
func WAL(t testing.TB, pool *pgxpool.Pool) int64 {
	t.Helper()
	return Number(t, pool, `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint`)
}

// XIDs is how many transactions of a server have got a number so far.
func XIDs(t testing.TB, pool *pgxpool.Pool) int64 {
	t.Helper()
	return Number(t, pool, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint`)
}
