package dblock

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// panicking is a client on a fake server whose observer panics when it is told of the nth event of a kind.
func panicking(t *testing.T, kind EventKind, nth int32) (*Client[struct{}], *fakeServer) {
	t.Helper()
	var told atomic.Int32
	return fakeClientOf(t, &Config{Observe: func(ev Event) {
		if ev.Kind == kind && told.Add(1) == nth {
			panic("of the observer")
		}
	}})
}

// recovering calls fn as a server of HTTP calls a handler: it goes on after a panic.
func recovering(t *testing.T, fn func() error) {
	t.Helper()
	defer func() { _ = recover() }()
	t.Errorf("no panic: %v", fn())
}

// wantNothing waits until nothing happens any more, and looks whether anything is held or wanted then.
func wantNothing(t *testing.T, c *Client[struct{}]) {
	t.Helper()
	synctest.Wait()
	if used, entries := c.Used(); used != 0 || entries != 0 {
		t.Errorf("%d locks and %d keys are still counted", used, entries)
	}
}

// Observe panics in a goroutine of the caller's, who recovers. What others have asked for in that moment is sent all the same.
func TestPanicOfAnObserver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _ := fakeClientOf(t, &Config{Observe: func(ev Event) {
			if ev.Kind == Released {
				panic("of the caller's code")
			}
		}})
		defer end(t, c)
		for _, id := range []string{"1", "2"} {
			l, err := c.Acquire(t.Context(), Key{"order", id}, nil)
			if err != nil {
				t.Fatal(err)
			}
			recovering(t, func() error { return l.Release(t.Context()) })
		}
		wantNothing(t, c)
	})
}

// Observe panics as a verb that takes locks is about to return. Its caller recovers and has no handle, so he has no lock
// either, and does not stand in line for one.
func TestPanicOfAnObserverLeavesNoLock(t *testing.T) {
	t.Parallel()
	keys := []Key{{"order", "1"}, {"order", "2"}, {"order", "3"}}
	for name, tc := range map[string]struct {
		nth  int32
		call func(ctx context.Context, c *Client[struct{}]) error
	}{
		"Acquire": {1, func(ctx context.Context, c *Client[struct{}]) error {
			_, err := c.Acquire(ctx, keys[0], nil)
			return err
		}},
		"TryAcquire": {1, func(ctx context.Context, c *Client[struct{}]) error {
			_, err := c.TryAcquire(ctx, keys[0], nil)
			return err
		}},
		"AcquireAll, at its second lock": {2, func(ctx context.Context, c *Client[struct{}]) error {
			_, err := c.AcquireAll(ctx, keys, nil)
			return err
		}},
		"Do": {1, func(ctx context.Context, c *Client[struct{}]) error {
			return c.Do(ctx, keys[0], nil, func(context.Context, *Lock[struct{}]) error {
				t.Error("fn runs")
				return nil
			})
		}},
		"Acquire, of a lock that is shared already": {2, func(ctx context.Context, c *Client[struct{}]) error {
			shared := &LockConfig{Shared: true}
			first, err := c.Acquire(ctx, keys[0], shared)
			if err != nil {
				return err
			}
			defer func() { _ = first.Release(ctx) }()
			_, err = c.Acquire(ctx, keys[0], shared)
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c, _ := panicking(t, Acquired, tc.nth)
				defer end(t, c)
				// A ctx without end, so that the caller sends by himself what he asks for, and is told of the answer there.
				recovering(t, func() error { return tc.call(context.WithoutCancel(t.Context()), c) })
				wantNothing(t, c)
			})
		})
	}
}

// The same when Observe is told of somebody else's loss: the caller himself has no answer yet.
func TestPanicOfAnObserverLeavesNobodyInLine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, f := panicking(t, Lost, 1)
		defer end(t, c)
		dialled := make(chan struct{})
		c.engine.db = func(context.Context) (pg.Session, error) { <-dialled; return nil, errNoServer }
		key := Key{"order", "1"}
		lock, err := c.Acquire(t.Context(), key, nil)
		if err != nil {
			t.Fatal(err)
		}
		f.set(func() { f.silent = true })
		c.engine.shards[0].timer.Stop() // as after a freeze, in which the timer has not fired yet
		time.Sleep(defaultTTL)          //nolint:forbidigo // in a bubble of synctest
		recovering(t, func() error { _, err := c.Acquire(t.Context(), key, nil); return err })
		if n := c.InLine(key); n != 0 {
			t.Errorf("%d callers wait, who are all gone", n)
		}
		if lock.Err() == nil {
			t.Error("the lock is not lost")
		}
		close(dialled)
		wantNothing(t, c)
	})
}

// A panic at the release of one of several locks does not keep the others.
func TestPanicOfAnObserverKeepsNoneOfSeveral(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _ := panicking(t, Released, 1)
		defer end(t, c)
		locks, err := c.AcquireAll(t.Context(), []Key{{"order", "1"}, {"order", "2"}, {"order", "3"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		recovering(t, func() error { return locks.Release(t.Context()) })
		wantNothing(t, c)
	})
}

// A panic out of Close leaves nothing open: what it would have done is done behind its back.
func TestPanicOfAnObserverInClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _ := panicking(t, Lost, 1)
		if _, err := c.Acquire(t.Context(), Key{"order", "1"}, nil); err != nil {
			t.Fatal(err)
		}
		recovering(t, func() error { return c.Close(t.Context()) })
		wantNothing(t, c)
		end(t, c)
	})
}

// Nor a goroutine, if nobody closes the client again.
func TestPanicOfAnObserverInCloseEndsTheWatch(t *testing.T) {
	t.Parallel()
	c, _ := panicking(t, Lost, 1)
	c.engine.watch = newWatch(c.engine)
	if _, err := c.Acquire(t.Context(), Key{"order", "1"}, nil); err != nil {
		t.Fatal(err)
	}
	recovering(t, func() error { return c.Close(t.Context()) })
	gone := make(chan struct{})
	go func() { c.engine.wg.Wait(); close(gone) }()
	select {
	case <-gone:
	case <-time.After(time.Minute):
		t.Error("a goroutine is left")
	}
}

// In a goroutine of the library's nobody can recover. The process dies of the panic itself, with its message, and not of
// what the panic leads to. This one comes between two batches that one goroutine sends.
func TestPanicOfAnObserverInAGoroutine(t *testing.T) {
	t.Parallel()
	const child = "DBLOCK_OBSERVER_PANICS"
	if os.Getenv(child) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		out, err := cmd.CombinedOutput()
		if text := string(out); err == nil || !strings.Contains(text, "panic: of the observer") || strings.Contains(text, "fatal error") {
			t.Errorf("the process has died of %v:\n%s", err, text)
		}
		return
	}
	synctest.Test(t, func(t *testing.T) {
		c, f := panicking(t, Acquired, 1)
		f.set(func() { f.delay = time.Second })
		for _, id := range []string{"1", "2"} {
			go func() { _, _ = c.Acquire(t.Context(), Key{"order", id}, nil) }()
			synctest.Wait() // the second comes while the first is asked for
		}
		time.Sleep(time.Minute) //nolint:forbidigo // in a bubble of synctest
	})
}
