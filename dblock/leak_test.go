//go:build unix

package dblock_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// leaks notes the keys that were reported as leaked.
type leaks struct {
	mu   sync.Mutex
	ids  []string
	text bytes.Buffer
}

func (l *leaks) config(ttl time.Duration) *dblock.Config {
	return &dblock.Config{TTL: ttl, Logger: slog.New(slog.NewTextHandler(l, nil)), Observe: func(e dblock.Event) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if e.Kind == dblock.Leaked {
			l.ids = append(l.ids, e.Key.ID)
		}
	}}
}

func (l *leaks) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *leaks) of(id string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.ids {
		if o == id {
			n++
		}
	}
	return n
}

// collect waits until the drop of a lock that is dropped now is reported: by then, every one that was dropped before has been,
// too, if it can be.
func (l *leaks) collect(t *testing.T, c *client, control string) {
	t.Helper()
	drop(t, c, control)
	c.WatchHandles()
	pgtest.Eventually(t, "the control "+control+" is reported", func() bool {
		runtime.GC()
		return l.of(control) == 1
	})
	for range 5 {
		runtime.GC()
	}
}

//go:noinline
func drop(t *testing.T, c *client, id string) {
	t.Helper()
	acquire(t, c, id, nil)
}

// A lock that is dropped is reported, once, after a heartbeat, and stays held until the client is closed.
func TestDroppedLockIsReportedAndKept(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var l leaks
	c, other := b.client(t, l.config(6*time.Second)), b.client(t, nil)
	drop(t, c, "a")
	pgtest.Eventually(t, "it is reported", func() bool {
		runtime.GC()
		return l.of("a") == 1
	})
	l.collect(t, c, "b")
	if n := l.of("a"); n != 1 {
		t.Errorf("reported %d times", n)
	}
	if _, err := other.TryAcquire(within(t), key("a"), nil); !errors.Is(err, dblock.ErrNotAcquired) {
		t.Errorf("the lock was given to another: %v", err)
	}
	if err := c.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	release(t, acquire(t, other, "a", nil))
	l.mu.Lock()
	defer l.mu.Unlock()
	if log := l.text.String(); strings.Count(log, "dropped without Release") != 2 || strings.Contains(log, "id=a") {
		t.Errorf("log: %s", log)
	}
}

// remnant is what a caller may keep of a lock that he drops.
type remnant struct {
	keep any
	end  func()
}

// Who has the context of a lock, or one that comes from it, works under the lock, and is not reported; nor is the function of Do, a
// callback that waits for the loss, or a lock that was released.
func TestKeptContextIsNoLeak(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var l leaks
	c, other := b.client(t, l.config(time.Hour)), b.client(t, nil)
	type key string
	kept := map[string]remnant{}
	for id, derive := range map[string]func(context.Context) (any, func()){
		"context": func(ctx context.Context) (any, func()) { return ctx, nil },
		"value":   func(ctx context.Context) (any, func()) { return context.WithValue(ctx, key("k"), 1), nil },
		"cancel":  func(ctx context.Context) (any, func()) { ctx, end := context.WithCancel(ctx); return ctx, end },
		"timeout": func(ctx context.Context) (any, func()) {
			ctx, end := context.WithTimeout(ctx, time.Hour)
			return ctx, end
		},
		"without cancel": func(ctx context.Context) (any, func()) { return context.WithoutCancel(ctx), nil },
		"after func": func(ctx context.Context) (any, func()) {
			stop := context.AfterFunc(ctx, func() {})
			return nil, func() { stop() }
		},
		"another lock": func(ctx context.Context) (any, func()) {
			inner, err := c.Acquire(ctx, dblock.Key{Space: "order", ID: "inner"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			return nil, func() { release(t, inner) }
		},
	} {
		keep, end := derive(acquire(t, c, id, nil).Context())
		kept[id] = remnant{keep, end}
	}
	release(t, acquire(t, c, "released", nil))
	err := c.Do(within(t), dblock.Key{Space: "order", ID: "do"}, nil, func(context.Context, *locked) error {
		c.WatchHandles()
		l.collect(t, c, "control 1")
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for _, id := range []string{"context", "value", "cancel", "timeout", "without cancel", "after func", "another lock", "inner", "released", "do"} {
		if n := l.of(id); n != 0 {
			t.Errorf("%s: reported", id)
		}
	}
	for id, w := range kept {
		if _, err := other.TryAcquire(within(t), dblock.Key{Space: "order", ID: id}, nil); !errors.Is(err, dblock.ErrNotAcquired) {
			t.Errorf("%s: the lock was given to another: %v", id, err)
		}
		if w.end != nil {
			w.end()
		}
	}
	runtime.KeepAlive(kept)
	ids := slices.Collect(maps.Keys(kept))
	clear(kept)
	l.collect(t, c, "control 2")
	for _, id := range ids { // or this would show nothing
		pgtest.Eventually(t, id+" is reported when nobody has the context any more", func() bool {
			runtime.GC()
			return l.of(id) == 1
		})
	}
}
