//go:build unix

package dblock_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// The table of leases is empty at times. Statements that are planned then still find their rows by index.
func TestLeasePlansOfAnEmptyTable(t *testing.T) {
	t.Parallel()
	pool := pgtest.Quiet(t)
	c := leasesOf(t, pgxdriver.New(pool), quiet)
	const workers, each = 32, 20
	run := func(round int) {
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for i := range each {
					l, err := c.Acquire(within(t), key(fmt.Sprintf("%d-%d-%d", round, w, i)), nil)
					if err != nil {
						t.Error(err)
						return
					}
					release(t, l)
				}
			})
		}
		wg.Wait()
		pool.Reset() // new sessions plan anew; the old ones report what they did
	}
	run(1)
	if _, err := pool.Exec(t.Context(), `VACUUM pgonce.lease`); err != nil {
		t.Fatal(err)
	}
	pool.Reset()
	scanned, before := leaseScans(t, pool, "0"), leaseScans(t, pool, "coalesce(idx_scan, 0)")
	run(2)
	pgtest.Eventually(t, "the sessions have reported", func() bool {
		return leaseScans(t, pool, "coalesce(idx_scan, 0)") >= before+2*workers*each
	})
	if n := leaseScans(t, pool, "0") - scanned; n != 0 {
		t.Errorf("%d of the statements scanned the whole table", n)
	}
}

// leaseScans is how often the table of leases was scanned, and more.
func leaseScans(t *testing.T, pool *pgxpool.Pool, more string) (n int64) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT (seq_scan + `+more+`)::bigint FROM pg_stat_user_tables WHERE relname = 'lease'`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
