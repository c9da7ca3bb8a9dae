//go:build unix

package dblock_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/pgonce/pgonce/dblock"
)

// history is what a storm has left behind. All of its times come from one clock, in nanoseconds.
type history struct {
	mu       sync.Mutex // of causes, while it is made
	tenures  []tenure
	refusals []refusal
	causes   []cause
	sessions map[int64]*sighting // by liveness lock
	end      int64
}

// tenure is what a caller knows of one.
type tenure struct {
	Client, Key int
	Shared      bool
	Token       dblock.Token
	Session     int64 // by its liveness lock, which no other session ever has
	Call, Had   int64 // Acquire
	Back, Gone  int64 // Release; 0 for what its process did not live to do
	Lost        dblock.LossKind
	Held        int64 // until the loss was known
}

// refusal is a TryAcquire that was told that somebody has the lock.
type refusal struct {
	Client, Key int
	Call, Told  int64
}

// cause is a reason for sessions to die, from a moment on.
type cause struct {
	at       int64
	sessions []int64
	client   func(client int) bool // instead: all sessions of these clients; nil for none
	timely   bool                  // they die by their TTL, if at all
}

func (h *history) blame(f cause) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.causes = append(h.causes, f)
}

func (f cause) hits(session int64, client int) bool {
	return slices.Contains(f.sessions, session) || f.client != nil && f.client(client)
}

// sighting is when a session was last seen on the server, and when first missed.
type sighting struct {
	born int64 // it was not there when somebody asked before
	seen int64 // the question was asked
	gone int64 // the answer was there; 0 if it never was missed
}

// operations makes of a history what it says about locks. A session for whose end there is a reason died some time after that
// reason came up, and before it was missed on the server. Tenures whose process gave a session up by itself
// ended when it says so. One that was lost while it was given back ended by one or the other.
//
// Strict leaves the server's view out: tenures last until they are released, or their loss is told.
func (h *history) operations(strict bool) (ops []porcupine.Operation, unexplained int) {
	number := map[int64]int{}
	deaths := map[int64]*death{}
	type pair struct {
		session int64
		key     int
	}
	struck := map[pair]bool{}
	add := func(client int, s step, call, end int64) {
		ops = append(ops, porcupine.Operation{ClientId: client, Input: s, Call: call, Return: max(call, end)})
	}
	for i, t := range h.tenures {
		n := number[t.Session]
		if n == 0 {
			n = len(number) + 1
			number[t.Session] = n
			deaths[t.Session] = h.death(t.Session, t.Client)
		}
		d := deaths[t.Session]
		s := step{key: t.Key, token: t.Token, tenure: i + 1, session: n, shared: t.Shared}
		add(t.Client, s, t.Call, t.Had)
		if d != nil && !strict && !struck[pair{t.Session, t.Key}] {
			struck[pair{t.Session, t.Key}] = true
			add(t.Client, step{kind: died, key: t.Key, session: n, timely: d.timely}, d.from, d.to)
		}
		if t.Back == 0 {
			continue
		}
		s.kind, s.told = ended, t.Lost != 0
		from, to := t.Back, cmp.Or(t.Gone, h.end)
		switch {
		case t.Lost == 0:
		case t.Lost == dblock.LostSilence || t.Lost == dblock.LostClosed:
			from = t.Call + t.Held
		case d != nil && d.from <= to && !strict && t.Had+t.Held >= t.Back:
			// The session was lost while the lock was given back, so the server may have it back from before it died.
		case d != nil && d.from <= to && !strict:
			s.struck, from = true, max(d.from, t.Call+t.Held)
		default:
			unexplained++
			from = t.Call // even if it was known later
		}
		add(t.Client, s, from, to)
	}
	for _, r := range h.refusals {
		add(r.Client, step{kind: refused, key: r.Key}, r.Call, r.Told)
	}
	return ops, unexplained
}

// death is when a session died.
type death struct {
	from, to int64
	timely   bool
}

// death finds it in what was seen and done. A session gives its locks up one by one, so for a moment it can be seen and not
// have them all; and a reason needs a moment to come into force, for sessions that have just begun, too.
func (h *history) death(session int64, client int) *death {
	const dying, taking = int64(time.Second), int64(10 * time.Second)
	seen := h.sessions[session]
	if seen != nil && seen.gone == 0 {
		return nil
	}
	d := &death{from: math.MaxInt64, to: h.end, timely: true}
	for _, f := range h.causes {
		if !f.hits(session, client) || seen != nil && (f.at > seen.gone || f.at+taking < seen.born) {
			continue
		}
		d.from = min(d.from, f.at)
		d.timely = d.timely && f.timely
	}
	if d.from == math.MaxInt64 {
		return nil
	}
	if seen != nil {
		d.from, d.to = max(d.from, seen.seen-dying), seen.gone
	}
	return d
}

