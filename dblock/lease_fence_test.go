//go:build unix

package dblock_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// One row that somebody has locked does not hold the heartbeats of the others up; nor does a table-wide reader.
func TestHeartbeatPassesLockedRows(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.leases(t, &dblock.Config{TTL: 5 * time.Second})
	stuck, fenced, free := acquire(t, c, "stuck", nil), acquire(t, c, "fenced", nil), acquire(t, c, "free", nil)
	tx := b.begin(t)
	if _, err := tx.Exec(t.Context(), `SELECT FROM pgonce.lease WHERE id = 'stuck' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	other := b.begin(t)
	if err := fenced.FenceTx(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if e := lost(t, stuck); e.Kind != dblock.LostSilence {
		t.Errorf("got %v", e)
	}
	began := time.Now()
	pgtest.Eventually(t, "a TTL more", func() bool { return time.Since(began) > 5*time.Second })
	if free.Err() != nil || fenced.Err() != nil {
		t.Errorf("%v, %v", free.Err(), fenced.Err())
	}
	for _, tx := range []pgx.Tx{tx, other} {
		if err := tx.Rollback(t.Context()); err != nil {
			t.Error(err)
		}
	}
	release(t, free)
	release(t, fenced)
	pgtest.Eventually(t, "the lost one's row is removed", func() bool { return b.rows(t) == 0 })
}

func (b bench) begin(t *testing.T) pgx.Tx {
	t.Helper()
	tx, err := b.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

// A holder gives a lease back before the transaction ends that it has fenced, in one goroutine: Release does not wait for it, and
// the next holder does. The row is removed in the end, although nobody asks for it.
func TestReleaseDoesNotWaitForTheFence(t *testing.T) {
	t.Parallel()
	for _, wanted := range []bool{true, false} {
		t.Run(fmt.Sprint("wanted ", wanted), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			cfg := &dblock.Config{TTL: 3 * time.Second}
			a, c := b.leases(t, cfg), b.leases(t, cfg)
			l, tx := acquire(t, a, "1", nil), b.begin(t)
			if err := l.FenceTx(t.Context(), tx); err != nil {
				t.Fatal(err)
			}
			release(t, l)
			for _, c := range []*client{a, c} {
				if _, err := c.TryAcquire(within(t), key("1"), nil); !errors.Is(err, dblock.ErrNotAcquired) {
					t.Errorf("got %v", err)
				}
			}
			var committed atomic.Bool
			won := make(chan *locked, 1)
			if wanted {
				go func() {
					l := acquire(t, c, "1", nil)
					if !committed.Load() {
						t.Error("granted beside a fenced transaction")
					}
					won <- l
				}()
				pgtest.Eventually(t, "the next one waits", func() bool { return c.InLine(key("1")) == 1 })
			}
			committed.Store(true)
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			if wanted {
				next := <-won
				if next.Token() <= l.Token() {
					t.Errorf("token %d after %d", next.Token(), l.Token())
				}
				release(t, next)
			}
			pgtest.Eventually(t, "no row is left", func() bool { return b.rows(t) == 0 })
		})
	}
}

// The transaction's snapshot is older than the loss. The fence is refused all the same, at each level of isolation.
func TestLeaseFenceIsNotDeceivedByASnapshot(t *testing.T) {
	t.Parallel()
	for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable} {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			l := acquire(t, b.leases(t, quiet), "1", nil)
			old, err := b.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: level})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = old.Rollback(context.Background()) }()
			if _, err := old.Exec(t.Context(), `SELECT count(*) FROM pgonce.lease`); err != nil {
				t.Fatal(err)
			}
			b.Exec(t, `UPDATE pgonce.lease SET expires_at = now()`)
			next := acquire(t, b.leases(t, nil), "1", nil)
			err = l.FenceTx(t.Context(), old)
			want := dblock.ErrRetryTx
			if level == pgx.ReadCommitted {
				want = dblock.ErrLost
			}
			if !errors.Is(err, want) {
				t.Errorf("got %v", err)
			}
			release(t, next)
		})
	}
}

// A transaction above READ COMMITTED that began after the grant can be fenced, whatever heartbeats have done since.
func TestLeaseFenceOutlastsHeartbeats(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.leases(t, &dblock.Config{TTL: 4 * time.Second})
	l := acquire(t, c, "1", nil)
	tx, err := b.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	var expires int64
	const sql = `SELECT (1000 * extract(epoch FROM expires_at))::bigint FROM pgonce.lease`
	if err := tx.QueryRow(t.Context(), sql).Scan(&expires); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "more than a TTL", func() bool { return b.Int(t, sql) > expires+4500 })
	if err := l.FenceTx(t.Context(), tx); err != nil {
		t.Error(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Error(err)
	}
	release(t, l)
}
