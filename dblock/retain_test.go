package dblock

import (
	"runtime"
	"testing"
	"time"
	"weak"
)

// A Lock that is kept after its release keeps no tenure that came later: a program may keep one for years.
func TestReleasedLockKeepsNothingLater(t *testing.T) {
	t.Parallel()
	c, _ := fakeClient(t)
	c.engine.limits.handOver, c.engine.limits.handOvers = time.Hour, 1<<30
	k := Key{"order", "1"}
	first, err := c.Acquire(t.Context(), k, nil)
	if err != nil {
		t.Fatal(err)
	}
	held := first
	var later []weak.Pointer[tenure]
	for range 20 { // each hand-over rings two: who has left, and who has it now
		next := make(chan *Lock[struct{}], 1)
		go func() {
			l, err := c.Acquire(t.Context(), k, nil)
			if err != nil {
				t.Error(err)
			}
			next <- l
		}()
		for c.InLine(k) == 0 {
			runtime.Gosched()
		}
		if err := held.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if held = <-next; held == nil {
			t.FailNow()
		}
		later = append(later, weak.Make(held.tenure))
	}
	if err := held.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	held = nil
	until := time.Now().Add(time.Minute)
	for {
		runtime.GC()
		alive := 0
		for _, w := range later {
			if w.Value() != nil {
				alive++
			}
		}
		if alive <= 2 { // the last one that was rung, and its entry's
			break
		}
		if time.Now().After(until) {
			t.Fatalf("%d of %d tenures are kept by one that was released before them", alive, len(later))
		}
		runtime.Gosched()
	}
	runtime.KeepAlive(first)
	end(t, c)
}