// check is the verdict on a history.
func (h *history) check(strict bool, patience time.Duration) (verdict porcupine.CheckResult, unexplained int) {
	ops, unexplained := h.operations(strict)
	return porcupine.CheckOperationsTimeout(lockModel, ops, patience), unexplained
}

// explain is where the first key went wrong: the operations that fit in nowhere, and those around them.
func (h *history) explain(patience time.Duration) string {
	ops, _ := h.operations(false)
	for _, part := range lockModel.Partition(ops) {
		verdict, info := porcupine.CheckOperationsVerbose(lockModel, part, patience)
		if verdict != porcupine.Illegal {
			continue
		}
		var longest []porcupine.Operation
		for _, partial := range info.PartialLinearizationsOperations()[0] {
			if len(partial) > len(longest) {
				longest = partial
			}
		}
		fits := map[step]bool{}
		for _, op := range longest {
			fits[op.Input.(step)] = true
		}
		slices.SortFunc(part, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
		misfit := slices.IndexFunc(part, func(op porcupine.Operation) bool { return !fits[op.Input.(step)] })
		var text strings.Builder
		for i, op := range part[max(0, misfit-15):min(len(part), misfit+25)] {
			mark := ' '
			if !fits[op.Input.(step)] {
				mark = '*'
			}
			fmt.Fprintf(&text, "%c %d [%d, %d] %v\n", mark, i, op.Call/1000, op.Return/1000, op.Input)
		}
		return text.String()
	}
	return "nothing found"
}

// steps is how many operations there are, and how many tenures were lost.
func (h *history) steps() (operations, lost int) {
	for _, t := range h.tenures {
		operations++
		if t.Back != 0 {
			operations++
		}
		if t.Lost != 0 {
			lost++
		}
	}
	return operations + len(h.refusals), lost
}

// recorder writes down what callers do.
type recorder struct {
	now     func() int64
	tenure  func(tenure) // told twice of each: before Release, and after it
	refusal func(refusal)
	fail    func(error)
	meddle  func(*client, *locked) bool // with a lock that was lost, which is then asked for again
}

// once acquires and releases once, and says whether it got the lock.
func (r recorder) once(ctx context.Context, c *client, caller, k int, shared bool, hold time.Duration) bool {
	t := tenure{Client: caller, Key: k, Shared: shared, Call: r.now()}
	l, err := c.Acquire(ctx, keyNumber(k), &dblock.LockConfig{Shared: shared})
	if err != nil {
		if !errors.Is(err, dblock.ErrUnavailable) && !errors.Is(err, dblock.ErrNotAcquired) && !errors.Is(err, dblock.ErrClosed) {
			r.fail(err)
		}
		return false
	}
	t.Had = r.now()
	r.hold(ctx, c, t, l, hold)
	return true
}

// hold is the rest of a tenure.
func (r recorder) hold(ctx context.Context, c *client, t tenure, l *locked, hold time.Duration) {
	t.Token, t.Session = l.Token(), dblock.SessionOf(l)
	r.tenure(t)
	if hold > 0 {
		timer := time.NewTimer(hold)
		defer timer.Stop()
		select {
		case <-l.Context().Done():
		case <-timer.C:
		}
	}
	t.Back = r.now()
	r.tenure(t)
	err := l.Release(ctx)
	t.Gone = r.now()
	if lost, ok := errors.AsType[*dblock.LostError](err); ok {
		t.Lost, t.Held = lost.Kind, int64(lost.Held)
	} else if err != nil {
		r.fail(err)
	}
	r.tenure(t)
	if t.Lost != 0 && r.meddle != nil && r.meddle(c, l) {
		r.once(ctx, c, t.Client, t.Key, t.Shared, hold)
	}
}

// try takes each key once without waiting, and says who refuses. In the end, when nobody holds anything, all are free.
func (r recorder) try(ctx context.Context, c *client, caller, k int) {
	t := tenure{Client: caller, Key: k, Call: r.now()}
	l, err := c.TryAcquire(ctx, keyNumber(k), nil)
	switch t.Had = r.now(); {
	case err == nil:
		r.hold(ctx, c, t, l, 0)
	case errors.Is(err, dblock.ErrNotAcquired):
		r.refusal(refusal{Client: caller, Key: k, Call: t.Call, Told: t.Had})
	default:
		r.fail(err)
	}
}

// memory is a recorder into a history.
func (h *history) memory(t *testing.T, now func() int64) recorder {
	t.Helper()
	var mu sync.Mutex
	return recorder{
		now: now,
		tenure: func(x tenure) {
			mu.Lock()
			defer mu.Unlock()
			if x.Gone != 0 {
				h.tenures = append(h.tenures, x)
			}
		},
		refusal: func(x refusal) {
			mu.Lock()
			defer mu.Unlock()
			h.refusals = append(h.refusals, x)
		},
		fail: func(err error) { t.Error(err) },
	}
}
