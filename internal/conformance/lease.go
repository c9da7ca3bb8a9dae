//go:build unix

package conformance

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

func leaseSuites[TX any]() suites[TX] {
	return suites[TX]{
		"lease/TakeAndGiveBack": func(t *testing.T, c Client[TX]) { setupLeases(t, c).takeAndGiveBack() },
		"lease/Storm":           func(t *testing.T, c Client[TX]) { setupLeases(t, c).takeTurns() },
		"lease/All":             func(t *testing.T, c Client[TX]) { setupLeases(t, c).acquireAll() },
		"lease/Try":             leaseTry[TX],
		"lease/Keys":            leaseKeys[TX],
		"lease/WaitEnds":        leaseWaitEnds[TX],
		"lease/Expires":         leaseExpires[TX],
		"lease/Heartbeats":      leaseHeartbeats[TX],
		"lease/BackendKilled":   leaseBackendKilled[TX],
		"lease/Fence":           leaseFence[TX],
		"lease/FenceHoldsUp":    leaseFenceHoldsUp[TX],
		"lease/Close":           leaseClose[TX],
		"lease/Refuses":         leaseRefuses[TX],
		"lease/SilentInspect":   leaseSilentInspect[TX],
		"lease/TxExcludes":      leaseTxExcludes[TX],
		"lease/TxWaits":         leaseTxWaits[TX],
		"lease/TxEnds":          leaseTxEnds[TX],
		"lease/TxExpired":       leaseTxExpired[TX],
		"lease/TxOldSnapshot":   leaseTxOldSnapshot[TX],
	}
}

func setupLeases[TX any](t *testing.T, c Client[TX]) *locks[TX] {
	l := setupLocks(t, c)
	l.make = dblock.NewLeases[TX]
	return l
}

// expire makes leases expire by the server's clock.
func (l *locks[TX]) expire() {
	l.db.Exec(l.t, `UPDATE pgonce.lease SET expires_at = now() - interval '1 us'`)
}

// rows waits until n rows of leases are there.
func (l *locks[TX]) rows(n int64) {
	pgtest.Eventually(l.t, "rows are removed", func() bool { return l.db.Int(l.t, `SELECT count(*) FROM pgonce.lease`) == n })
}

func (l *locks[TX]) refused(c *dblock.Client[TX], id string) {
	l.t.Helper()
	_, err := c.TryAcquire(l.ctx(), lockKey(id), nil)
	wantErr(l.t, err, dblock.ErrNotAcquired)
}

func leaseTry[TX any](t *testing.T, c Client[TX]) {
	l := setupLeases(t, c)
	a, b := l.client(nil), l.client(nil)
	lock := l.acquire(a, "1", nil)
	for _, client := range []*dblock.Client[TX]{a, b} {
		l.refused(client, "1")
		other, err := client.TryAcquire(l.ctx(), lockKey("2"), nil)
		noErr(t, err)
		l.release(other)
	}
	_, err := a.Acquire(lock.Context(), lockKey("1"), nil)
	wantErr(t, err, dblock.ErrReentrant)
	l.release(lock)
	lock, err = b.TryAcquire(l.ctx(), lockKey("1"), nil)
	noErr(t, err)
	l.release(lock)
	l.rows(0)
}

// Keys are what they are, whatever is in them.
func leaseKeys[TX any](t *testing.T, c Client[TX]) {
	l := setupLeases(t, c)
	a, b := l.client(&dblock.Config{TTL: 2 * time.Second}), l.client(nil)
	var held []*dblock.Lock[TX]
	for _, key := range []dblock.Key{{Space: `"{,}\\'`, ID: `<a>&\u0000`}, {Space: "é", ID: "\u2028日本"}, {Space: "é", ID: "É"}} {
		lock, err := a.Acquire(l.ctx(), key, nil)
		noErr(t, err)
		held = append(held, lock)
		_, err = b.TryAcquire(l.ctx(), key, nil)
		wantErr(t, err, dblock.ErrNotAcquired)
	}
	began := time.Now()
	pgtest.Eventually(t, "two TTLs", func() bool { return time.Since(began) > 4*time.Second })
	for _, lock := range held { // renewed, and given back
		l.release(lock)
	}
	l.rows(0)
}

