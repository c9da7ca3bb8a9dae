package dblock

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"
)

// merged is a context that ends with either of two, as programs write them: its Err asks both.
type merged struct {
	context.Context
	other context.Context
	done  chan struct{}
}

func merge(a, b context.Context) merged {
	m := merged{a, b, make(chan struct{})}
	var once sync.Once
	for _, ctx := range []context.Context{a, b} {
		context.AfterFunc(ctx, func() { once.Do(func() { close(m.done) }) })
	}
	return m
}

func (m merged) Done() <-chan struct{} { return m.done }

func (m merged) Err() error {
	if err := m.Context.Err(); err != nil { // which asks the client, where it is a lock's
		return err
	}
	return m.other.Err()
}

// A ctx that nobody has looked at while the lock was held tells its end all the same, and so does one that is made of it.
func TestCtxLookedAtLate(t *testing.T) {
	t.Parallel()
	type word struct{}
	c, f := fakeClient(t)
	l, err := c.Acquire(context.WithValue(t.Context(), word{}, "kept"), Key{"order", "1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx := l.Context()
	if !errors.Is(context.Cause(ctx), ErrNotHeld) || !errors.Is(ctx.Err(), context.Canceled) || ctx.Value(word{}) != "kept" {
		t.Errorf("got %v, %v, %v", context.Cause(ctx), ctx.Err(), ctx.Value(word{}))
	}
	<-ctx.Done()
	lost, err := c.Acquire(t.Context(), Key{"order", "1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.set(func() { f.silent = true })
	c.engine.mu.Lock()
	c.engine.lose(c.engine.shards[0], LostConnection, errHangup)
	c.engine.unlock()
	of, cancel := context.WithCancel(lost.Context())
	defer cancel()
	<-of.Done()
	if err, ok := errors.AsType[*LostError](context.Cause(of)); !ok || err.Kind != LostConnection {
		t.Errorf("got %v", context.Cause(of))
	}
	end(t, c)
}

// The end of a ctx that is made of a lock's asks the client, which must not have its mutex then.
func TestCtxMadeOfALocks(t *testing.T) {
	t.Parallel()
	for name, verb := range map[string]func(context.Context, *Client[struct{}]) error{
		"acquire": func(ctx context.Context, c *Client[struct{}]) error {
			_, err := c.Acquire(ctx, Key{"order", "2"}, nil)
			return err
		},
		"do": func(ctx context.Context, c *Client[struct{}]) error {
			return c.Do(ctx, Key{"order", "2"}, nil, func(ctx context.Context, _ *Lock[struct{}]) error { return ctx.Err() })
		},
	} {
		for when, granted := range map[string]bool{"in line": false, "granted in this moment": true} {
			t.Run(name+" "+when, func(t *testing.T) {
				t.Parallel()
				c, _ := fakeClient(t)
				c.engine.limits.handOver = time.Hour
				outer, err := c.Acquire(t.Context(), Key{"order", "1"}, nil)
				if err != nil {
					t.Fatal(err)
				}
				held, err := c.Acquire(t.Context(), Key{"order", "2"}, nil)
				if err != nil {
					t.Fatal(err)
				}
				other, cancel := context.WithCancel(t.Context())
				ctx := merge(outer.Context(), other)
				asked := make(chan error, 1)
				go func() { asked <- verb(ctx, c) }()
				for c.InLine(Key{"order", "2"}) == 0 {
					runtime.Gosched()
				}
				go func() { // or it would be the test that hangs
					c.engine.mu.Lock()
					cancel()
					<-ctx.Done()
					if granted {
						held.tenure.leave()
					}
					c.engine.unlock()
				}()
				select {
				case err := <-asked:
					if !errors.Is(err, context.Canceled) && (err != nil || !granted) {
						t.Errorf("got %v", err)
					}
				case <-time.After(20 * time.Second):
					t.Fatal("the client is stuck")
				}
				end(t, c)
			})
		}
	}
}
