//go:build unix

package dblock_test

import (
	"fmt"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
)

// A process that is killed, or frozen, loses its lease to others after the TTL, and not before; one that was frozen and wakes
// up is told by the first thing that it asks of the lock.
func TestDeadAndFrozenLeaseHolders(t *testing.T) {
	t.Parallel()
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			h := startChild(t, "DBLOCK_LEASEHOLDER="+b.URL)
			c := b.leases(t, nil)
			if err := h.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			const micros = `SELECT (1000000 * extract(epoch FROM %s))::bigint FROM pgonce.lease`
			expires := b.Int(t, fmt.Sprintf(micros, "expires_at"))
			l := acquire(t, c, "1", nil)
			if l.Token() <= h.token {
				t.Errorf("token %d after %d", l.Token(), h.token)
			}
			if at := b.Int(t, fmt.Sprintf(micros, "acquired_at")); at < expires {
				t.Errorf("it was given away %d us too early", expires-at)
			}
			if signal == syscall.SIGSTOP {
				if err := h.Process.Signal(syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
				if _, err := h.hears.WriteString("\n"); err != nil {
					t.Fatal(err)
				}
				if got := h.line(t); got != "true true" {
					t.Errorf("the holder that woke up says %q, want that its ctx has ended, by a loss", got)
				}
			}
			if l.Err() != nil {
				t.Error(l.Err())
			}
			release(t, l)
		})
	}
}

// Leases expire at random under their holders, who do not know, while they work in a transaction, as by a clock that jumps. With FenceTx no write
// of a holder who has lost the lock lands. Without it some do; that figure is printed, not tested.
func TestFencedWritesOfPastLeaseHoldersNeverLand(t *testing.T) {
	t.Parallel()
	for _, fenced := range []bool{true, false} {
		t.Run(fmt.Sprintf("fenced %t", fenced), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.countUnderLosses(t, func() []*client { return b.manyLeases(t, 3, nil) }, 200, fenced, func(choice uint64) {
				b.Exec(t, fmt.Sprintf(`UPDATE pgonce.lease SET expires_at = now() - interval '1 s'
					WHERE id IN (SELECT id FROM pgonce.lease ORDER BY md5(id || '%d') LIMIT 1 FOR UPDATE SKIP LOCKED)`, choice))
			})
		})
	}
}

// Transactions that LockTx keeps apart from the holders of leases, and from each other: no update is lost.
func TestLockTxAndLeasesNeverMeet(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.Exec(t, `CREATE TABLE counter (n bigint NOT NULL); INSERT INTO counter VALUES (0)`)
	cfg := b.Config(t)
	cfg.MaxConns = 16
	pool := b.Open(t, cfg)
	const processes, rounds = 3, 25
	var wg sync.WaitGroup
	add := func(fence func(tx pgx.Tx) error) {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = tx.Rollback(t.Context()) }()
		var n int64
		err = fence(tx)
		if err == nil {
			err = tx.QueryRow(t.Context(), `SELECT n FROM counter`).Scan(&n)
		}
		if err == nil {
			_, err = tx.Exec(t.Context(), `UPDATE counter SET n = $1`, n+1)
		}
		if err == nil {
			err = tx.Commit(t.Context())
		}
		if err != nil {
			t.Error(err)
		}
	}
	for range processes {
		c := b.leases(t, nil)
		wg.Go(func() {
			for range rounds {
				l := acquire(t, c, "1", nil)
				add(func(pgx.Tx) error { return nil }) // no fence: the lease alone must do
				release(t, l)
			}
		})
		wg.Go(func() {
			for range rounds {
				add(func(tx pgx.Tx) error { return c.LockTx(within(t), tx, key("1"), nil) })
			}
		})
	}
	wg.Wait()
	if n := b.Int(t, `SELECT n FROM counter`); n != 2*processes*rounds {
		t.Errorf("%d updates, want %d", n, 2*processes*rounds)
	}
}
