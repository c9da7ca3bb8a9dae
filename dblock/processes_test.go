//go:build unix

package dblock_test

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/internal/fault"
	"github.com/pgonce/pgonce/internal/localpg"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/migrations"
)

// soak is true for the large figures of the safety suites (make soak).
var soak = os.Getenv("DBLOCK_SOAK") != ""

// scale is small in a test and large in a soak.
func scale(small, large int) int {
	if soak {
		return large
	}
	return small
}

// ownServer is a server that a test may break, with the library's schema.
func ownServer(t *testing.T, cfg *localpg.Config) (*localpg.Server, *pgxpool.Pool) {
	t.Helper()
	pgtest.New(t) // skips where there is no server to start, and watches for leaks
	srv, err := localpg.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Stop(); err != nil {
			t.Error(err)
		}
	})
	pool, err := pgxpool.New(t.Context(), srv.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if _, err := migrations.UpPool(t.Context(), pool, nil); err != nil {
		t.Fatal(err)
	}
	return srv, pool
}

// flushesLate has a server write no log to disk but what somebody waits for, so that a crash forgets the rest.
func flushesLate() *localpg.Config {
	return &localpg.Config{Durable: true, Settings: map[string]string{
		"wal_writer_delay": "10s", "wal_writer_flush_after": "100MB", "max_connections": "50", "autovacuum": "off",
	}}
}

// theatre is a storm of processes on a server of their own. One of them works through a proxy, which can swallow
// what it sends.
type theatre struct {
	server *localpg.Server
	pool   *pgxpool.Pool
	proxy  *fault.Proxy
	random *rand.Rand
	hist   *history
	script script
	cast   []*actor // now
	all    []*actor
	role   role

	waking   sync.WaitGroup
	kills    int
	freezes  int
	holes    int
	restarts int
}

const stormTTL = 2 * time.Second

// enter starts a process. The first one works through the proxy.
func (s *theatre) enter(t *testing.T, i int) {
	t.Helper()
	r := s.role
	r.URL = s.server.URL("postgres")
	if i == 0 {
		r.URL = s.proxy.URL()
	}
	u, err := url.Parse(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("application_name", fmt.Sprint("actor", len(s.all)))
	u.RawQuery = q.Encode()
	r.URL, r.First = u.String(), callersEach*len(s.all)
	a := startActor(t, r)
	s.all = append(s.all, a)
	if i == len(s.cast) {
		s.cast = append(s.cast, a)
	}
	s.cast[i] = a
}

// because notes a reason for the sessions of a process to die, or for those of all.
func (s *theatre) because(at int64, a *actor, timely bool) {
	s.hist.blame(cause{at: at, timely: timely, client: func(caller int) bool { return a == nil || a.plays(caller) }})
}

// act does something terrible.
func (s *theatre) act(t *testing.T, kill chan<- uint64, n int) {
	t.Helper()
	i := s.random.IntN(len(s.cast))
	a := s.cast[i]
	switch n % 8 {
	case 1:
		s.kills++
		s.because(monotonic(), a, false)
		a.kill()
		s.enter(t, i)
	case 3:
		s.freezes++
		s.because(monotonic(), a, true)
		s.freeze(t, a)
	case 5:
		s.holes++
		s.because(monotonic(), s.cast[0], true)
		s.mute(t, s.cast[0])
	case 6:
		if s.restarts > n/16 {
			return
		}
		s.restarts++
		s.because(monotonic(), nil, false)
		if err := s.server.Restart([]syscall.Signal{syscall.SIGKILL, syscall.SIGINT, syscall.SIGQUIT}[s.restarts%3]); err != nil {
			t.Error(err)
		}
	default:
		kill <- s.random.Uint64()
	}
}

// freeze stops a process for longer than the TTL; or, now and then, for less.
func (s *theatre) freeze(t *testing.T, a *actor) {
	t.Helper()
	if err := a.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Error(err)
		return
	}
	d := stormTTL/2 + time.Duration(s.random.Int64N(int64(stormTTL)))
	s.waking.Go(func() {
		pause(t.Context().Done(), d)
		_ = a.Process.Signal(syscall.SIGCONT) // it may have been killed meanwhile
	})
}

