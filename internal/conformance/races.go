//go:build unix

package conformance

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/fault"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// fate is what becomes of the caller that got the key first, while the others wait for it.
type fate struct {
	name   string
	kind   fault.Kind // what happens to its connection at COMMIT
	result error      // of its handler
	killed bool       // its backend, in the handler
	runs   int64      // of all handlers together
}

var fates = []fate{
	{name: "commits", runs: 1},
	{name: "fails", result: errRefused, runs: 2},
	{name: "is killed", killed: true, runs: 2},
	{name: "cut before COMMIT", kind: fault.CutBeforeCommit, runs: 2},
	{name: "cut after COMMIT", kind: fault.CutAfterCommit, runs: 1},
	{name: "black hole before COMMIT", kind: fault.MuteBeforeCommit, runs: 2},
	{name: "black hole after COMMIT", kind: fault.MuteAfterCommit, runs: 1},
}

// Callers in different processes race for one key, each with a pool of one connection: at every
// isolation level, with one and with two that wait, whatever becomes of the first. One effect, and
// one answer for all that get one.
func idemRaces[TX any](t *testing.T, c Client[TX]) {
	for _, f := range fates {
		for _, level := range []idem.Isolation{idem.ReadCommitted, idem.RepeatableRead, idem.Serializable} {
			t.Run(f.name+", "+string(level), func(t *testing.T) {
				t.Parallel()
				raceThrough(t, c, f, level)
			})
		}
	}
}

func raceThrough[TX any](t *testing.T, c Client[TX], f fate, level idem.Isolation) {
	db := pgtest.New(t)
	db.Exec(t, effects)
	proxy := fault.New(t, db.URL)
	var stores []*idem.Store[TX]
	for range 3 {
		keys, err := idem.New(c.Open(t, db.Via(proxy.URL()), 1).Driver, nil)
		noErr(t, err)
		noErr(t, keys.Validate(t.Context()))
		stores = append(stores, keys)
	}
	for callers := 2; callers <= 3; callers++ {
		r := &keyRace[TX]{c: c, db: db, proxy: proxy, stores: stores[:callers], fate: f, id: fmt.Sprintf("%s, %d callers", level, callers)}
		r.op = idem.Op{Name: "race", Wait: time.Hour, Isolation: level}
		r.run(t)
	}
}

// keyRace is one round for one key.
type keyRace[TX any] struct {
	c      Client[TX]
	db     *pgtest.DB
	proxy  *fault.Proxy
	stores []*idem.Store[TX]
	fate   fate
	op     idem.Op
	id     string

	mu   sync.Mutex
	runs int64
}

type raceAnswer struct {
	res idem.Result[string]
	err error
}

func (r *keyRace[TX]) run(t *testing.T) {
	inside, goOn := make(chan int64), make(chan struct{})
	first, others := make(chan raceAnswer, 1), make(chan raceAnswer, len(r.stores))
	go func() { first <- r.call(t, r.stores[0], r.lead(t, inside, goOn)) }()
	pid := <-inside
	for _, keys := range r.stores[1:] {
		go func() { others <- r.call(t, keys, r.effect()) }()
	}
	pgtest.Eventually(t, "the others wait in the server's queue", func() bool {
		return r.db.Int(t, `SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == int64(len(r.stores)-1)
	})
	r.proxy.Arm(pid, r.fate.kind)
	if r.fate.killed {
		r.db.Exec(t, fmt.Sprintf(`SELECT pg_terminate_backend(%d)`, pid))
	}
	close(goOn)
	answers := []raceAnswer{<-first}
	for range r.stores[1:] {
		answers = append(answers, <-others)
	}
	r.judge(t, answers)
}

func (r *keyRace[TX]) call(t *testing.T, keys *idem.Store[TX], fn func(context.Context, TX) (string, error)) raceAnswer {
	ctx := pg.WithNetTimeout(t.Context(), 2*time.Second)
	res, err := idem.Do(ctx, keys, r.op.Key("m1", r.id), idem.NoFingerprint(), fn)
	return raceAnswer{res, err}
}

// lead is the handler of the first caller. Only its first run meets the fate.
func (r *keyRace[TX]) lead(t *testing.T, inside chan<- int64, goOn <-chan struct{}) func(context.Context, TX) (string, error) {
	first := true
	return func(ctx context.Context, tx TX) (string, error) {
		receipt, err := r.effect()(ctx, tx)
		if err != nil || !first {
			return receipt, err
		}
		first = false
		inside <- r.db.Int(t, `SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xid IS NOT NULL`)
		<-goOn
		return receipt, r.fate.result
	}
}

func (r *keyRace[TX]) effect() func(context.Context, TX) (string, error) {
	return func(ctx context.Context, tx TX) (string, error) {
		r.mu.Lock()
		r.runs++
		run := r.runs
		r.mu.Unlock()
		return fmt.Sprintf("run %d", run), r.c.Exec(ctx, tx, `INSERT INTO effect VALUES ('`+r.id+`')`)
	}
}

func (r *keyRace[TX]) judge(t *testing.T, answers []raceAnswer) {
	executed, value := 0, ""
	for i, a := range answers {
		if i == 0 && r.fate.result != nil {
			wantErr(t, a.err, r.fate.result)
			continue
		}
		if a.err != nil {
			t.Errorf("%s: caller %d: %v", r.id, i, a.err)
			continue
		}
		if !a.res.Replayed {
			executed++
		}
		if value != "" && a.res.Value != value {
			t.Errorf("%s: caller %d got %q, another one %q", r.id, i, a.res.Value, value)
		}
		value = a.res.Value
	}
	effects := r.db.Int(t, `SELECT count(*) FROM effect WHERE name = $1`, r.id)
	t.Logf("winner %s | %s | effects %d, runs %d, answered %q by %d of %d", r.fate.name, r.id, effects, r.runs, value, executed, len(answers))
	wantInt(t, r.id+": effects", effects, 1)
	wantInt(t, r.id+": executed", int64(executed), 1)
	if r.runs < r.fate.runs || r.op.Isolation == idem.ReadCommitted && r.runs != r.fate.runs {
		t.Errorf("%s: %d runs, want %d", r.id, r.runs, r.fate.runs)
	}
}
