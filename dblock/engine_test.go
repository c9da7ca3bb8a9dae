package dblock

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// What a lock costs in memory by itself: its context is made when somebody looks at it, and answers need no room.
func TestAllocations(t *testing.T) { //nolint:paralleltest // the count is of the whole process
	c, _ := fakeClient(t)
	defer end(t, c)
	ctx := context.Background()
	take := func(look bool) float64 {
		return testing.AllocsPerRun(100, func() {
			l, err := c.Acquire(ctx, Key{"order", "1"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if look {
				_ = l.Context().Done()
			}
			if err := l.Release(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	const alone, looked = 27, 5 // two requests of one key each are among them
	if n := take(false); n > alone {
		t.Errorf("%v allocations, want at most %d", n, alone)
	}
	if n := take(true); n > alone+looked {
		t.Errorf("%v allocations with a context, want at most %d", n, alone+looked)
	}
}

// An answer that leaves a key out, or names one that was not asked for, is no answer: nobody knows what became of it.
func TestAnswerThatDoesNotFit(t *testing.T) {
	t.Parallel()
	batch := func() []*op {
		return []*op{{kind: opTake, number: 1}, {kind: opDrop, number: 7}, {kind: opTake, number: -2}, {kind: opTake, number: 3}}
	}
	for name, tc := range map[string]struct {
		ones   int64
		others string
		got    []int // nil if it does not fit
	}{
		"all":               {3, "", []int{1, 1, 1}},
		"one busy":          {2, "-2:0", []int{1, 0, 1}},
		"one held up":       {1, "3:-1,1:0", []int{0, 1, -1}},
		"none":              {0, "1:0,-2:0,3:0", []int{0, 0, 0}},
		"one left out":      {1, "3:0", nil},
		"nothing said":      {0, "", nil},
		"too many":          {3, "3:0", nil},
		"a key of another":  {2, "7:0", nil},
		"named without how": {2, "3:", nil},
		"no number":         {2, "x:0", nil},
	} {
		ops := batch()
		y := saying{ones: tc.ones, others: tc.others, sequence: 5}
		if keys := y.keys(ops, opTake); keys != "{1,-2,3}" {
			t.Errorf("asked for %s", keys)
		}
		if err := y.note(ops, opTake); (err == nil) != (tc.got != nil) {
			t.Errorf("%s: got %v", name, err)
			continue
		}
		for i, o := range []*op{ops[0], ops[2], ops[3]} {
			if tc.got != nil && (o.got != tc.got[i] || o.sequence != 5) {
				t.Errorf("%s: lock %d: got %d", name, o.number, o.got)
			}
		}
	}
}

// A server that does not answer is given up after the network deadline, however long the TTL is, also by a caller
// who sends by himself; and Close does not wait for it any longer.
func TestSilenceEndsATrip(t *testing.T) {
	t.Parallel()
	for name, closing := range map[string]bool{"acquire": false, "close": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c, f := fakeClientOf(t, &Config{TTL: 24 * time.Hour})
				f.set(func() { f.silent = true })
				began := time.Now()
				asked := make(chan error, 1)
				go func() {
					_, err := c.Acquire(context.Background(), Key{"order", "1"}, nil)
					asked <- err
				}()
				synctest.Wait()
				if closing {
					end(t, c)
				}
				if err := <-asked; !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrClosed) {
					t.Errorf("got %v", err)
				}
				if took := time.Since(began); took > 21*time.Second {
					t.Errorf("it took %v", took)
				}
				if !closing {
					end(t, c)
				}
			})
		})
	}
}

// Each request has the network deadline for itself: a session that has batch after batch to send, and whose server is slow
// but answers, is kept however long that goes on.
func TestSlowBatchesAreNotCutTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, f := fakeClientOf(t, &Config{TTL: 24 * time.Hour})
		defer end(t, c)
		f.set(func() { f.delay = 7 * time.Second })
		kept, err := c.Acquire(t.Context(), Key{"order", "kept"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var wg sync.WaitGroup
		for caller := range 2 { // while one's key is asked for, the other's comes into the queue
			wg.Go(func() {
				for n := range 5 {
					if _, err := c.Acquire(t.Context(), Key{"order", fmt.Sprint(caller, n)}, nil); err != nil {
						t.Errorf("caller %d, key %d: %v", caller, n, err)
					}
				}
			})
			time.Sleep(time.Second) //nolint:forbidigo // in a bubble of synctest
		}
		wg.Wait()
		if took := time.Since(began); took != 70*time.Second || f.takes != 11 || f.beats != 0 {
			t.Errorf("%d requests and %d heartbeats, after %v: the session was not always busy", f.takes, f.beats, took)
		}
		if err := context.Cause(kept.Context()); err != nil {
			t.Error(err)
		}
		f.set(func() { f.delay = 0 })
	})
}

