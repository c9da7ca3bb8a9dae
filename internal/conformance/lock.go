//go:build unix

package conformance

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

func lockSuites[TX any]() suites[TX] {
	return suites[TX]{
		"lock/TakeAndGiveBack": lockTakeAndGiveBack[TX],
		"lock/Try":             lockTry[TX],
		"lock/Shared":          lockShared[TX],
		"lock/Storm":           lockStorm[TX],
		"lock/WaitEnds":        lockWaitEnds[TX],
		"lock/BackendKilled":   lockBackendKilled[TX],
		"lock/Fence":           lockFence[TX],
		"lock/FenceHoldsUp":    lockFenceHoldsUp[TX],
		"lock/Reentrant":       lockReentrant[TX],
		"lock/All":             lockAll[TX],
		"lock/Do":              lockDo[TX],
		"lock/Close":           lockClose[TX],
		"lock/Misuse":          lockMisuse[TX],
		"lock/Inspect":         lockInspect[TX],
	}
}

// locks is a database with clients on it that stand for processes. They share a pool, and each has sessions of
// its own.
type locks[TX any] struct {
	t    *testing.T
	c    Client[TX]
	db   *pgtest.DB
	pool Pool[TX]
	make func(context.Context, pg.Driver[TX], *dblock.Config) (*dblock.Client[TX], error)
}

func setupLocks[TX any](t *testing.T, c Client[TX]) *locks[TX] {
	db := pgtest.New(t)
	return &locks[TX]{t, c, db, c.Open(t, db, 40), dblock.New[TX]}
}

func (l *locks[TX]) client(cfg *dblock.Config) *dblock.Client[TX] {
	c, err := l.make(l.t.Context(), l.pool.Driver, cfg)
	noErr(l.t, err)
	l.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			l.t.Error(err)
		}
	})
	return c
}

func (l *locks[TX]) ctx() context.Context {
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	l.t.Cleanup(cancel)
	return ctx
}