// The end of ctx ends the wait at once, in memory and between processes, and nothing is left there.
func leaseWaitEnds[TX any](t *testing.T, c Client[TX]) {
	l := setupLeases(t, c)
	a, b := l.client(nil), l.client(nil)
	lock := l.acquire(a, "1", nil)
	for _, client := range []*dblock.Client[TX]{a, b} {
		ctx, cancel := context.WithCancelCause(t.Context())
		result := make(chan error, 1)
		go func() {
			_, err := client.Acquire(ctx, lockKey("1"), nil)
			result <- err
		}()
		select {
		case err := <-result:
			t.Errorf("it does not wait: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
		cancel(errStop)
		err := <-result
		wantErr(t, err, dblock.ErrNotAcquired)
		wantErr(t, err, errStop)
	}
	l.release(lock)
	l.release(l.acquire(a, "1", nil))
	l.rows(0)
}

// A lease that has expired goes to whoever asks, who waits no longer than that; the holder before is told, cannot give it
// back, and cannot fence.
func leaseExpires[TX any](t *testing.T, c Client[TX]) {
	l := setupLeases(t, c)
	a, b := l.client(&dblock.Config{TTL: 3 * time.Second}), l.client(nil)
	lock := l.acquire(a, "1", nil)
	l.refused(b, "1")
	l.expire()
	next := l.acquire(b, "1", nil)
	if next.Token() <= lock.Token() {
		t.Error("the token went backwards")
	}
	wantErr(t, lock.FenceTx(t.Context(), l.begin()), dblock.ErrLost)
	<-lock.Context().Done()
	lost, ok := errors.AsType[*dblock.LostError](context.Cause(lock.Context()))
	if !ok || lost.Kind != dblock.LostFence || lost.Token != lock.Token() {
		t.Errorf("got %v", context.Cause(lock.Context()))
	}
	wantErr(t, lock.Release(t.Context()), dblock.ErrLost)
	noErr(t, next.Err())
	l.release(next)
	l.rows(0)
}

func leaseHeartbeats[TX any](t *testing.T, c Client[TX]) {
	l := setupLeases(t, c)
	a, b := l.client(&dblock.Config{TTL: 2 * time.Second}), l.client(nil)
	one, two := l.acquire(a, "1", nil), l.acquire(a, "2", nil)
	began := time.Now()
	pgtest.Eventually(t, "two TTLs", func() bool {
		l.refused(b, "1")
		return time.Since(began) > 4*time.Second
	})
	l.db.Exec(t, `DELETE FROM pgonce.lease WHERE id = '1'`)
	<-one.Context().Done()
	lost, ok := errors.AsType[*dblock.LostError](context.Cause(one.Context()))
	if !ok || lost.Kind != dblock.LostTaken {
		t.Errorf("got %v", context.Cause(one.Context()))
	}
	l.release(two)
}

// No session holds a lease: it outlives every connection, and the next statement finds another one.
func leaseBackendKilled[TX any](t *testing.T, c Client[TX]) {
	l := setupLeases(t, c)
	a := l.client(&dblock.Config{TTL: 3 * time.Second})
	lock := l.acquire(a, "1", nil)
	l.db.KillOthers(t)
	l.release(l.acquire(a, "2", nil))
	l.db.KillOthers(t)
	began := time.Now()
	pgtest.Eventually(t, "a TTL", func() bool { return time.Since(began) > 3*time.Second })
	l.db.KillOthers(t)
	l.release(lock)
	l.rows(0)
}

func leaseFence[TX any](t *testing.T, c Client[TX]) {
	l := setupLeases(t, c)
	a := l.client(nil)
	lock := l.acquire(a, "1", nil)
	tx := l.begin()
	noErr(t, lock.FenceTx(t.Context(), tx))
	noErr(t, lock.FenceTx(t.Context(), tx)) // again, and in another one
	noErr(t, lock.FenceTx(t.Context(), l.begin()))
	l.release(lock)
	wantErr(t, lock.FenceTx(t.Context(), tx), dblock.ErrNotHeld)
}

// A fenced transaction holds its successors up, in its process and in others, when its lock has been released and when it
// has expired: those of Acquire and those of LockTx.
func leaseFenceHoldsUp[TX any](t *testing.T, c Client[TX]) {
	for _, way := range []string{"released", "expired"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			l := setupLeases(t, c)
			a, b := l.client(&dblock.Config{TTL: 3 * time.Second}), l.client(nil)
			lock := l.acquire(a, "1", nil)
			tx := l.begin()
			noErr(t, lock.FenceTx(t.Context(), tx))
			if way == "released" {
				l.release(lock)
			} else {
				l.expire()
				<-lock.Context().Done()
			}
			for _, client := range []*dblock.Client[TX]{a, b} {
				l.refused(client, "1")
				other, err := l.pool.BeginTx(t.Context(), pg.ReadCommitted)
				noErr(t, err)
				wantErr(t, client.TryLockTx(l.ctx(), other, lockKey("1"), nil), dblock.ErrNotAcquired)
				noErr(t, c.Rollback(t.Context(), other))
			}
			var committed atomic.Bool
			won := make(chan *dblock.Lock[TX], 2)
			for _, client := range []*dblock.Client[TX]{a, b} {
				go func() {
					next := l.acquire(client, "1", nil)
					if !committed.Load() {
						t.Error("the lock was given out beside a fenced transaction")
					}
					won <- next
				}()
			}
			committed.Store(true)
			noErr(t, c.Commit(t.Context(), tx))
			for range 2 {
				l.release(<-won)
			}
			l.rows(0)
		})
	}
}

