//go:build linux

package faults_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// When the clock jumps ahead, leases are over: others get them, the holder is told, and nothing that he writes behind a fence lands. When it
// goes back, a living holder keeps his; the lease of one who is dead is over a TTL later, and not when the clock has caught up.
func TestLeasesWhenTheClockIsStepped(t *testing.T) {
	t.Parallel()
	c, s := onClock(t)
	var last dblock.Token
	ahead := time.Duration(0)
	for name, step := range steps {
		key := dblock.Key{Space: "order", ID: name}
		own := open(t, c.pool.Config().ConnString())
		holder, err := dblock.NewLeases(t.Context(), pgxdriver.New(own), &dblock.Config{TTL: 3 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		held, err := holder.Acquire(t.Context(), key, nil)
		if err != nil {
			t.Fatal(err)
		}
		ahead += step
		c.set(t, ahead)
		if step < 0 {
			if _, err := s.leases.TryAcquire(t.Context(), key, nil); !errors.Is(err, dblock.ErrNotAcquired) && held.Err() == nil {
				t.Errorf("%s: while it is held: %v", name, err)
			}
			own.Close() // it is heard of no more
		}
		within, cancel := context.WithTimeout(t.Context(), time.Minute)
		next, err := s.leases.Acquire(within, key, nil)
		cancel()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if next.Token() <= max(last, held.Token()) {
			t.Errorf("%s: token %d after %d and %d", name, next.Token(), held.Token(), last)
		}
		last = next.Token()
		err = pgx.BeginFunc(t.Context(), c.pool, func(tx pgx.Tx) error { return held.FenceTx(t.Context(), tx) })
		if step > 0 && !errors.Is(err, dblock.ErrLost) {
			t.Errorf("%s: the past holder's fence says %v", name, err)
		}
		select {
		case <-held.Context().Done():
		case <-time.After(time.Minute):
			t.Errorf("%s: the holder was not told", name)
		}
		if err := next.Release(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		_ = holder.Close(t.Context())
	}
	fmt.Printf("faults clock leases steps=%d ok=%t\n", len(steps), !t.Failed())
}

// Session locks know no clock but the server's time-out of silent sessions. It is right when the clock jumps ahead. When the clock goes back, a session
// that is silent just then may stay until somebody ends it: Postgres waits for the time that it has noted. A living holder has his lock, or is
// told that he has not.
func TestSessionLocksWhenTheClockIsStepped(t *testing.T) {
	t.Parallel()
	c, _ := onClock(t)
	locks := func() *dblock.Client[pgx.Tx] {
		client, err := dblock.New(t.Context(), pgxdriver.New(c.pool), &dblock.Config{TTL: 3 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := client.Close(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		})
		return client
	}
	a, b := locks(), locks()
	ahead, lost := time.Duration(0), 0
	for name, step := range steps {
		key := dblock.Key{Space: "order", ID: name}
		held, err := a.Acquire(t.Context(), key, nil)
		if err != nil {
			t.Fatal(err)
		}
		silent, err := pgx.Connect(t.Context(), c.pool.Config().ConnString())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := silent.Exec(t.Context(), `SELECT set_config('idle_session_timeout', '3s', false), pg_advisory_lock(4711)`); err != nil {
			t.Fatal(err)
		}
		ahead += step
		c.set(t, ahead)
		if step < 0 {
			say(t, c.pool, `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711`)
		}
		pgtest.Eventually(t, name+": the silent session has ended", func() bool {
			return number(t, c.pool, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711`) == 0
		})
		_ = silent.Close(t.Context())
		fence := func() error {
			return pgx.BeginFunc(t.Context(), c.pool, func(tx pgx.Tx) error { return held.FenceTx(t.Context(), tx) })
		}
		other, err := b.TryAcquire(t.Context(), key, nil)
		switch {
		case err == nil:
			lost++
			if err := fence(); !errors.Is(err, dblock.ErrLost) {
				t.Errorf("%s: another one has the lock, and the holder's fence says %v", name, err)
			}
			err = other.Release(t.Context())
		case errors.Is(err, dblock.ErrNotAcquired), errors.Is(err, dblock.ErrUnavailable): // its own session may have ended
			err = nil
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := held.Release(t.Context()); err != nil && !errors.Is(err, dblock.ErrLost) {
			t.Errorf("%s: %v", name, err)
		}
	}
	fmt.Printf("faults clock sessions steps=%d lost=%d ok=%t\n", len(steps), lost, !t.Failed())
}
