package idemtest

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"
)

const (
	defaultFreeze   = 300 * time.Millisecond
	defaultParallel = 8
	betweenTries    = 10 * time.Millisecond
	mostFailures    = 3    // then no further point is tried
	mostPoints      = 2000 // of one execution
)

// CrashConfig tunes [CrashEverywhere]. A nil *CrashConfig is ready to use.
type CrashConfig struct {
	// Freeze is for how long a process is frozen. Where keys are executed under a lease, make it longer than that, so that another process
	// takes over meanwhile. Defaults to 300 ms.
	Freeze time.Duration

	// Patience is how long a request may go without an answer after things went wrong, and a dead process may take to return. Where keys are
	// executed under a lease, it has to be longer than that. Defaults to 30 seconds.
	Patience time.Duration

	// Parallel is how many executions there are at a time. Each has one or two processes, with what connections
	// their pools open. Defaults to 8.
	Parallel int
}

// CrashEverywhere proves that a request has one effect and one answer, wherever its process dies. It fails tb where that is not so.
//
// life is a whole process: it connects to [Process.DatabaseURL], by whatever client library, handles the request id as the service does, and returns the answer.
// It must close what it has opened. The same id is the same request, also for another process; two ids are two requests. What it does to others, it does by [Process.Call] or [Process.Transport].
// effects counts the effects of a request that there are, past all caches and not by way of a Process.
//
// It runs life once to count the points at which something is sent to the server, done there, heard from it, or done elsewhere. Then, for
// each of these points, it has a new request in whose execution
//
//   - the process dies there: all of its connections break, and nobody hears its answer;
//   - the connection breaks there, and the process goes on;
//   - the process is frozen there, while others get the same request, and then goes on.
//
// After each, new processes get the same request until one of them answers, and then one more. There must be one effect, and all answers
// must be equal ([reflect.DeepEqual]). An error of life is no answer: the request is asked for again. Let it
// return refusals that are for good as answers. The last line that tb logs has the figures:
//
//	idemtest: crash everywhere: points=17 cut points=51 effects=51 answers=130 ok
//
// Not shown by it: two faults in one execution; a crash of the server; a network that swallows what is sent.
//
// life and effects are called on several goroutines at once. The database is a real one; its URL has one host, by a unix socket or by TCP
// without TLS. A dead process is one whose connections are gone and whose ctx has ended, not one that is gone: its function goes on
// until it returns, and CrashEverywhere waits for it.
func CrashEverywhere[A any](tb testing.TB, databaseURL string,
	life func(ctx context.Context, p *Process, id string) (A, error), effects func(ctx context.Context, id string) (int64, error), cfg *CrashConfig,
) {
	tb.Helper()
	if life == nil || effects == nil {
		tb.Fatal("idemtest: crash everywhere: life or effects is nil")
	}
	s := &crashSuite{
		tb: tb, url: databaseURL, run: rand.Text(), effects: effects,
		life: func(ctx context.Context, p *Process, id string) (any, error) { return life(ctx, p, id) },
	}
	if cfg != nil {
		s.cfg = *cfg
	}
	s.cfg.Freeze = cmp.Or(s.cfg.Freeze, defaultFreeze)
	s.cfg.Patience = cmp.Or(s.cfg.Patience, defaultPatience)
	s.cfg.Parallel = max(1, cmp.Or(s.cfg.Parallel, defaultParallel))
	s.all()
}

// crashSuite is one run of CrashEverywhere.
type crashSuite struct {
	tb      testing.TB
	url     string
	run     string
	cfg     CrashConfig
	life    func(context.Context, *Process, string) (any, error)
	effects func(context.Context, string) (int64, error)

	dead sync.WaitGroup // processes that have died and not returned

	mu                               sync.Mutex
	cuts, allEffects, answers, wrong int
}

// all runs the clean execution, and then one for each point and mishap. Beyond the points of the clean one it goes on until an execution has no such
// point, since one may have had luck.
func (s *crashSuite) all() {
	s.tb.Helper()
	clean := newPlan(none, 0)
	switch err := s.execute(clean); {
	case err != nil:
		s.tb.Fatalf("idemtest: crash everywhere: %v: %v", clean, err)
	case clean.points() == 0:
		s.tb.Fatal("idemtest: crash everywhere: nothing went through DatabaseURL, Call or Transport")
	}
	points := clean.points()
	todo := make(chan *plan)
	var workers sync.WaitGroup
	for range s.cfg.Parallel {
		workers.Go(func() {
			for p := range todo {
				s.try(p)
			}
		})
	}
	for _, what := range []mishap{die, sever, freeze} {
		for at := 1; at <= points && !s.hopeless(); at++ {
			todo <- newPlan(what, at)
		}
	}
	close(todo)
	workers.Wait()
	for _, what := range []mishap{die, sever, freeze} {
		for at := points + 1; !s.hopeless() && s.try(newPlan(what, at)); at++ {
			if at > points+mostPoints {
				s.tb.Fatalf("idemtest: crash everywhere: an execution had %d points, others have more and more: does something run in the background?", points)
			}
		}
	}
	s.awaitDead()
	verdict := "ok"
	if s.wrong > 0 {
		verdict = "FAILED"
	}
	s.tb.Logf("idemtest: crash everywhere: points=%d cut points=%d effects=%d answers=%d %s", points, s.cuts, s.allEffects, s.answers, verdict)
}