// Close refuses and wakes everybody, ends what is held, and others have it when it returns.
func leaseClose[TX any](t *testing.T, c Client[TX]) {
	l := setupLeases(t, c)
	a, b := l.client(nil), l.client(nil)
	lock, elsewhere := l.acquire(a, "1", nil), l.acquire(b, "2", nil)
	results := make(chan error, 2)
	for _, id := range []string{"1", "2"} {
		go func() {
			_, err := a.Acquire(l.ctx(), lockKey(id), nil)
			results <- err
		}()
	}
	noErr(t, a.Close(l.ctx()))
	for range 2 {
		wantErr(t, <-results, dblock.ErrClosed)
	}
	lost, ok := errors.AsType[*dblock.LostError](context.Cause(lock.Context()))
	if !ok || lost.Kind != dblock.LostClosed {
		t.Errorf("got %v", context.Cause(lock.Context()))
	}
	wantErr(t, lock.Release(t.Context()), dblock.ErrClosed)
	_, err := a.Acquire(l.ctx(), lockKey("3"), nil)
	wantErr(t, err, dblock.ErrClosed)
	wantErr(t, a.TryLockTx(l.ctx(), l.begin(), lockKey("3"), nil), dblock.ErrClosed)
	noErr(t, a.Close(l.ctx()))
	got, err := b.TryAcquire(l.ctx(), lockKey("1"), nil)
	noErr(t, err)
	l.release(got)
	l.release(elsewhere)
	l.rows(0)
}

