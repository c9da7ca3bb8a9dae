package idem

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	aKey      = identity{"pgonce", "m1", "refund", "r1"}
	errFailed = errors.New("failed")
)

// inLine starts callers of one key, one after the other, and returns their verdicts as they come.
func inLine(t *testing.T, q *queue, patience ...time.Duration) (verdicts []chan verdict) {
	t.Helper()
	for _, p := range patience {
		got := make(chan verdict, 1)
		go func() { got <- q.join(t.Context(), aKey, p) }()
		synctest.Wait()
		verdicts = append(verdicts, got)
	}
	return verdicts
}

func none(verdicts []chan verdict) bool {
	synctest.Wait()
	return !slices.ContainsFunc(verdicts, func(c chan verdict) bool { return len(c) > 0 })
}

func TestQueueHandsTheAnswerToAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var q queue
		lead := (<-inLine(t, &q, 0)[0]).lead
		waiting := inLine(t, &q, 0, time.Hour, 0)
		if !none(waiting) { // also those without patience: the leader is only looking
			t.Error("somebody did not wait")
		}
		lead.answer(record{rows: 1, attempt: 42}, nil)
		for _, c := range waiting {
			if v := <-c; v.lead != nil || v.err != nil || v.rec.attempt != 42 {
				t.Errorf("got %+v", v)
			}
		}
		if len(q.lines) != 0 {
			t.Error("the line is still there")
		}
	})
}

// A failed leader wakes exactly one, in the order of arrival.
func TestQueuePassesTheLeadOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var q queue
		lead := (<-inLine(t, &q, time.Hour)[0]).lead
		waiting := inLine(t, &q, time.Hour, time.Hour, time.Hour)
		for len(waiting) > 0 {
			lead.busy()
			lead.pass()
			lead.pass() // does nothing
			synctest.Wait()
			v := <-waiting[0]
			if waiting = waiting[1:]; v.lead == nil || !none(waiting) {
				t.Fatalf("got %+v, and others woke: %t", v, !none(waiting))
			}
			lead.answer(record{}, errFailed) // of a lead that is over
			lead = v.lead
		}
		lead.pass()
		if len(q.lines) != 0 {
			t.Error("the line is still there")
		}
	})
}

// While the key is executed, nobody stays without patience, and nobody longer than that.
func TestQueueLosesPatience(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var q queue
		lead := (<-inLine(t, &q, 0)[0]).lead
		waiting := inLine(t, &q, 0, time.Minute, time.Second)
		<-time.After(2 * time.Second) // by the fake clock; the third has no patience left, but the key is not busy
		if !none(waiting) {
			t.Error("somebody left a leader who was only looking")
		}
		lead.busy()
		for i, left := range []bool{true, false, true} {
			synctest.Wait()
			if (len(waiting[i]) > 0) != left {
				t.Errorf("caller %d left: %t", i, !left)
			}
		}
		if v := <-waiting[0]; !errors.Is(v.err, ErrInFlight) {
			t.Errorf("got %+v", v)
		}
		if v := <-inLine(t, &q, 0)[0]; !errors.Is(v.err, ErrInFlight) {
			t.Errorf("a new caller without patience: %+v", v)
		}
		start := time.Now()
		if v := <-waiting[1]; !errors.Is(v.err, ErrInFlight) || time.Since(start) != 58*time.Second {
			t.Errorf("got %+v after %v", v, time.Since(start))
		}
		lead.pass()
		if len(q.lines) != 0 {
			t.Error("the line is still there")
		}
	})
}

// The end of a follower's ctx is its own affair; the lead, if it comes in that moment, goes on.
func TestQueueSurvivesLeavers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var q queue
		lead := (<-inLine(t, &q, 0)[0]).lead
		ctx, leave := context.WithCancelCause(t.Context())
		left := make(chan verdict, 1)
		go func() { left <- q.join(ctx, aKey, time.Hour) }()
		synctest.Wait()
		next := inLine(t, &q, time.Hour)
		q.mu.Lock()
		leave(errFailed) // before the lead is passed on, and is seen after it
		q.mu.Unlock()
		lead.pass()
		v := <-left
		if v.lead != nil {
			v.lead.pass() // it got the lead before it looked at its ctx
		} else if !errors.Is(v.err, errFailed) {
			t.Errorf("got %+v", v)
		}
		if v := <-next[0]; v.lead == nil {
			t.Errorf("got %+v", v)
		} else {
			v.lead.pass()
		}
		if len(q.lines) != 0 {
			t.Error("the line is still there")
		}
	})
}

// Whatever leaders and followers do, there is one leader at a time, nobody is forgotten, and nothing
// is left behind.
func TestQueueUnderAStorm(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var (
		q       queue
		leaders atomic.Int64
		wg      sync.WaitGroup
	)
	for n := range 64 {
		rng := rand.New(rand.NewPCG(seed, uint64(n)))
		wg.Go(func() {
			for range 300 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rng.IntN(200))*time.Microsecond)
				v := q.join(ctx, aKey, time.Duration(rng.IntN(3))*50*time.Microsecond)
				cancel()
				if v.lead == nil {
					continue
				}
				if leaders.Add(1) != 1 {
					t.Error("two leaders")
				}
				if rng.IntN(2) == 0 {
					v.lead.busy()
				}
				leaders.Add(-1)
				if rng.IntN(4) == 0 {
					v.lead.answer(record{rows: 1}, nil)
				}
				v.lead.pass()
			}
		})
	}
	wg.Wait()
	if len(q.lines) != 0 {
		t.Error("a line is still there")
	}
}
