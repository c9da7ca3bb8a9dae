//go:build unix

package idem_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
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
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
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

const (
	stormClients  = 4
	stormCallers  = 8 // of each client
	stormRepeats  = 5 // requests of each key
	stormWindow   = 40
	stormInSteps  = 20 // one key in so many is executed in steps
	stormLease    = time.Second
	stormFreeze   = 4 * time.Second // longer than the lease, and than MaxHandler and its grace
	stormPatience = 3 * time.Minute // without any progress
)

// stormTables has the effects, and a bank that is outside of every transaction of ours: it pays as often as it is asked, but for references that it has
// declared void when somebody enquired.
const stormTables = `
CREATE TABLE effect (serial bigint GENERATED ALWAYS AS IDENTITY, key int NOT NULL);
CREATE TABLE bank (key int NOT NULL, reference text NOT NULL);
CREATE TABLE void (reference text NOT NULL);
CREATE FUNCTION pay(k int, ref text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
	PERFORM pg_advisory_xact_lock(hashtextextended(ref, 0));
	IF EXISTS (SELECT FROM void WHERE reference = ref) THEN RAISE 'the reference is void'; END IF;
	INSERT INTO bank VALUES (k, ref);
	RETURN k;
END $$;
CREATE FUNCTION enquire(ref text) RETURNS int LANGUAGE plpgsql AS $$ DECLARE k int; BEGIN
	PERFORM pg_advisory_xact_lock(hashtextextended(ref, 0));
	SELECT max(key) INTO k FROM bank WHERE reference = ref;
	IF k IS NULL THEN INSERT INTO void VALUES (ref); END IF;
	RETURN k;
END $$;`

// stormRole is what a client process is told: to send its share of the requests until each is answered, and to write each answer down.
type stormRole struct {
	URL, Bank, File string
	Client, Total   int
	Seed            uint64
}

// gust is the order of all requests, as the keys that they are for. Repeats of a key are near to each other, so that they meet.
func gust(seed uint64, total int) []int {
	random := rand.New(rand.NewPCG(seed, 1))
	order := make([]int, 0, total)
	for first := 0; len(order) < total; first += stormWindow {
		from := len(order)
		for k := first; k < first+stormWindow && len(order) < total; k++ {
			for range stormRepeats {
				order = append(order, k)
			}
		}
		random.Shuffle(len(order)-from, func(i, j int) { order[from+i], order[from+j] = order[from+j], order[from+i] })
	}
	return order
}

// stormAnswer is a line of a client's file: the answer to a request.
type stormAnswer struct {
	Request int
	Serial  int64
	Error   string `json:",omitempty"` // what must not happen
}

// stormAnswers reads a client's file, as far as it is whole.
func stormAnswers(file string) (all []stormAnswer, size int64, err error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, nil
	}
	text = text[:bytes.LastIndexByte(text, '\n')+1] // a kill may tear the last line
	for line := range bytes.Lines(text) {
		var a stormAnswer
		if err := json.Unmarshal(line, &a); err != nil {
			return nil, 0, err
		}
		all = append(all, a)
	}
	return all, int64(len(text)), err
}

// stormClient plays a client. One that was killed is started again, and goes on with what it has no answer to.
func stormClient(text string) {
	var r stormRole
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		panic(err)
	}
	before, size, err := stormAnswers(r.File)
	if err != nil {
		panic(err)
	}
	answered := map[int]bool{}
	for _, a := range before {
		answered[a.Request] = true
	}
	out, err := os.OpenFile(r.File, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		err = out.Truncate(size)
	}
	if err != nil {
		panic(err)
	}
	c := newStormCaller(r, out)
	requests := make(chan int)
	var callers sync.WaitGroup
	order := gust(r.Seed, r.Total)
	for range stormCallers {
		callers.Go(func() {
			for i := range requests {
				c.insist(i, order[i])
			}
		})
	}
	for i := r.Client; i < r.Total; i += stormClients {
		if !answered[i] {
			requests <- i
		}
	}
	close(requests)
	callers.Wait()
	os.Exit(0)
}

type stormCaller struct {
	keys *idem.Store[pgx.Tx]
	bank *pgxpool.Pool
	mu   sync.Mutex
	out  *os.File
}

func newStormCaller(r stormRole, out *os.File) *stormCaller {
	open := func(url string) *pgxpool.Pool {
		cfg, err := pgxpool.ParseConfig(url)
		if err != nil {
			panic(err)
		}
		cfg.MaxConns = stormCallers
		cfg.ConnConfig.RuntimeParams["application_name"] = "storm"
		pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
		if err != nil {
			panic(err)
		}
		return pool
	}
	keys, err := idem.New(pgxdriver.New(open(r.URL)), &idem.Config{Lease: stormLease})
	if err != nil {
		panic(err)
	}
	return &stormCaller{keys: keys, bank: open(r.Bank), out: out}
}