func leaseRefuses[TX any](t *testing.T, c Client[TX]) {
	l := setupLeases(t, c)
	for _, cfg := range []*dblock.Config{{TTL: time.Millisecond}, {TTL: 48 * time.Hour}, {MaxLocks: -1}, {Schema: "No"}, {Schema: "missing"}, {Holder: "a\nb"}} {
		if _, err := dblock.NewLeases(t.Context(), l.pool.Driver, cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
	a := l.client(&dblock.Config{MaxLocks: 1, TTL: 100 * time.Millisecond})
	noErr(t, a.Verify(t.Context()))
	_, err := a.Acquire(l.ctx(), dblock.Key{}, nil)
	wantErr(t, err, dblock.ErrInvalidKey)
	_, err = a.Acquire(l.ctx(), lockKey("1"), shared)
	wantText(t, err, "exclusive")
	wantText(t, a.LockTx(l.ctx(), l.begin(), lockKey("1"), &dblock.TxConfig{Shared: true}), "exclusive")
	l.db.Exec(t, `DELETE FROM pgonce.schema_version WHERE version > 3`)
	wantErr(t, a.Verify(t.Context()), dblock.ErrSchema)
	_, err = dblock.NewLeases(t.Context(), l.pool.Driver, nil)
	wantErr(t, err, dblock.ErrSchema)
}

// LockTx and leases exclude each other, both ways, and LockTx its like.
func leaseTxExcludes[TX any](t *testing.T, c Client[TX]) {
	l := setupLeases(t, c)
	a, b := l.client(nil), l.client(nil)
	lock := l.acquire(a, "1", nil)
	tx := l.begin()
	for _, client := range []*dblock.Client[TX]{a, b} {
		wantErr(t, client.TryLockTx(l.ctx(), tx, lockKey("1"), nil), dblock.ErrNotAcquired)
		noErr(t, client.TryLockTx(l.ctx(), tx, lockKey("2"), nil))
		l.refused(client, "2")
		wantErr(t, client.TryLockTx(l.ctx(), l.begin(), lockKey("2"), nil), dblock.ErrNotAcquired)
	}
	wantErr(t, a.LockTx(lock.Context(), tx, lockKey("1"), nil), dblock.ErrReentrant)
	l.release(lock)
	noErr(t, b.TryLockTx(l.ctx(), tx, lockKey("1"), nil))
	noErr(t, c.Commit(t.Context(), tx))
	for _, id := range []string{"1", "2"} {
		l.release(l.acquire(b, id, nil))
	}
}

// LockTx waits for a lease, and a lease for LockTx.
func leaseTxWaits[TX any](t *testing.T, c Client[TX]) {
	l := setupLeases(t, c)
	a, b := l.client(nil), l.client(nil)
	lock := l.acquire(a, "1", nil)
	tx, got := l.begin(), make(chan error, 1)
	go func() { got <- b.LockTx(l.ctx(), tx, lockKey("1"), nil) }()
	const waiting = `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`
	pgtest.Eventually(t, "it has the advisory lock", func() bool { return l.db.Int(t, waiting) == 1 })
	select {
	case err := <-got:
		t.Fatalf("it does not wait: %v", err)
	default:
	}
	l.release(lock)
	noErr(t, <-got)
	won := make(chan *dblock.Lock[TX], 1)
	go func() { won <- l.acquire(a, "1", nil) }()
	select {
	case <-won:
		t.Error("a lease beside LockTx")
	case <-time.After(50 * time.Millisecond):
	}
	noErr(t, c.Commit(t.Context(), tx))
	l.release(<-won)
}

// A wait of LockTx that ends leaves the transaction as it was, and the key to others.
func leaseTxEnds[TX any](t *testing.T, c Client[TX]) {
	l := setupLeases(t, c)
	l.db.Exec(t, effects)
	a, b := l.client(nil), l.client(nil)
	lock := l.acquire(a, "1", nil)
	tx := l.begin()
	noErr(t, l.c.Exec(t.Context(), tx, `INSERT INTO effect VALUES ('before')`))
	for _, way := range []string{"deadline", "cancel"} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if way == "cancel" {
			time.AfterFunc(50*time.Millisecond, cancel)
		}
		err := b.LockTx(ctx, tx, lockKey("1"), nil)
		wantErr(t, err, dblock.ErrNotAcquired)
		wantErr(t, err, ctx.Err())
		cancel()
	}
	l.release(lock)
	l.release(l.acquire(a, "1", nil)) // nothing is left of the wait
	noErr(t, b.LockTx(l.ctx(), tx, lockKey("1"), nil))
	noErr(t, l.c.Exec(t.Context(), tx, `INSERT INTO effect VALUES ('after')`))
	noErr(t, c.Commit(t.Context(), tx))
	wantInt(t, "effects", l.db.Int(t, `SELECT count(*) FROM effect`), 2)
}

// LockTx comes by a lease that has expired; and its holder, who may wake up, finds that out.
func leaseTxExpired[TX any](t *testing.T, c Client[TX]) {
	l := setupLeases(t, c)
	a, b := l.client(&dblock.Config{TTL: time.Hour}), l.client(nil)
	lock := l.acquire(a, "1", nil)
	l.expire()
	tx, err := l.pool.BeginTx(t.Context(), pg.ReadCommitted)
	noErr(t, err)
	noErr(t, b.TryLockTx(l.ctx(), tx, lockKey("1"), nil))
	noErr(t, c.Commit(t.Context(), tx))
	noErr(t, lock.Err()) // it does not know
	wantErr(t, lock.FenceTx(t.Context(), l.begin()), dblock.ErrLost)
}

// Above READ COMMITTED a transaction would not see a lease that was granted after it began: it is refused, and can go on.
func leaseTxOldSnapshot[TX any](t *testing.T, c Client[TX]) {
	l := setupLeases(t, c)
	a := l.client(nil)
	for _, level := range []pg.Isolation{pg.RepeatableRead, pg.Serializable} {
		tx, err := l.pool.BeginTx(t.Context(), level)
		noErr(t, err)
		wantErr(t, a.TryLockTx(l.ctx(), tx, lockKey("1"), nil), dblock.ErrIsolation)
		wantErr(t, a.LockTx(l.ctx(), tx, lockKey("1"), nil), dblock.ErrIsolation)
		noErr(t, l.c.Exec(t.Context(), tx, `SELECT 1`))
		l.release(l.acquire(a, "1", nil))
		noErr(t, c.Rollback(t.Context(), tx))
	}
}