// mute makes the network swallow what one session of a process sends from here on.
func (s *theatre) mute(t *testing.T, a *actor) {
	t.Helper()
	var pid int64
	err := s.pool.QueryRow(t.Context(), `SELECT pid FROM pg_stat_activity WHERE application_name LIKE $1
		AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory') ORDER BY random() LIMIT 1`, fmt.Sprint("%:actor", a.role.First/callersEach)).Scan(&pid)
	if err == nil {
		s.proxy.Arm(pid, fault.MuteNext)
	}
}

// R2: processes that are killed, frozen and cut off, sessions that the server ends and a server that is restarted. What they
// say about their locks is what locks could do.
//
// What became of a process says when its tenures ended. Killed: with its sessions, some time between the kill and the moment they
// were missed on the server. Frozen or cut off: the same, if the server did end them; and since that takes it the
// TTL, the process must know by its clock, so nothing that it says afterwards is excused. What it
// gave up by itself ended when it says so.
func TestHistoryOfProcesses(t *testing.T) {
	t.Parallel()
	want := scale(2500, 50_000) // tenures, of two operations each
	seed := seedOf(t)
	server, pool := ownServer(t, nil)
	s := &theatre{
		server: server, pool: pool, proxy: fault.New(t, server.URL("postgres")), random: rand.New(rand.NewPCG(seed, 7)),
		hist: &history{sessions: map[int64]*sighting{}}, script: script{tenures: map[[2]int64]tenure{}},
		role: role{Callers: 6, Keys: scale(3, 16), Readers: 30, TTL: stormTTL, Seed: seed, Nap: time.Duration(scale(50, 10)) * time.Millisecond},
	}
	stop, kill := make(chan struct{}), make(chan uint64)
	o := &observer{url: server.URL("postgres"), now: monotonic, hist: s.hist, kill: kill, stop: stop}
	var observing sync.WaitGroup
	observing.Go(func() { o.run(t.Context(), t) })
	for i := range 4 {
		s.enter(t, i)
	}
	s.play(t, want, kill)
	last := clientOf(t, pool, nil)
	r := s.hist.memory(t, monotonic)
	for k := range s.role.Keys { // all has been given back
		pgtest.Eventually(t, "the key is free", func() bool { return s.free(t, k) })
		r.try(t.Context(), last, -1, k)
	}
	close(stop)
	observing.Wait()
	for _, x := range s.script.tenures {
		s.hist.tenures = append(s.hist.tenures, x)
	}
	s.hist.end = monotonic()
	s.verdict(t, seed)
}

// play goes on until enough has been done, and has everybody finish.
func (s *theatre) play(t *testing.T, want int, kill chan<- uint64) {
	t.Helper()
	acts := 0
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for s.script.done < want && t.Context().Err() == nil {
		<-tick.C
		for _, a := range s.all {
			s.script.follow(t, a)
		}
		if s.script.done > acts*want/scale(40, 400) {
			s.act(t, kill, acts)
			acts++
		}
	}
	s.waking.Wait()
	for _, a := range s.all {
		a.stop(t)
		s.script.follow(t, a)
	}
}

// free reports whether nobody has a key's lock on the server.
func (s *theatre) free(t *testing.T, k int) bool {
	t.Helper()
	var n int
	err := s.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND (classid::bigint << 32) | objid::bigint = $1`, keyNumber(k).Number()).Scan(&n)
	return err == nil && n == 0
}

func (s *theatre) verdict(t *testing.T, seed uint64) {
	t.Helper()
	verdict, unexplained := s.hist.check(false, 5*time.Minute)
	operations, lost := s.hist.steps()
	strikes := len(s.hist.causes) - s.kills - s.freezes - s.holes - s.restarts
	ok := "ok"
	if verdict != porcupine.Ok || lost == 0 || s.kills == 0 || s.freezes == 0 || s.restarts == 0 {
		ok = "short"
		t.Errorf("the history is %v", verdict)
		t.Log(s.hist.explain(2 * time.Minute))
	}
	t.Logf("R2 operations=%d lost=%d sessions_killed=%d kills=%d freezes=%d black_holes=%d restarts=%d unexplained=%d verdict=%v seed=%d %s",
		operations, lost, strikes, s.kills, s.freezes, s.holes, s.restarts, unexplained, verdict, seed, ok)
}
