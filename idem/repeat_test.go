package idem

import (
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// Who asks again when he is told to is never told a part of a second, never before the end of the lease if that is what he waits
// for, and never to wait for much longer than the key has been under way.
func TestRepeatAfter(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		age, left float64
		want      time.Duration
	}{
		{0, 0, time.Second}, // nothing is known
		{0.2, 29, time.Second},
		{1, 29, time.Second},
		{1.001, 29, 2 * time.Second},
		{4, 27, 4 * time.Second},
		{25, 22, 10 * time.Second},
		{3600, 3600, 10 * time.Second}, // of a key that others have begun and left, under a long lease
		{25, 4.2, 5 * time.Second},     // the owner has missed its heartbeats
		{25, 0.001, time.Second},
		{-5, 29, time.Second}, // the server's clock was set back
		{math.MaxFloat64, math.MaxFloat64, 10 * time.Second},
	} {
		if got := repeatAfter(tc.age, tc.left); got != tc.want {
			t.Errorf("age %v s, lease %v s: got %v, want %v", tc.age, tc.left, got, tc.want)
		}
	}
}

// Whoever does what RetryAfter says asks for the key of an owner that has died only a few times, and the last time within a second of
// its being free. The answer of an owner that lives is not waited for twice as long as it took, but for the part of a second, nor for ten seconds more.
func TestRepeatsAsAdvised(t *testing.T) {
	t.Parallel()
	const lease = 30.0
	for died := 0.0; died < 20; died += 0.37 { // after the key was begun; the last heartbeat was every ten seconds
		free := died - math.Mod(died, lease/3) + lease
		asks, at := 0, died+0.01
		for at < free {
			at += repeatAfter(at, free-at).Seconds()
			asks++
		}
		if asks > 9 || at-free > 1 {
			t.Errorf("died after %v s: asked %d times, the last time %v s after the key was free", died, asks, at-free)
		}
	}
	for took := 0.1; took < 120; took *= 1.3 {
		at := 0.05
		for at < took {
			at += repeatAfter(at, lease-math.Mod(at, lease/3)).Seconds()
		}
		if late := at - took; late > min(took+1, 10) {
			t.Errorf("an answer after %v s was waited for %v s longer", took, late)
		}
	}
}

// Those who are refused in memory are told for how long the key has been executed, whenever they come.
func TestQueueTellsTheAge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var q queue
		lead := (<-inLine(t, &q, 0)[0]).lead
		early := inLine(t, &q, 0, 3*time.Second)
		lead.busy()
		<-time.After(7 * time.Second) // of the bubble
		lead.busy()                   // known already
		late := inLine(t, &q, 0)
		for _, tc := range []struct {
			who  chan verdict
			want time.Duration
		}{{early[0], 0}, {early[1], 3 * time.Second}, {late[0], 7 * time.Second}} {
			if v := <-tc.who; !errors.Is(v.err, ErrInFlight) || v.age != tc.want {
				t.Errorf("got %v, %v, want %v", v.err, v.age, tc.want)
			}
		}
		second := inLine(t, &q, time.Hour)
		lead.pass()
		next := (<-second[0]).lead
		next.busy() // an execution of its own
		if v := <-inLine(t, &q, 0)[0]; v.age != 0 {
			t.Errorf("got %v of an execution that has just begun", v.age)
		}
		next.pass()
	})
}
