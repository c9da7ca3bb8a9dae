//go:build unix

package conformance

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/pgonce/pgonce/dblock"
)

func lockBackendKilled[TX any](t *testing.T, c Client[TX]) {
	l := setupLocks(t, c)
	a := l.client(&dblock.Config{TTL: 3 * time.Second})
	lock := l.acquire(a, "1", nil)
	l.db.Exec(t, `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
	<-lock.Context().Done()
	lost, ok := errors.AsType[*dblock.LostError](context.Cause(lock.Context()))
	if !ok || lost.Kind != dblock.LostConnection || lost.Token != lock.Token() {
		t.Errorf("got %v", context.Cause(lock.Context()))
	}
	wantErr(t, lock.Release(t.Context()), dblock.ErrLost)
	wantErr(t, lock.FenceTx(t.Context(), l.begin()), dblock.ErrLost)
	again := l.acquire(a, "1", nil)
	if again.Token() <= lock.Token() {
		t.Error("the token went backwards")
	}
	l.release(again)
}

// A holder whose session is gone and who does not know it cannot fence a transaction, whether
// somebody else has the lock by then or not.
func lockFence[TX any](t *testing.T, c Client[TX]) {
	l := setupLocks(t, c)
	a := l.client(nil)
	lock := l.acquire(a, "1", nil)
	tx := l.begin()
	noErr(t, lock.FenceTx(t.Context(), tx))
	noErr(t, lock.FenceTx(t.Context(), tx)) // again, and in another one
	noErr(t, lock.FenceTx(t.Context(), l.begin()))
	l.release(lock)
	wantErr(t, lock.FenceTx(t.Context(), tx), dblock.ErrNotHeld)
}

// A fenced transaction holds its successors up, shared or not, in its process and in others, when its lock
// has been released and when it was lost.
func lockFenceHoldsUp[TX any](t *testing.T, c Client[TX]) {
	for _, way := range []string{"released", "lost"} {
		for _, mode := range []*dblock.LockConfig{nil, shared} {
			t.Run(fmt.Sprintf("%s, shared %t", way, mode != nil), func(t *testing.T) {
				t.Parallel()
				fencedThenGone(t, c, way, mode)
			})
		}
	}
}

func fencedThenGone[TX any](t *testing.T, c Client[TX], way string, mode *dblock.LockConfig) {
	l := setupLocks(t, c)
	a, b := l.client(&dblock.Config{TTL: 3 * time.Second}), l.client(nil)
	lock := l.acquire(a, "1", mode)
	tx := l.begin()
	noErr(t, lock.FenceTx(t.Context(), tx))
	if way == "released" {
		l.release(lock)
	} else {
		l.db.Exec(t, `SELECT pg_terminate_backend(pid) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
			WHERE locktype = 'advisory' AND datname = current_database() AND state = 'idle'`)
		<-lock.Context().Done()
	}
	for _, client := range []*dblock.Client[TX]{a, b} {
		_, err := client.TryAcquire(l.ctx(), lockKey("1"), nil)
		wantErr(t, err, dblock.ErrNotAcquired)
		got, err := client.TryAcquire(l.ctx(), lockKey("1"), shared)
		if mode == nil {
			wantErr(t, err, dblock.ErrNotAcquired)
		} else {
			noErr(t, err) // shared locks do not exclude each other
			l.release(got)
		}
	}
	got := make(chan *dblock.Lock[TX], 2)
	for _, client := range []*dblock.Client[TX]{a, b} {
		go func() { got <- l.acquire(client, "1", nil) }()
	}
	l.waiting(2)
	select {
	case <-got:
		t.Error("the lock was given out beside a fenced transaction")
	default:
	}
	noErr(t, c.Commit(t.Context(), tx))
	for range 2 {
		l.release(<-got)
	}
}
