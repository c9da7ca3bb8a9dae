//go:build unix

package dblock_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

func keyNumber(k int) dblock.Key { return key(fmt.Sprint(k)) }

// storm is a history to be made: clients as processes on a few keys, while sessions are killed.
type storm struct {
	clients, callers, keys int
	tenures                int64
	readers                int // of 100 callers
	peace                  int // tenures for each session that is killed
	driver                 func(pg.Driver[pgx.Tx]) pg.Driver[pgx.Tx]
	tamper                 func(process int, c *client)
	meddle                 func(*client, *locked) bool // with one that was lost
}

var plainStorm = storm{clients: 3, callers: 5, keys: scale(3, 12), tenures: int64(scale(2500, 50_000)), peace: 20}

func (s storm) run(t *testing.T, seed uint64) *history {
	t.Helper()
	b := newBench(t)
	began := time.Now()
	now := func() int64 { return int64(time.Since(began)) }
	h := &history{sessions: map[int64]*sighting{}}
	r := h.memory(t, now)
	r.meddle = s.meddle
	stop, kill := make(chan struct{}), make(chan uint64)
	o := &observer{url: b.URL, now: now, hist: h, kill: kill, stop: stop}
	var callers, observing sync.WaitGroup
	observing.Go(func() { o.run(t.Context(), t) })
	all := s.open(t, b)
	var done atomic.Int64
	for p, c := range all {
		for i := range s.callers {
			caller := p*s.callers + i
			random := rand.New(rand.NewPCG(seed, uint64(caller)))
			callers.Go(func() {
				for done.Load() < s.tenures && t.Context().Err() == nil {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(random.IntN(3000))*time.Millisecond)
					shared, hold := random.IntN(100) < s.readers, time.Duration(max(0, random.IntN(3)-1))*time.Millisecond
					if r.once(ctx, c, caller, random.IntN(s.keys), shared, hold) && done.Add(1)%int64(s.peace) == 0 {
						kill <- random.Uint64()
					}
					cancel()
				}
			})
		}
	}
	callers.Wait()
	for p, c := range all { // all has been given back
		for k := range s.keys {
			r.try(within(t), c, p*s.callers, k)
		}
	}
	close(stop)
	observing.Wait()
	h.end = now()
	return h
}

// open makes the clients.
func (s storm) open(t *testing.T, b bench) (all []*client) {
	t.Helper()
	for p := range s.clients {
		d := pg.Driver[pgx.Tx](pgxdriver.New(b.pool))
		if s.driver != nil {
			d = s.driver(d)
		}
		c := clientOn(t, d, nil)
		if s.tamper != nil {
			s.tamper(p, c)
		}
		all = append(all, c)
	}
	return all
}

// verdict prints what was found, the way it is read by scripts.
func (h *history) verdict(t *testing.T, seed uint64) porcupine.CheckResult {
	t.Helper()
	verdict, unexplained := h.check(false, 2*time.Minute)
	operations, lost := h.steps()
	t.Logf("R2 operations=%d lost=%d kills=%d unexplained=%d verdict=%v seed=%d", operations, lost, len(h.causes), unexplained, verdict, seed)
	if verdict == porcupine.Illegal {
		t.Log(h.explain(2 * time.Minute))
	}
	if unexplained > 0 {
		t.Errorf("%d tenures were lost for no known reason", unexplained)
	}
	return verdict
}

// A history of many tenures, many of them ended by the death of their session, is one that a lock could have:
// it is linearizable, and tokens grow. See lockModel for what the death of a session means.
func TestHistoryIsLinearizable(t *testing.T) {
	t.Parallel()
	for name, readers := range map[string]int{"exclusive": 0, "shared": 60} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := plainStorm
			s.readers = readers
			seed := seedOf(t)
			h := s.run(t, seed)
			if v := h.verdict(t, seed); v != porcupine.Ok {
				t.Errorf("the history is %v", v)
			}
			if _, lost := h.steps(); lost == 0 {
				t.Error("no tenure was lost, so this shows nothing")
			}
		})
	}
}

// The limit of a lock without a fence, and that it is the only one: a process that has not heard of the death of a session
// hands its lock over in memory, beside the next holder in another process. Such a history is none that a lock could have;
// and it is one, if the death of a session ends its tenures.
func TestUnheardDeathsAreTheOnlyLimit(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	began := time.Now()
	now := func() int64 { return int64(time.Since(began)) }
	h := &history{sessions: map[int64]*sighting{}}
	r := h.memory(t, now)
	deaf, other := clientOn(t, deafDriver{pgxdriver.New(b.pool)}, &dblock.Config{TTL: time.Hour}), b.client(t, nil)
	deaf.SetHandOver(time.Hour)
	take := func(c *client, caller int) (tenure, *locked) {
		x := tenure{Client: caller, Key: 1, Call: now()}
		l := acquire(t, c, "1", nil)
		x.Had = now()
		return x, l
	}
	x, l := take(deaf, 1)
	session := dblock.SessionOf(l)
	there := func() bool {
		return b.Int(t, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND (classid::bigint << 32) | objid::bigint = $1`, session) == 1
	}
	h.sessions[session] = &sighting{seen: now()}
	if !there() {
		t.Error("the liveness lock is not there")
	}
	h.causes = append(h.causes, cause{at: now(), sessions: []int64{session}})
	b.Exec(t, fmt.Sprintf(`SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND (classid::bigint << 32) | objid::bigint = %d`, session))
	y, next := take(other, 2)
	pgtest.Eventually(t, "the session is gone", func() bool { return !there() })
	h.sessions[session].gone = now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		z, heir := take(deaf, 3)
		r.hold(t.Context(), deaf, z, heir, 0)
	}()
	pgtest.Eventually(t, "an heir is in line", func() bool { return deaf.InLine(key("1")) == 1 })
	r.hold(t.Context(), deaf, x, l, 0)
	<-done
	r.hold(t.Context(), other, y, next, 0)
	h.end = now()
	if v, unexplained := h.check(false, time.Minute); v != porcupine.Ok || unexplained != 0 {
		t.Errorf("the history is %v, %d losses unexplained", v, unexplained)
	}
	if v, _ := h.check(true, time.Minute); v != porcupine.Illegal {
		t.Errorf("without the death of the session the history is %v, so this shows nothing", v)
	}
}

// The same in a storm: processes that never hear of a death by themselves.
func TestHistoryOfTheDeaf(t *testing.T) {
	t.Parallel()
	s := plainStorm
	s.driver = func(d pg.Driver[pgx.Tx]) pg.Driver[pgx.Tx] { return deafDriver{d} }
	s.tamper = func(_ int, c *client) { c.SetHandOver(100 * time.Millisecond) }
	seed := seedOf(t)
	h := s.run(t, seed)
	if v := h.verdict(t, seed); v != porcupine.Ok {
		t.Errorf("the history is %v", v)
	}
	v, _ := h.check(true, 20*time.Second)
	t.Logf("without the deaths of sessions it is %v", v)
}
