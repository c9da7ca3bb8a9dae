//go:build unix

// Package failover promotes a standby while clients are at work, and compares what they were told with what is there.
package failover_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pgonce/pgonce/internal/localpg"
)

func TestMain(m *testing.M) {
	if url := os.Getenv("FAILOVER_CLIENT"); url != "" {
		playClient(url)
	}
	if missing := missing(); missing != "" {
		fmt.Printf("integration/failover: NOT RUN: %s\n", missing)
		if os.Getenv("CI") != "" {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// missing says what there is to install.
func missing() string {
	bin, err := localpg.Binaries()
	if err != nil {
		return err.Error()
	}
	server, err := filepath.EvalSymlinks(filepath.Join(bin, "postgres"))
	if err != nil {
		return err.Error()
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(server), "pg_basebackup")); err != nil {
		return fmt.Sprintf("no pg_basebackup beside %s: point PGONCE_PGBIN at binaries that have it, or run scripts/setup.sh postgres", server)
	}
	return ""
}

const (
	rounds = 2   // failovers
	enough = 400 // answers before a failover, and after it
)

// With a synchronous standby nothing that a client was told is lost by a promotion, and nothing is done twice: requests, foreign
// calls in steps, transitions and what is written under locks. Tokens go on growing.
func TestSynchronousStandbyIsPromoted(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.synchronous(t)
	bank := filepath.Join(t.TempDir(), "bank")
	l := startLoad(t, p.url(), bank)
	defer l.end()
	for round := range rounds {
		l.await(t)
		old := p.failOver(t)
		l.await(t)
		if round < rounds-1 {
			p.rebuild(t, old)
			p.synchronous(t)
		}
	}
	entries := l.end()
	a := auditOf(t, p, entries, bank)
	if a.lost > 0 {
		t.Errorf("%d acknowledged effects are lost", a.lost)
	}
	again := a.repeat(t, p, entries, bank)
	report(t, a, fmt.Sprintf("R7 sync failovers=%d requests=%d acknowledged=%d lost=%d doubled=%d alone=%d repeated=%d", rounds, len(entries), a.acknowledged, a.lost, a.doubled, a.alone, again))
}

// With an asynchronous standby that is behind, what it has not heard of is gone: the record together with its effect, never one alone. Who
// asks again gets it done again, once. Tokens are greater than all that were given out, also than those that the standby
// has not heard of.
func TestAsynchronousStandbyIsPromoted(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	bank := filepath.Join(t.TempDir(), "bank")
	l := startLoad(t, p.url(), bank)
	defer l.end()
	for round := range rounds {
		l.await(t)
		p.cutOff(t)
		l.await(t)
		old := p.failOver(t)
		l.await(t)
		if round < rounds-1 {
			p.rebuild(t, old)
		}
	}
	entries := l.end()
	a := auditOf(t, p, entries, bank)
	if a.lost == 0 {
		t.Error("nothing is lost, so this shows nothing")
	}
	again := a.repeat(t, p, entries, bank)
	report(t, a, fmt.Sprintf("R7 async failovers=%d requests=%d acknowledged=%d vanished=%d alone=%d doubled=%d repeated=%d", rounds, len(entries), a.acknowledged, a.lost, a.alone, a.doubled, again))
}

// await waits until the clients have been told enough more things.
func (l *load) await(t *testing.T) {
	t.Helper()
	for goal, deadline := l.told.Load()+enough, time.After(5*time.Minute); l.told.Load() < goal; {
		select {
		case <-deadline:
			t.Fatalf("%d of %d answers in 5 minutes", l.told.Load()-goal+enough, enough)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func auditOf(t *testing.T, p *pair, entries []entry, bank string) *audit {
	t.Helper()
	db := connect(t, p.primary)
	defer func() { _ = db.Close(t.Context()) }()
	a, err := newAudit(t.Context(), db, entries, bank)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// repeat asks for everything once more, and adds what a second audit finds: after that, each thing is there once.
func (a *audit) repeat(t *testing.T, p *pair, entries []entry, bank string) int {
	t.Helper()
	type thing struct{ kind, name string }
	seen, work := map[thing]bool{}, make(chan thing)
	var mu sync.Mutex
	var answers []entry
	c, err := newClient(t.Context(), p.url(), bank, func(e entry) {
		mu.Lock()
		defer mu.Unlock()
		answers = append(answers, e)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.close(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for w := range work {
				var i int
				_, _ = fmt.Sscan(w.name, &i)
				c.once(t.Context(), w.kind, i, 0)
			}
		})
	}
	for _, e := range entries {
		if w := (thing{e.Kind, e.Name}); e.Kind != opLock && !seen[w] {
			seen[w] = true
			work <- w
		}
	}
	close(work)
	wg.Wait()
	after := auditOf(t, p, answers, bank)
	if after.lost > 0 {
		t.Errorf("%d answers to repeats are about nothing", after.lost)
	}
	a.doubled += after.doubled
	a.alone += after.alone
	a.said = slices.Compact(append(a.said, after.said...))
	return len(answers)
}

func report(t *testing.T, a *audit, line string) {
	t.Helper()
	if a.doubled > 0 || a.alone > 0 {
		t.Errorf("%d doubled, %d alone", a.doubled, a.alone)
	}
	for _, s := range a.said {
		t.Error(s)
	}
	tokens := "ok"
	if len(a.tokens) > 0 {
		tokens = "short"
		t.Errorf("%d times a token was too small, such as: %s", len(a.tokens), a.tokens[0])
	}
	verdict := "ok"
	if t.Failed() {
		verdict = "short"
	}
	fmt.Printf("%s tokens=%s %s\n", line, tokens, verdict)
}