// A lock is kept by a heartbeat every third of the TTL, and is never closer than half of it to its end.
func TestHeartbeats(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, f := fakeClient(t)
		defer end(t, c)
		l, err := c.Acquire(t.Context(), Key{"order", "1"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 60 {
			time.Sleep(time.Second) //nolint:forbidigo // in a bubble of synctest
			synctest.Wait()
			if left := l.Remaining(); left < defaultTTL/2 {
				t.Errorf("%v remain", left)
			}
		}
		if f.beats != 12 {
			t.Errorf("%d heartbeats in a minute, want one every 5 s", f.beats)
		}
	})
}

// The network falls silent. The lock is lost when the last request that was answered had been sent nine tenths of the
// TTL ago, and not a moment later; whether anybody looks or not.
func TestSilenceEndsALockInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, f := fakeClient(t)
		defer end(t, c)
		f.set(func() { f.delay = time.Second }) // the answer to the grant comes a second after it was asked for
		asked := time.Now()
		l, err := c.Acquire(t.Context(), Key{"order", "1"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		f.set(func() { f.silent = true })
		<-l.Context().Done()
		if took := time.Since(asked); took != defaultTTL*9/10 {
			t.Errorf("lost after %v, want %v after it was asked for", took, defaultTTL*9/10)
		}
		lost, ok := errors.AsType[*LostError](context.Cause(l.Context()))
		if !ok || lost.Kind != LostSilence {
			t.Errorf("got %v", context.Cause(l.Context()))
		}
		if _, err := c.Acquire(t.Context(), Key{"order", "2"}, nil); !errors.Is(err, ErrUnavailable) || !errors.Is(err, errNoServer) {
			t.Errorf("got %v", err)
		}
	})
}

// An answer that comes when the server may have ended the session already is no grant.
func TestLateAnswerIsNoGrant(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, f := fakeClient(t)
		defer end(t, c)
		f.set(func() { f.delay = defaultTTL })
		if _, err := c.Acquire(t.Context(), Key{"order", "1"}, nil); !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	})
}

// Sixty-four times a lock is handed over in memory, or for 2 ms, and then given back to the server, for others to have.
func TestHandOversEnd(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		hold  time.Duration
		drops int
	}{
		"after 64":                    {0, 2},
		"after 2 ms":                  {time.Millisecond, 65},
		"at once where it takes long": {time.Second, 130},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c, f := fakeClient(t)
				defer end(t, c)
				var wg sync.WaitGroup
				var mu sync.Mutex
				var last Token
				for range 130 {
					wg.Go(func() {
						l, err := c.Acquire(t.Context(), Key{"order", "1"}, nil)
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						if l.Token() <= last {
							t.Errorf("token %d after %d", l.Token(), last)
						}
						last = l.Token()
						mu.Unlock()
						if tc.hold > 0 {
							time.Sleep(tc.hold) //nolint:forbidigo // in a bubble of synctest
						} else {
							synctest.Wait() // for the others to be in line
						}
						if err := l.Release(t.Context()); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				if f.drops != tc.drops {
					t.Errorf("%d give-backs, want %d", f.drops, tc.drops)
				}
			})
		})
	}
}

