package dblock

import (
	"context"
	"encoding/json"
	"iter"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

const herd = 100 // processes that wait for one thing

// instants notes when each of a herd does something.
type instants struct {
	mu   sync.Mutex
	seen []time.Time
}

func (i *instants) note() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.seen = append(i.seen, time.Now())
}

// crowd is how many came within d of each other, at the worst.
func (i *instants) crowd(d time.Duration) (most int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, a := range i.seen {
		n := 0
		for _, b := range i.seen {
			if since := b.Sub(a); since >= 0 && since < d {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

// process is the engine of one of them. Its random choices are the same in every run.
func process(t *testing.T, n uint64) *leases {
	t.Helper()
	c, _ := fakeClient(t)
	t.Cleanup(func() {
		if err := c.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	random := rand.New(rand.NewPCG(n, 33))
	c.engine.jitter = func(d time.Duration) time.Duration { return time.Duration(random.Int64N(int64(d))) }
	return &leases{engine: c.engine, held: map[int64]*lease{}, remains: map[int64]row{}}
}

// Everybody who waits for a lease knows when it ends if its holder is dead. They do not ask for it in that instant, all at once, nor
// before it, in vain; and they all have asked soon after.
func TestWaitersForALeaseDoNotAskAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked instants
		ends := time.Now().Add(100 * time.Millisecond)
		for n := range uint64(herd) {
			l := process(t, n)
			en := &entry{line: []*request{{}}, wake: make(chan struct{}, 1)}
			go func() {
				l.pause(en, lastPause, time.Until(ends))
				asked.note()
			}()
		}
		time.Sleep(lastPause) //nolint:forbidigo // in a bubble of synctest
		synctest.Wait()
		if len(asked.seen) != herd {
			t.Fatalf("%d of %d have asked", len(asked.seen), herd)
		}
		for _, at := range asked.seen {
			if late := at.Sub(ends); late < 0 || late > spread {
				t.Errorf("one asks %v after the end", late)
			}
		}
		if n := asked.crowd(spread / 10); n > herd/4 {
			t.Errorf("%d of %d ask within %v", n, herd, spread/10)
		}
	})
}

// Processes that have parked keys, since their connections for waiting are in use, ask for them now and then. They may begin with it in
// one instant: when a holder of very many keys comes.
func TestParkedKeysAreNotAskedForAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked instants
		for n := range uint64(herd) {
			l := process(t, n)
			en := &entry{}
			random, looks := l.jitter, 0
			l.jitter = func(d time.Duration) time.Duration { // it is asked before each look
				if looks++; looks > 1 {
					asked.note()
				}
				return random(d)
			}
			l.mu.Lock()
			l.used++
			l.park(en)
			l.unlock()
			t.Cleanup(func() {
				l.mu.Lock()
				defer l.unlock()
				l.unpark(en)
			})
		}
		time.Sleep(20 * time.Millisecond) //nolint:forbidigo // in a bubble of synctest: each has looked once, at least
		synctest.Wait()
		if n := len(asked.seen); n < herd {
			t.Fatalf("%d of %d have looked", n, herd)
		}
		if n := asked.crowd(time.Millisecond); n > herd/4 {
			t.Errorf("%d looks of %d processes within a millisecond", n, herd)
		}
	})
}

// A server that was stuck answers the heartbeats of all processes in one instant. Those that follow do not come together.
func TestHeartbeatsOfLeasesDoNotComeTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		beats := &stuck{until: time.Now().Add(defaultTTL/3 + 2*time.Second)}
		for n := range uint64(herd) {
			l := process(t, n)
			l.pool = beats
			held := &lease{of: l, row: row{"order", "1", rand.Int64()}, timer: time.NewTimer(time.Hour), hold: &hold{}}
			l.mu.Lock()
			l.held[held.row.Nonce] = held
			l.startBeat()
			l.unlock()
			t.Cleanup(func() {
				l.mu.Lock()
				defer l.unlock()
				held.end()
			})
		}
		time.Sleep(2*defaultTTL/3 + 3*time.Second) //nolint:forbidigo // in a bubble of synctest
		synctest.Wait()
		if n := len(beats.after.seen); n != herd {
			t.Fatalf("%d heartbeats of %d processes", n, herd)
		}
		if n := beats.after.crowd(50 * time.Millisecond); n > herd/4 {
			t.Errorf("%d of %d come within 50 ms", n, herd)
		}
	})
}

// stuck is a server that renews leases, and answers nobody until some time.
type stuck struct {
	until time.Time
	after instants // the heartbeats from then on
}

func (s *stuck) Run(_ context.Context, st pg.Stmt) error {
	if d := time.Until(s.until); d > 0 {
		time.Sleep(d) //nolint:forbidigo // in a bubble of synctest
	} else {
		s.after.note()
	}
	var rows []row
	if err := json.Unmarshal([]byte(st.Args[0].(string)), &rows); err != nil {
		return err
	}
	renewed, err := json.Marshal([]int64{rows[0].Nonce})
	*st.Dest[0].(*string), *st.Dest[1].(*string) = string(renewed), "[]"
	return err
}

func (*stuck) Query(context.Context, string, ...any) iter.Seq2[pg.Scan, error] {
	return func(func(pg.Scan, error) bool) {}
}
