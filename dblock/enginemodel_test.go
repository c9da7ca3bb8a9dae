package dblock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// Callers come, wait, try, give up and release; others take the same keys, and fence them; sessions are killed, the
// server runs out of memory and answers waits with a time-out that it has granted. Whatever the order, the engine does what
// a plain account of it says. A failure prints how to replay it.
func TestEngineKeepsToTheModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) { // 100 orders, unless RAPID_CHECKS says otherwise
		rapid.SyncTest(t, func(t *rapid.T) {
			m := newModel(t)
			t.Cleanup(m.finish)
			t.Repeat(rapid.StateMachineActions(m))
			m.drain(t)
		})
	})
}

// model is an engine on a model of the server, with an account of who has asked for what.
type model struct {
	server  *lockServer
	client  *Client[struct{}]
	step    int
	callers []*caller // unanswered, or with a lock that lasts
	foreign []foreign
	mu      sync.Mutex
	granted map[Key][]Token // in this step
	last    map[Key]Token   // of the steps before
	used    int             // locks that were counted after the step before
	started int             // callers that came in this step
	trouble int             // the last step in which something was broken on purpose
}

type caller struct {
	key             Key
	shared, patient bool
	came            int // in which step
	giveUp          context.CancelFunc
	told            chan func() // sets what follows
	lock            *Lock[struct{}]
	err             error
}

// foreign is a lock that another process has or waits for.
type foreign struct {
	session *lockSession
	number  int64
	shared  bool
	queued  *serverWait
}

const modelBudget, modelWaiters = 5, 2

func newModel(t *rapid.T) *model {
	m := &model{server: &lockServer{locks: map[int64]*serverLock{}}, granted: map[Key][]Token{}, last: map[Key]Token{}, trouble: -2}
	cfg, err := (&Config{MaxWaiters: modelWaiters, Observe: func(e Event) {
		if e.Kind == Acquired {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.granted[e.Key] = append(m.granted[e.Key], e.Token)
		}
	}}).resolved()
	if err != nil {
		t.Fatal(err)
	}
	e := newEngine(context.WithoutCancel(t.Context()), m.server.connect, cfg)
	e.watch.close() // its goroutine waits for the kernel, which would stop the clock of the bubble
	e.watch = nil
	e.wg.Wait()
	e.budget = modelBudget
	e.limits.perShard = 2
	m.client = &Client[struct{}]{engine: e}
	return m
}

func (m *model) finish() {
	for _, c := range m.callers {
		c.giveUp()
	}
	m.server.mu.Lock()
	m.server.refuse = false
	m.server.mu.Unlock()
	if err := m.client.Close(context.WithoutCancel(m.client.engine.ctx)); err != nil {
		panic(err)
	}
}

func drawKey(t *rapid.T) Key {
	return Key{"order", rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"}).Draw(t, "key")}
}

func (m *model) start(t *rapid.T, patient bool) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	c := &caller{key: drawKey(t), shared: rapid.Bool().Draw(t, "shared"), patient: patient, came: m.step, giveUp: cancel, told: make(chan func(), 1)}
	m.callers = append(m.callers, c)
	m.started++
	go func() {
		verb := m.client.TryAcquire
		if patient {
			verb = m.client.Acquire
		}
		lock, err := verb(ctx, c.key, &LockConfig{Shared: c.shared})
		c.told <- func() { c.lock, c.err = lock, err }
	}()
}

func (m *model) Acquire(t *rapid.T) { m.start(t, true) }
func (m *model) Try(t *rapid.T)     { m.start(t, false) }

// Crowd is several callers at once, whose order nobody knows.
func (m *model) Crowd(t *rapid.T) {
	for range rapid.IntRange(2, 6).Draw(t, "callers") {
		m.start(t, rapid.Bool().Draw(t, "patient"))
	}
}

func (m *model) pick(t *rapid.T, want func(*caller) bool) *caller {
	var some []*caller
	for _, c := range m.callers {
		if want(c) {
			some = append(some, c)
		}
	}
	if len(some) == 0 {
		t.Skip("nobody")
	}
	return some[rapid.IntRange(0, len(some)-1).Draw(t, "caller")]
}

func (m *model) Release(t *rapid.T) { m.release(t, m.pick(t, holds)) }

func (m *model) release(t *rapid.T, c *caller) {
	lost := c.lock.Err() != nil
	if err := c.lock.Release(t.Context()); lost != errors.Is(err, ErrLost) || !lost && err != nil {
		t.Fatalf("release of %s: %v, lost before %t", c.key.ID, err, lost)
	}
	m.callers = slices.DeleteFunc(m.callers, func(o *caller) bool { return o == c })
}

func (m *model) GiveUp(t *rapid.T) { m.pick(t, waits).giveUp() }

func waits(c *caller) bool { return c.lock == nil }
func holds(c *caller) bool { return c.lock != nil }