// try executes a plan, and says whether its point was reached.
func (s *crashSuite) try(p *plan) bool {
	if s.hopeless() {
		return false
	}
	err := s.execute(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.wrong++
		s.tb.Errorf("idemtest: crash everywhere: %v: %v", p, err)
	}
	if p.reached() {
		s.cuts++
	}
	return p.reached()
}

// hopeless says that enough has failed to know.
func (s *crashSuite) hopeless() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wrong >= mostFailures
}

// awaitDead waits for the functions of dead processes.
func (s *crashSuite) awaitDead() {
	gone := make(chan struct{})
	go func() { s.dead.Wait(); close(gone) }()
	timer := time.NewTimer(s.cfg.Patience)
	defer timer.Stop()
	select {
	case <-gone:
	case <-timer.C:
		s.tb.Errorf("idemtest: crash everywhere: %v after the death of a process its function has not returned: does it heed ctx, and errors?", s.cfg.Patience)
	}
}

// execution is one request and all that was heard about it.
type execution struct {
	*crashSuite
	id string

	mu    sync.Mutex
	heard []any
	last  error // of those that got no answer
}

// execute has a request executed as planned, and says what is wrong with what came of it.
func (s *crashSuite) execute(p *plan) error {
	e := &execution{crashSuite: s, id: fmt.Sprintf("%s-%d-%.8s", s.run, p.at, rand.Text())}
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.tb.Context()))
	defer cancel()
	first := make(chan error, 1)
	s.dead.Go(func() { first <- e.live(ctx, p) })
	select {
	case err := <-first:
		if errors.Is(err, errSetup) {
			return err
		}
	case <-p.struck:
		switch p.what {
		case freeze:
			other := e.others(ctx, p)
			<-first //nolint:errcheck // nobody hears it
			<-other
		case sever:
			<-first //nolint:errcheck // nobody hears it
		}
	}
	for range 2 { // the answer, and its repeat
		if err := e.answered(ctx, s.cfg.Patience); err != nil {
			return err
		}
	}
	return e.judge(ctx, p.reached())
}

var errSetup = errors.New("cannot stand between the process and its database")

// live is the life of a process. What a dead one says is not heard.
func (e *execution) live(ctx context.Context, p *plan) error {
	w, err := newWire(e.url, p)
	if err != nil {
		return fmt.Errorf("%w: %w", errSetup, err)
	}
	defer w.close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p.mu.Lock()
	p.killed, p.bury = cancel, w.bury
	p.mu.Unlock()
	answer, err := e.life(ctx, &Process{p, w}, e.id)
	if p.isDead() {
		return errDead
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil {
		e.last = err
		return err
	}
	e.heard = append(e.heard, answer)
	return nil
}

// others get the request while p is frozen. Then p goes on, and so may the last of them, who may be waiting for p in a way
// that no ctx ends.
func (e *execution) others(ctx context.Context, p *plan) (done <-chan struct{}) {
	defer close(p.thawed)
	ctx, cancel := context.WithTimeout(ctx, e.cfg.Freeze)
	answered := make(chan struct{})
	e.dead.Go(func() {
		defer cancel()
		defer close(answered)
		_ = e.answered(ctx, e.cfg.Freeze)
	})
	select {
	case <-answered:
	case <-ctx.Done():
	}
	return answered
}

// answered sends the request to new processes until one answers.
func (e *execution) answered(ctx context.Context, patience time.Duration) error {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for tries := 1; ; tries++ {
		err := e.live(ctx, newPlan(none, 0))
		if err == nil || errors.Is(err, errSetup) {
			return err
		}
		pause := time.NewTimer(betweenTries)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		case <-deadline.C:
			pause.Stop()
			return fmt.Errorf("no answer within %v, in %d tries: %w", patience, tries, err)
		}
	}
}

// judge compares what was heard, and counts the effects.
func (e *execution) judge(ctx context.Context, cut bool) error {
	n, err := e.effects(ctx, e.id)
	if err != nil {
		return fmt.Errorf("count the effects: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if cut {
		e.count(int(n), len(e.heard))
	}
	if n != 1 {
		err = fmt.Errorf("%d effects, want 1 (last error: %w)", n, cmp.Or(e.last, errNone))
	}
	for _, answer := range e.heard[1:] {
		if !reflect.DeepEqual(answer, e.heard[0]) {
			return errors.Join(err, fmt.Errorf("answered %+v, and then %+v", e.heard[0], answer))
		}
	}
	return err
}

var errNone = errors.New("none")

func (s *crashSuite) count(effects, answers int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.allEffects += effects
	s.answers += answers
}
