package dblock

import (
	"context"
	"errors"
	"slices"
	"testing/synctest"

	"github.com/pgonce/pgonce/internal/pg"
	"pgregory.net/rapid"
)

// Check holds the engine to the account after each step.
func (m *model) Check(t *rapid.T) {
	synctest.Wait()
	m.settle(t)
	m.exclusive(t)
	m.counts(t)
	m.step++
	m.started = 0
}

// settle takes down what callers were told.
func (m *model) settle(t *rapid.T) {
	for _, c := range m.callers {
		select {
		case tell := <-c.told:
			tell()
		default:
			if !c.patient && c.lock == nil {
				t.Fatalf("%s does not want to wait, and waits", c)
			}
		}
	}
	for _, c := range m.callers {
		if c.lock != nil || c.err == nil {
			continue
		}
		armed := m.server.refuse || m.server.exhaust > 0 || m.step-m.trouble <= 1
		switch {
		case errors.Is(c.err, ErrNotAcquired) && c.patient, errors.Is(c.err, context.Canceled): // it gave up
		case errors.Is(c.err, ErrNotAcquired) && !c.patient:
		case errors.Is(c.err, ErrCapacity) && (pg.Code(c.err) != "" || m.used+m.started >= modelBudget):
		case errors.Is(c.err, ErrUnavailable) && armed:
		default:
			t.Fatalf("%s was told %v", c, c.err)
		}
	}
	m.order(t)
	m.callers = slices.DeleteFunc(m.callers, func(c *caller) bool { return c.err != nil })
}

// order checks that grants came in the order of the callers, and that tokens grow.
func (m *model) order(t *rapid.T) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer clear(m.granted)
	for _, k := range m.keys() {
		slices.Sort(m.granted[k]) // Observe is told in no order
		for _, token := range m.granted[k] {
			if token <= m.last[k] {
				t.Fatalf("%s: token %d after %d", k.ID, token, m.last[k])
			}
			m.last[k] = token
		}
		for _, a := range m.callers {
			for _, b := range m.callers {
				if a.key != k || b.key != k || b.lock == nil || a.came >= b.came || a.err != nil {
					continue
				}
				if a.lock == nil || a.lock.Token() > b.lock.Token() {
					t.Fatalf("%s: %s was served before %s", k.ID, b, a)
				}
			}
		}
	}
}

// exclusive checks who has each key: by the handles' word, by the server's, and those of other processes.
func (m *model) exclusive(t *rapid.T) {
	m.callers = slices.DeleteFunc(m.callers, func(c *caller) bool { return c.lock != nil && c.lock.Err() != nil })
	for _, k := range m.keys() {
		n := m.client.engine.number(k)
		var held [2]int
		for _, c := range m.callers {
			if c.key != k || c.lock == nil {
				continue
			}
			held[btoi(c.shared)]++
			m.server.mu.Lock()
			if l := m.server.lock(n); !slices.ContainsFunc(m.server.sessions, func(s *lockSession) bool {
				return s.alone != 0 && l.held[s] != nil && l.held[s][btoi(c.shared)] > 0
			}) {
				t.Errorf("%s has a lock that the server does not have", c)
			}
			m.server.mu.Unlock()
		}
		for s, n := range m.server.lock(n).held {
			if s.alone == 0 {
				held[0], held[1] = held[0]+n[0], held[1]+n[1]
			}
		}
		if held[0] > 1 || held[0] == 1 && held[1] > 0 {
			t.Fatalf("%s has %d exclusive and %d shared holders", k.ID, held[0], held[1])
		}
	}
}

// counts checks that the client's count is what the server has or is asked for.
func (m *model) counts(t *rapid.T) {
	e := m.client.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	m.server.mu.Lock()
	defer m.server.mu.Unlock()
	want := len(e.parked)
	for _, k := range m.keys() {
		l := m.server.lock(e.number(k))
		for s := range l.held {
			want += btoi(s.alone != 0)
		}
		for _, w := range l.queue {
			want += btoi(w.session.alone != 0)
		}
		for _, mask := range []int64{companionExclusive, companionAny} {
			for s := range m.server.lock(e.number(k) ^ mask).held {
				if s.alone != 0 {
					t.Fatalf("a companion of %s was left behind", k.ID)
				}
			}
		}
	}
	m.used = e.used
	if e.used != want || e.used > e.budget {
		t.Fatalf("%d locks are counted, the server has %d of them; the budget is %d", e.used, want, e.budget)
	}
}

func (*model) keys() (all []Key) {
	for _, id := range []string{"a", "b", "c", "d", "e", "f"} {
		all = append(all, Key{"order", id})
	}
	return all
}

// first is who has waited longest for a key, or nil if nobody does or several came at once.
func (m *model) first(k Key) (first *caller) {
	for _, c := range m.callers {
		switch {
		case c.key != k || c.lock != nil:
		case first == nil:
			first = c
		case c.came == first.came:
			return nil
		}
	}
	return first
}

// free reports whether nothing excludes a lock of this kind.
func (m *model) free(k Key, shared bool) bool {
	n := m.client.engine.number(k)
	for _, c := range m.callers {
		if c.key == k && c.lock != nil && (!shared || !c.shared) {
			return false
		}
	}
	for _, f := range m.foreign {
		if f.number == n && (!shared || !f.shared || f.queued != nil) || f.number == n^companionExclusive || f.number == n^companionAny && !shared {
			return false
		}
	}
	return true
}