// Foreign takes a key as another process would, or the companion of one as its fenced transaction would.
func (m *model) Foreign(t *rapid.T) {
	f := foreign{number: m.client.engine.number(drawKey(t)), shared: rapid.Bool().Draw(t, "shared")}
	m.server.mu.Lock()
	defer m.server.mu.Unlock()
	f.session = m.server.open()
	switch rapid.IntRange(0, 3).Draw(t, "companion") {
	case 0:
		if !m.server.lock(f.number^companionAny).try(f.session, true) {
			break // a fence never waits
		}
		f.number, f.shared = f.number^companionExclusive, true
	case 1:
		f.number, f.shared = f.number^companionAny, true
	}
	if l := m.server.lock(f.number); !l.try(f.session, f.shared) {
		f.queued = &serverWait{f.session, f.shared, make(chan error, 1)}
		l.queue = append(l.queue, f.queued)
	}
	m.foreign = append(m.foreign, f)
}

// ForeignEnd ends another process' lock, or its wait.
func (m *model) ForeignEnd(t *rapid.T) {
	if len(m.foreign) == 0 {
		t.Skip("nobody")
	}
	i := rapid.IntRange(0, len(m.foreign)-1).Draw(t, "foreign")
	_ = m.foreign[i].session.Close(t.Context())
	m.foreign = slices.Delete(m.foreign, i, i+1)
}

// Kill ends a session of the client, which the kernel tells.
func (m *model) Kill(t *rapid.T) {
	e := m.client.engine
	e.mu.Lock()
	all := e.sessions()
	e.mu.Unlock()
	if len(all) == 0 {
		t.Skip("none")
	}
	slices.SortFunc(all, func(a, b *session) int { return cmp.Compare(a.pid, b.pid) })
	s := all[rapid.IntRange(0, len(all)-1).Draw(t, "session")]
	m.trouble = m.step
	m.server.kill(s.conn.(*lockSession))
	e.mu.Lock()
	defer e.unlock()
	if s.lost == nil {
		e.hungUp(s)
	}
}

// Trouble arms one of the server's faults.
func (m *model) Trouble(t *rapid.T) {
	m.server.mu.Lock()
	defer m.server.mu.Unlock()
	m.trouble = m.step
	switch rapid.IntRange(0, 2).Draw(t, "fault") {
	case 0:
		m.server.exhaust++
	case 1:
		m.server.betray++
	case 2:
		m.server.refuse = !m.server.refuse
	}
}

// Time lets time pass, after which whoever can have a lock has it.
func (m *model) Time(t *rapid.T) {
	time.Sleep(time.Duration(rapid.IntRange(3, 40).Draw(t, "seconds")) * time.Second) //nolint:forbidigo // in a bubble of synctest
	synctest.Wait()
	m.settle(t)
	for _, k := range m.keys() {
		if c := m.first(k); c != nil && !m.server.refuse && m.free(k, c.shared) {
			t.Fatalf("%s waits for %s, which it could have: %s", c, k.ID, m.dump(k))
		}
	}
}

// drain ends everything: then every caller is answered, and nothing is left.
func (m *model) drain(t *rapid.T) {
	m.server.mu.Lock()
	m.server.refuse, m.server.exhaust, m.server.betray = false, 0, 0
	m.server.mu.Unlock()
	for _, f := range m.foreign {
		_ = f.session.Close(t.Context())
	}
	m.foreign = nil
	for range 200 {
		m.Check(t)
		for _, c := range slices.Clone(m.callers) {
			if holds(c) {
				m.release(t, c)
			}
		}
		time.Sleep(time.Second) //nolint:forbidigo // in a bubble of synctest
	}
	m.Check(t)
	if len(m.callers) > 0 || m.client.engine.used != 0 || len(m.client.engine.entries) != 0 {
		t.Fatalf("%v were never answered; %d locks, %d keys are left", m.callers, m.client.engine.used, len(m.client.engine.entries))
	}
}

func (c *caller) String() string {
	return fmt.Sprintf("the caller of step %d (%s, shared %t, patient %t)", c.came, c.key.ID, c.shared, c.patient)
}

// dump is what the engine and the server think of a key.
func (m *model) dump(k Key) string {
	e := m.client.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	m.server.mu.Lock()
	defer m.server.mu.Unlock()
	n := e.number(k)
	l := m.server.lock(n)
	s := fmt.Sprintf("%d sessions hold it, %d wait; %d waiters of which %d idle, %d parked, %d shards", len(l.held), len(l.queue), e.waiters, len(e.idle), len(e.parked), len(e.shards))
	if en := e.entries[n]; en != nil {
		s += fmt.Sprintf("; phase %d, %d in line, hold %t, waiter %t", en.phase, len(en.line), en.hold != nil, en.waiter != nil)
		if h := en.hold; h != nil {
			s += fmt.Sprintf("; shared %t, closing %t, %d tenures, hand-over %d", h.shared, h.closing, len(h.tenures), h.local)
		}
	}
	return s
}