func (l *locks[TX]) acquire(c *dblock.Client[TX], id string, cfg *dblock.LockConfig) *dblock.Lock[TX] {
	lock, err := c.Acquire(l.ctx(), lockKey(id), cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	return lock
}

func (l *locks[TX]) release(lock *dblock.Lock[TX]) {
	if err := lock.Release(l.t.Context()); err != nil {
		l.t.Error(err)
	}
}

func (l *locks[TX]) begin() TX {
	tx, err := l.pool.BeginTx(l.t.Context(), pg.ReadCommitted)
	noErr(l.t, err)
	l.t.Cleanup(func() { _ = l.c.Rollback(context.Background(), tx) })
	return tx
}

// keyLocks counts the locks of a key's number, its companions among them, that are held or waited for.
func (l *locks[TX]) waiting(n int64) {
	pgtest.Eventually(l.t, fmt.Sprint(n, " sessions wait"), func() bool {
		return l.db.Int(l.t, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == n
	})
}

func lockKey(id string) dblock.Key { return dblock.Key{Space: "order", ID: id} }

var shared = &dblock.LockConfig{Shared: true}

func lockTakeAndGiveBack[TX any](t *testing.T, c Client[TX]) { setupLocks(t, c).takeAndGiveBack() }

func (l *locks[TX]) takeAndGiveBack() {
	t := l.t
	a, b := l.client(nil), l.client(nil)
	noErr(t, a.Verify(t.Context()))
	var last dblock.Token
	for range 3 {
		for _, client := range []*dblock.Client[TX]{a, b} {
			lock := l.acquire(client, "1", nil)
			if lock.Token() <= last || lock.Err() != nil || lock.Context().Err() != nil || lock.Remaining() <= 0 || lock.Key() != lockKey("1") {
				t.Errorf("token %d after %d, %v, %v, %v", lock.Token(), last, lock.Err(), lock.Context().Err(), lock.Remaining())
			}
			last = lock.Token()
			dead, cancel := context.WithCancel(t.Context())
			cancel()
			for range 2 { // also on a dead ctx, and again
				noErr(t, lock.Release(dead))
			}
			wantErr(t, lock.Err(), dblock.ErrNotHeld)
			wantErr(t, context.Cause(lock.Context()), dblock.ErrNotHeld)
			wantInt(t, "remaining", int64(lock.Remaining()), 0)
		}
	}
}

func lockTry[TX any](t *testing.T, c Client[TX]) {
	l := setupLocks(t, c)
	a, b := l.client(nil), l.client(nil)
	lock := l.acquire(a, "1", nil)
	for _, client := range []*dblock.Client[TX]{a, b} {
		for _, cfg := range []*dblock.LockConfig{nil, shared} {
			_, err := client.TryAcquire(l.ctx(), lockKey("1"), cfg)
			wantErr(t, err, dblock.ErrNotAcquired)
		}
		other, err := client.TryAcquire(l.ctx(), lockKey("2"), nil)
		noErr(t, err)
		l.release(other)
	}
	l.release(lock)
	lock, err := b.TryAcquire(l.ctx(), lockKey("1"), nil)
	noErr(t, err)
	l.release(lock)
}

// Callers of several processes take turns: never two at once, and tokens that grow.
func lockStorm[TX any](t *testing.T, c Client[TX]) { setupLocks(t, c).takeTurns() }

func (l *locks[TX]) takeTurns() {
	t := l.t
	const clients, callers, keys, rounds = 4, 4, 2, 25
	var inside, last [keys]atomic.Int64
	var wg sync.WaitGroup
	var all []*dblock.Client[TX]
	for range clients { // before the first is used, so that they meet
		all = append(all, l.client(nil))
	}
	for _, client := range all {
		for caller := range callers {
			wg.Go(func() {
				for i := range rounds {
					k := (caller + i) % keys
					lock, err := client.Acquire(l.ctx(), lockKey(fmt.Sprint(k)), nil)
					if err != nil {
						t.Error(err)
						return
					}
					if n := inside[k].Add(1); n != 1 {
						t.Errorf("%d inside", n)
					}
					if token := int64(lock.Token()); last[k].Swap(token) >= token {
						t.Error("a token went backwards")
					}
					inside[k].Add(-1)
					l.release(lock)
				}
			})
		}
	}
	wg.Wait()
}

// The end of ctx ends the wait at once, in memory and on the server, and nothing is left there.
func lockWaitEnds[TX any](t *testing.T, c Client[TX]) {
	l := setupLocks(t, c)
	a, b := l.client(nil), l.client(nil)
	lock := l.acquire(a, "1", nil)
	for _, client := range []*dblock.Client[TX]{a, b} {
		ctx, cancel := context.WithCancelCause(t.Context())
		result := make(chan error, 1)
		go func() {
			_, err := client.Acquire(ctx, lockKey("1"), nil)
			result <- err
		}()
		if client == b {
			l.waiting(1)
		}
		cancel(errStop)
		err := <-result
		wantErr(t, err, dblock.ErrNotAcquired)
		wantErr(t, err, errStop)
		l.waiting(0)
		_, err = client.Acquire(ctx, lockKey("2"), nil)
		wantErr(t, err, errStop)
	}
	l.release(lock)
	l.release(l.acquire(a, "1", nil))
}

var errStop = errors.New("stop")

func lockReentrant[TX any](t *testing.T, c Client[TX]) {
	l := setupLocks(t, c)
	a, b := l.client(nil), l.client(nil)
	outer := l.acquire(a, "1", nil)
	inner, err := a.Acquire(outer.Context(), lockKey("2"), nil)
	noErr(t, err)
	for _, id := range []string{"1", "2"} {
		_, err := a.Acquire(inner.Context(), lockKey(id), nil)
		wantErr(t, err, dblock.ErrReentrant)
		_, err = a.TryAcquire(inner.Context(), lockKey(id), shared)
		wantErr(t, err, dblock.ErrReentrant)
	}
	_, err = b.TryAcquire(inner.Context(), lockKey("1"), nil) // another process, for all we know
	wantErr(t, err, dblock.ErrNotAcquired)
	ctx := context.WithoutCancel(outer.Context())
	l.release(outer)
	again, err := a.Acquire(ctx, lockKey("1"), nil) // it is not held any more
	noErr(t, err)
	l.release(again)
	l.release(inner)
}

func lockAll[TX any](t *testing.T, c Client[TX]) { setupLocks(t, c).acquireAll() }

func (l *locks[TX]) acquireAll() {
	t := l.t
	a, b := l.client(nil), l.client(nil)
	keys := []dblock.Key{lockKey("1"), lockKey("2"), lockKey("3")}
	backwards := []dblock.Key{keys[2], keys[1], keys[0]}
	var wg sync.WaitGroup
	for _, client := range []*dblock.Client[TX]{a, b} {
		for _, order := range [][]dblock.Key{keys, backwards} {
			wg.Go(func() {
				for range 10 {
					held, err := client.AcquireAll(l.ctx(), order, nil)
					if err != nil {
						t.Error(err)
						return
					}
					for i, lock := range held {
						if lock.Key() != order[i] {
							t.Errorf("lock %d is %v", i, lock.Key())
						}
					}
					if err := held.Release(t.Context()); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	one := l.acquire(a, "2", nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := b.AcquireAll(ctx, keys, nil)
	wantErr(t, err, dblock.ErrNotAcquired)
	for _, id := range []string{"1", "3"} { // none is left of those it had, when a grant has come that was on its way as ctx ended
		pgtest.Eventually(t, "the other keys are free", func() bool {
			lock, err := a.TryAcquire(l.ctx(), lockKey(id), nil)
			if errors.Is(err, dblock.ErrNotAcquired) {
				return false
			}
			noErr(t, err)
			l.release(lock)
			return true
		})
	}
	l.release(one)
	_, err = a.AcquireAll(l.ctx(), []dblock.Key{keys[0], keys[1], keys[0]}, nil)
	wantErr(t, err, dblock.ErrInvalidKey)
}

func lockDo[TX any](t *testing.T, c Client[TX]) {
	l := setupLocks(t, c)
	a := l.client(&dblock.Config{TTL: 3 * time.Second})
	wantErr(t, a.Do(l.ctx(), lockKey("1"), nil, func(ctx context.Context, lock *dblock.Lock[TX]) error {
		_, err := a.TryAcquire(l.ctx(), lockKey("1"), nil)
		wantErr(t, err, dblock.ErrNotAcquired)
		wantErr(t, a.Do(ctx, lockKey("1"), nil, func(context.Context, *dblock.Lock[TX]) error { return nil }), dblock.ErrReentrant)
		if a.Do(l.ctx(), lockKey("2"), nil, nil) == nil {
			t.Error("a nil function was called")
		}
		return errStop
	}), errStop)
	for _, leave := range []func(){func() { panic("of the caller") }, runtime.Goexit} {
		left := make(chan struct{})
		go func() {
			defer close(left)
			defer func() { _ = recover() }()
			_ = a.Do(l.ctx(), lockKey("1"), nil, func(context.Context, *dblock.Lock[TX]) error { leave(); return nil })
		}()
		<-left
	}
	wantErr(t, a.Do(l.ctx(), lockKey("1"), nil, func(ctx context.Context, lock *dblock.Lock[TX]) error {
		l.db.Exec(t, `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
		<-ctx.Done()
		wantErr(t, context.Cause(ctx), dblock.ErrLost)
		return nil
	}), dblock.ErrLost)
	ctx, cancel := context.WithCancelCause(t.Context())
	noErr(t, a.Do(ctx, lockKey("1"), nil, func(ctx context.Context, _ *dblock.Lock[TX]) error {
		cancel(errStop)
		<-ctx.Done()
		wantErr(t, context.Cause(ctx), errStop)
		return nil
	}))
	beside := l.acquire(l.client(nil), "1", shared)
	noErr(t, a.Do(l.ctx(), lockKey("1"), shared, func(context.Context, *dblock.Lock[TX]) error { return nil }))
	l.release(beside)
	l.release(l.acquire(a, "1", nil))
}

// Close refuses and wakes everybody, ends what is held, and others have it when it returns.
func lockClose[TX any](t *testing.T, c Client[TX]) {
	l := setupLocks(t, c)
	a, b := l.client(nil), l.client(nil)
	lock, elsewhere := l.acquire(a, "1", nil), l.acquire(b, "2", nil)
	results := make(chan error, 2)
	for _, id := range []string{"1", "2"} {
		go func() {
			_, err := a.Acquire(l.ctx(), lockKey(id), nil)
			results <- err
		}()
	}
	l.waiting(1)
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
	noErr(t, a.Close(l.ctx()))
	got, err := b.TryAcquire(l.ctx(), lockKey("1"), nil)
	noErr(t, err)
	l.release(got)
	l.release(elsewhere)
}

func lockMisuse[TX any](t *testing.T, c Client[TX]) {
	l := setupLocks(t, c)
	a := l.client(nil)
	for _, key := range []dblock.Key{{}, {Space: "order"}, {Space: "order", ID: "a\x00"}} {
		_, err := a.Acquire(l.ctx(), key, nil)
		wantErr(t, err, dblock.ErrInvalidKey)
	}
	_, err := a.Acquire(l.ctx(), lockKey("1"), &dblock.LockConfig{Expect: -1})
	wantText(t, err, "negative")
	for _, cfg := range []*dblock.Config{{TTL: time.Millisecond}, {TTL: 48 * time.Hour}, {MaxLocks: -1}, {Schema: "No"}, {Schema: "missing"}, {MaxLocks: 1 << 30}} {
		if _, err := dblock.New(t.Context(), l.pool.Driver, cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}
