//go:build unix

package dblock_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/internal/fault"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// lost waits until the lock's ctx ends, and returns the cause.
func lost(t *testing.T, l interface{ Context() context.Context }) *dblock.LostError {
	t.Helper()
	select {
	case <-l.Context().Done():
	case <-time.After(60 * time.Second):
		t.Fatal("the lock was not lost")
	}
	err := context.Cause(l.Context())
	e, ok := errors.AsType[*dblock.LostError](err)
	if !ok || !errors.Is(err, dblock.ErrLost) {
		t.Fatalf("got cause %v", err)
	}
	return e
}

const killHolders = `SELECT pg_terminate_backend(l.pid) FROM pg_locks l WHERE l.locktype = 'advisory'
	AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())`

// The server ends a session. Every handle on it is told, long before a heartbeat would have found out, and
// the next lock comes from another session.
func TestKilledBackendIsToldAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.client(t, &dblock.Config{TTL: time.Hour})
	var held []*locked
	for i := range 50 {
		held = append(held, acquire(t, c, fmt.Sprint(i), nil))
	}
	b.Exec(t, killHolders)
	for _, l := range held {
		e := lost(t, l)
		if e.Kind != dblock.LostConnection || e.Token != l.Token() || e.Key != l.Key() {
			t.Errorf("got %+v", e)
		}
		if err := l.Release(t.Context()); !errors.Is(err, dblock.ErrLost) {
			t.Errorf("release: %v", err)
		}
		if !errors.Is(l.Err(), dblock.ErrLost) || l.Remaining() != 0 || l.Context().Err() == nil {
			t.Errorf("%v, %v left, %v", l.Err(), l.Remaining(), l.Context().Err())
		}
	}
	again := acquire(t, c, "0", nil)
	if again.Token() <= held[0].Token() {
		t.Error("the token went backwards")
	}
	release(t, again)
}

// The same for a lock that was waited for, on a connection of its own, and for one that is being waited for:
// that one goes on waiting.
func TestKilledWaiters(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	first, second, third := b.client(t, nil), b.client(t, &dblock.Config{TTL: time.Hour}), b.client(t, nil)
	l := acquire(t, first, "1", nil)
	won := make(chan *locked, 1)
	go func() { won <- acquire(t, second, "1", nil) }()
	waiting(t, b, 1)
	b.Exec(t, `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
	waiting(t, b, 1)
	release(t, l)
	l = <-won
	go func() { won <- acquire(t, third, "1", nil) }()
	waiting(t, b, 1)
	b.Exec(t, `SELECT pg_terminate_backend(h.pid) FROM pg_locks h JOIN pg_locks w USING (classid, objid, objsubid, database)
		WHERE h.granted AND NOT w.granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
	if e := lost(t, l); e.Kind != dblock.LostConnection {
		t.Errorf("got %v", e)
	}
	release(t, <-won)
}

// waiting waits until n sessions wait for an advisory lock of this database.
func waiting(t *testing.T, b bench, n int64) {
	t.Helper()
	pgtest.Eventually(t, fmt.Sprint(n, " sessions wait"), func() bool {
		return b.Int(t, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == n
	})
}

// The network swallows everything. The holder is told by the clock, before the server gives the lock to
// anybody else.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	proxy := fault.New(t, b.URL)
	c := clientOf(t, b.Via(proxy.URL()).Pool(t), &dblock.Config{TTL: 2 * time.Second})
	other := b.client(t, nil)
	l := acquire(t, c, "1", nil)
	told := make(chan struct{})
	context.AfterFunc(l.Context(), func() { close(told) })
	b.holders(t, func(pid int64) { proxy.Arm(pid, fault.MuteNext) })
	next := acquire(t, other, "1", nil)
	if l.Context().Err() == nil {
		t.Error("the next holder had it before the first one could know")
	}
	<-told
	if e := lost(t, l); e.Kind != dblock.LostSilence || l.Err() == nil {
		t.Errorf("got %v", e)
	}
	if next.Token() <= l.Token() {
		t.Error("the token went backwards")
	}
	release(t, next)
}

// holders calls fn with the pid of each session that holds an advisory lock.
func (b bench) holders(t *testing.T, fn func(pid int64)) {
	t.Helper()
	const sql = `FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`
	for i := range b.Int(t, `SELECT count(DISTINCT pid) `+sql) {
		fn(b.Int(t, `SELECT DISTINCT pid `+sql+` ORDER BY pid OFFSET $1 LIMIT 1`, i))
	}
}

// A lock is kept for many times the TTL by heartbeats, and by waiters, whose session is busy.
func TestHeartbeatsKeepTheLock(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	a, c := b.client(t, &dblock.Config{TTL: 4 * time.Second}), b.client(t, &dblock.Config{TTL: 4 * time.Second})
	l := acquire(t, a, "1", nil)
	won := make(chan *locked, 1)
	go func() { won <- acquire(t, c, "1", nil) }()
	waiting(t, b, 1)
	began := time.Now()
	pgtest.Eventually(t, "two TTLs", func() bool {
		if l.Err() != nil {
			t.Fatal(l.Err())
		}
		if r := l.Remaining(); r <= 0 || r > 4*time.Second {
			t.Errorf("%v remain", r)
		}
		return time.Since(began) > 8*time.Second
	})
	release(t, l)
	l = <-won
	began = time.Now()
	pgtest.Eventually(t, "two TTLs", func() bool { return time.Since(began) > 8*time.Second })
	release(t, l)
}
