//go:build unix

package idem_test

import (
	"cmp"
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/internal/fault"
	"github.com/pgonce/pgonce/internal/localpg"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/migrations"
)

// soak is true for the large figures of the safety suites (make soak).
var soak = os.Getenv("IDEM_SOAK") != ""

// scale is small in a test and large in a soak.
func scale(small, large int) int {
	if soak {
		return large
	}
	return small
}

// R1: client processes send requests, each key's several times, until each is answered, while backends are killed, connections cut before and after COMMIT,
// clients killed and frozen beyond their leases, and the server restarted. There is one effect a key, no acknowledged one is missing, and no answer differs from
// the first.
func TestRequestsInAStorm(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64N(1_000_000)
	if text := os.Getenv("IDEM_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d (IDEM_SEED repeats its choices)", seed)
	s := newTempest(t, seed, scale(20_000, 1_000_000))
	for p := range stormClients {
		s.start(t, p)
	}
	s.blow(t, scale(40, 1500))
	s.verdict(t, seed)
}

// tempest is such a storm.
type tempest struct {
	total   int
	random  *rand.Rand
	srv     *localpg.Server
	proxy   *fault.Proxy
	pool    *pgxpool.Pool
	clients [stormClients]*exec.Cmd
	roles   [stormClients]stormRole
	ends    chan int // of a client's process, by its number
	killed  [stormClients]bool
	thawing sync.WaitGroup

	kills, freezes, backends, cuts, restarts int
}

func newTempest(t *testing.T, seed uint64, total int) *tempest {
	t.Helper()
	pgtest.New(t) // skips where there is no server to start, and watches for leaks
	srv, err := localpg.Start(&localpg.Config{Settings: map[string]string{"synchronous_commit": "on"}})
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
	if _, err := pool.Exec(t.Context(), stormTables); err != nil {
		t.Fatal(err)
	}
	s := &tempest{
		total: total, random: rand.New(rand.NewPCG(seed, 2)), srv: srv, pool: pool, ends: make(chan int, stormClients),
		proxy: fault.New(t, srv.URL("postgres")),
	}
	for p := range s.roles {
		url := srv.URL("postgres")
		if p%2 == 0 {
			url = s.proxy.URL()
		}
		s.roles[p] = stormRole{URL: url, Bank: srv.URL("postgres"), File: filepath.Join(t.TempDir(), "answers"), Client: p, Total: total, Seed: seed}
	}
	return s
}

// start starts a client.
func (s *tempest) start(t *testing.T, p int) {
	t.Helper()
	text, err := json.Marshal(s.roles[p])
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "IDEM_STORM="+string(text))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.clients[p], s.killed[p] = cmd, false
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
		s.ends <- p
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
}

// answered counts the answers by now.
func (s *tempest) answered(t *testing.T) (n int) {
	t.Helper()
	for _, r := range s.roles {
		all, _, err := stormAnswers(r.File)
		if err != nil {
			t.Fatal(err)
		}
		n += len(all)
	}
	return n
}

// blow breaks something each time that another part of the requests is answered, until all clients have ended.
func (s *tempest) blow(t *testing.T, acts int) {
	t.Helper()
	tick := time.NewTicker(time.Duration(scale(50, 2000)) * time.Millisecond)
	defer tick.Stop()
	last, since := 0, time.Now()
	for act, running := 0, stormClients; running > 0; {
		select {
		case p := <-s.ends:
			switch {
			case s.killed[p]:
				s.start(t, p)
			case !s.clients[p].ProcessState.Success():
				t.Fatalf("client %d has ended: %v", p, s.clients[p].ProcessState)
			default:
				running--
				s.clients[p] = nil
			}
		case <-tick.C:
			n := s.answered(t)
			if n > last {
				last, since = n, time.Now()
			}
			if time.Since(since) > stormPatience {
				t.Fatalf("%d of %d requests are answered, and nothing more for %v", n, s.total, stormPatience)
			}
			if act < acts && n > (act+1)*s.total/(acts+2) {
				s.strike(t, act)
				act++
			}
		}
	}
	s.thawing.Wait()
}