// say writes a line by one write, so that a kill does not tear those before it.
func (c *stormCaller) say(a stormAnswer) {
	text, err := json.Marshal(a)
	if err != nil {
		panic(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.out.Write(append(text, '\n')); err != nil {
		panic(err)
	}
}

// insist asks until there is an answer.
func (c *stormCaller) insist(request, key int) {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		serial, err := c.ask(ctx, key)
		cancel()
		if err == nil {
			c.say(stormAnswer{Request: request, Serial: serial})
			return
		}
		for _, never := range []error{
			idem.ErrInvalidKey, idem.ErrRefused, idem.ErrNested, idem.ErrReentrant, idem.ErrMismatch, idem.ErrExpired, idem.ErrTxEnded,
			idem.ErrStepsChanged, idem.ErrDead, idem.ErrReadOnly, idem.ErrSchema,
		} {
			if errors.Is(err, never) {
				c.say(stormAnswer{Request: request, Error: err.Error()})
			}
		}
		pause, done := context.WithTimeout(context.Background(), time.Duration(5+rand.IntN(20))*time.Millisecond)
		<-pause.Done()
		done()
	}
}

var (
	stormDo    = idem.Op{Name: "storm.do", Wait: 2 * time.Second, MaxHandler: 2 * time.Second, ReplayFor: idem.Forever, RememberFor: idem.Forever}
	stormSteps = idem.Op{Name: "storm.steps", Wait: 2 * time.Second, MaxHandler: 2 * time.Second, RetryAfter: time.Millisecond, ReplayFor: idem.Forever, RememberFor: idem.Forever}
)

func (c *stormCaller) ask(ctx context.Context, key int) (int64, error) {
	id, body := strconv.Itoa(key), idem.Bytes(strconv.AppendInt(nil, int64(key), 10))
	write := func(ctx context.Context, tx pgx.Tx) (serial int64, err error) {
		err = tx.QueryRow(ctx, `INSERT INTO effect (key) VALUES ($1) RETURNING serial`, key).Scan(&serial)
		return serial, err
	}
	if key%stormInSteps != 0 {
		res, err := idem.Do(ctx, c.keys, stormDo.Key("m1", id), body, write)
		return res.Value, err
	}
	pay := func(ctx context.Context, reference string) (n int, err error) {
		err = c.bank.QueryRow(ctx, `SELECT pay($1, $2)`, key, reference).Scan(&n)
		return n, err
	}
	enquire := func(ctx context.Context, reference string) (int, idem.Outcome, error) {
		var n *int
		if err := c.bank.QueryRow(ctx, `SELECT enquire($1)`, reference).Scan(&n); err != nil {
			return 0, idem.Unsure, err
		}
		if n == nil {
			return 0, idem.NeverHappened, nil
		}
		return *n, idem.Happened, nil
	}
	res, err := idem.RunSteps(ctx, c.keys, stormSteps.Key("m1", id), body, key, func(ctx context.Context, run *idem.Run[pgx.Tx], _ int) (int64, error) {
		if _, err := idem.Step(ctx, run, "pay", pay, idem.AtMostOnce(enquire)); err != nil {
			return 0, err
		}
		return idem.StepTx(ctx, run, "book", write)
	})
	return res.Value, err
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
	order := gust(seed, s.total)
	effects := map[int]int64{} // the serial of a key
	doubled, lost, differ := 0, 0, 0
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
	answers := map[int]bool{}
	first := map[int]int64{}
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
			answers[a.Request] = true
			if first[k] = cmp.Or(first[k], a.Serial); first[k] != a.Serial {
				differ++
			}
			if effects[k] != a.Serial {
				lost++
			}
		}
	}
	var payments, paidTwice int
	err = s.pool.QueryRow(t.Context(), `SELECT count(*), count(*) - count(DISTINCT key) FROM bank`).Scan(&payments, &paidTwice)
	if err != nil {
		t.Fatal(err)
	}
	doubled += paidTwice
	keys := s.total / stormRepeats
	inSteps := (keys + stormInSteps - 1) / stormInSteps
	ok := "ok"
	if len(answers) != s.total || len(effects) != keys || payments-paidTwice != inSteps || lost+doubled+differ > 0 || t.Failed() ||
		s.kills*s.freezes*s.backends*s.cuts*s.restarts == 0 {
		ok = "FAILED"
		t.Errorf("%d of %d requests are answered, %d of %d keys have an effect, %d of %d payments were made", len(answers), s.total, len(effects), keys, payments, inSteps)
	}
	t.Logf("R1 requests=%d effects=%d payments=%d lost=%d doubled=%d differ=%d backends_killed=%d connections_cut=%d clients_killed=%d clients_frozen=%d restarts=%d seed=%d %s",
		len(answers), len(effects), payments, lost, doubled, differ, s.backends, s.cuts, s.kills, s.freezes, s.restarts, seed, ok)
}