// Callers of one process are served in the order in which they came.
func TestFirstComeFirstServed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _ := fakeClient(t)
		defer end(t, c)
		first, err := c.Acquire(t.Context(), Key{"order", "1"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		served := make(chan int, 20)
		for i := range 20 {
			wg.Go(func() {
				l, err := c.Acquire(t.Context(), Key{"order", "1"}, nil)
				if err != nil {
					t.Error(err)
					return
				}
				served <- i
				if err := l.Release(t.Context()); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		if err := first.Release(t.Context()); err != nil {
			t.Error(err)
		}
		wg.Wait()
		for want := range 20 {
			if got := <-served; got != want {
				t.Errorf("caller %d was served as number %d", got, want)
			}
		}
	})
}

// A session behind which the server process has changed is not ours any more.
func TestHeartbeatsFindAnotherProcess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, f := fakeClient(t)
		defer end(t, c)
		l, err := c.Acquire(t.Context(), Key{"order", "1"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		f.set(func() { f.pid = 2 })
		<-l.Context().Done()
		if err := context.Cause(l.Context()); !errors.Is(err, ErrSessionNotPinned) || !errors.Is(err, ErrLost) {
			t.Errorf("got %v", err)
		}
	})
}

// The server may not give up a connection before the TTL, by which holders count, nor much later.
func TestKeepalivesOutlastTheTTL(t *testing.T) {
	t.Parallel()
	for _, ttl := range []time.Duration{leastTTL, 999 * time.Millisecond, time.Second, 4 * time.Second, 4001 * time.Millisecond, defaultTTL, time.Minute, longestTTL} {
		names, values := strings.Split(strings.Trim(serverSettings(ttl, time.Second).Args[0].(string), "{}"), ","), serverSettings(ttl, time.Second).Args[1].(string)
		var idle, interval, count, user, transaction time.Duration
		if _, err := fmt.Sscanf(values, "{%d,%d,%d,%d,%d}", &idle, &interval, &count, &user, &transaction); err != nil || len(names) != 5 {
			t.Fatal(values, err)
		}
		gone := (idle + count*interval) * time.Second
		if gone < ttl || gone > ttl+4*time.Second || user*time.Millisecond < ttl || transaction*time.Millisecond < ttl+time.Second {
			t.Errorf("TTL %v: the connection is given up after %v, answers after %d ms, a transaction after %d ms", ttl, gone, user, transaction)
		}
		if idle > 32767 || interval > 32767 {
			t.Errorf("TTL %v: Linux refuses more than 32767 s", ttl)
		}
	}
}

// The server does not have the lock that is given back: nobody knows what else it does not have. The session is not used any more, and its
// other holders are told.
func TestServerThatDoesNotHaveTheLock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, f := fakeClient(t)
		defer end(t, c)
		var held []*Lock[struct{}]
		for _, id := range []string{"1", "2"} {
			l, err := c.Acquire(t.Context(), Key{"order", id}, nil)
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, l)
		}
		f.set(func() { f.forgetful = true })
		if err := held[0].Release(t.Context()); !errors.Is(err, ErrLost) || !errors.Is(err, ErrNotHeld) {
			t.Errorf("got %v", err)
		}
		if err := context.Cause(held[1].Context()); !errors.Is(err, ErrLost) {
			t.Errorf("the other lock: %v", err)
		}
		if _, err := c.Acquire(t.Context(), Key{"order", "3"}, nil); !errors.Is(err, errNoServer) {
			t.Errorf("the session is used again: %v", err)
		}
	})
}

func TestNamesOfKinds(t *testing.T) {
	t.Parallel()
	for want, got := range map[string]fmt.Stringer{
		"overrun": Overrun, "acquired": Acquired, "unknown": EventKind(99), "silence": LostSilence, "closed": LostClosed, "fence": LostFence,
	} {
		if got.String() != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