// strike breaks something. Each kind has its turn.
func (s *tempest) strike(t *testing.T, act int) {
	t.Helper()
	p := s.random.IntN(stormClients)
	signals := []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL}
	switch kind := act % 10; {
	case kind == 9:
		if err := s.srv.Restart(signals[act/10%3]); err != nil {
			t.Fatal(err)
		}
		s.restarts++
	case kind == 4 && s.clients[p] != nil:
		s.killed[p] = s.clients[p].Process.Kill() == nil
		s.kills++
	case kind == 7 && s.clients[p] != nil:
		cmd := s.clients[p]
		if cmd.Process.Signal(syscall.SIGSTOP) != nil {
			return
		}
		s.freezes++
		s.thawing.Go(func() {
			over, done := context.WithTimeout(t.Context(), stormFreeze)
			<-over.Done()
			done()
			_ = cmd.Process.Signal(syscall.SIGCONT)
		})
	case kind%3 == 0:
		tag, err := s.pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity
			WHERE application_name = 'storm' ORDER BY random() LIMIT 3) AS unlucky`)
		if err == nil {
			s.backends += int(tag.RowsAffected())
		}
	default:
		s.cut(t)
	}
}

// cut has some connections break at their next COMMIT.
func (s *tempest) cut(t *testing.T) {
	t.Helper()
	rows, _ := s.pool.Query(t.Context(), `SELECT pid::bigint FROM pg_stat_activity WHERE application_name = 'storm' ORDER BY random() LIMIT 6`)
	pids, _ := pgx.CollectRows(rows, pgx.RowTo[int64]) // none, if the server has just been killed
	for i, pid := range pids {
		s.proxy.Arm(pid, []fault.Kind{fault.CutBeforeCommit, fault.CutAfterCommit}[i%2])
		s.cuts++
	}
}

// verdict compares the answers with the database.
func (s *tempest) verdict(t *testing.T, seed uint64) {
	t.Helper()
	s.pool.Reset() // its connections may be from before a restart
	effects, doubled := s.effects(t)
	answered, lost, differ := s.compare(t, gust(seed, s.total), effects)
	var payments, paid int
	err := s.pool.QueryRow(t.Context(), `SELECT count(*), count(DISTINCT key) FROM bank`).Scan(&payments, &paid)
	if err != nil {
		t.Fatal(err)
	}
	doubled += payments - paid
	keys := s.total / stormRepeats
	inSteps := (keys + stormInSteps - 1) / stormInSteps
	ok := "ok"
	if answered != s.total || len(effects) != keys || paid != inSteps || lost+doubled+differ > 0 || t.Failed() ||
		s.kills*s.freezes*s.backends*s.cuts*s.restarts == 0 {
		ok = "FAILED"
		t.Errorf("%d of %d requests are answered, %d of %d keys have an effect, %d of %d payments were made", answered, s.total, len(effects), keys, paid, inSteps)
	}
	t.Logf("R1 requests=%d effects=%d payments=%d lost=%d doubled=%d differ=%d backends_killed=%d connections_cut=%d clients_killed=%d clients_frozen=%d restarts=%d seed=%d %s",
		answered, len(effects), payments, lost, doubled, differ, s.backends, s.cuts, s.kills, s.freezes, s.restarts, seed, ok)
}

// effects are the serial numbers of the keys, as the database has them.
func (s *tempest) effects(t *testing.T) (effects map[int]int64, doubled int) {
	t.Helper()
	effects = map[int]int64{}
	rows, _ := s.pool.Query(t.Context(), `SELECT key, serial FROM effect`)
	var key int
	var serial int64
	_, err := pgx.ForEachRow(rows, []any{&key, &serial}, func() error {
		if effects[key] != 0 {
			doubled++
		}
		effects[key] = serial
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return effects, doubled
}

// compare holds the answers, as the clients have written them down, against each other and against the effects.
func (s *tempest) compare(t *testing.T, order []int, effects map[int]int64) (answered, lost, differ int) {
	t.Helper()
	seen, first := map[int]bool{}, map[int]int64{}
	for _, r := range s.roles {
		all, _, err := stormAnswers(r.File)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range all {
			k := order[a.Request]
			if a.Error != "" {
				t.Errorf("request %d: %s", a.Request, a.Error)
				continue
			}
			seen[a.Request] = true
			if first[k] = cmp.Or(first[k], a.Serial); first[k] != a.Serial {
				differ++
			}
			if effects[k] != a.Serial {
				lost++
			}
		}
	}
	return len(seen), lost, differ
}
