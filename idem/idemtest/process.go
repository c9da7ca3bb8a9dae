package idemtest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
)

// Process is one life of the service under test. All that it does to the world goes through it: to the database by
// [Process.DatabaseURL], to others by [Process.Call] or [Process.Transport]. What it does by another way is seen, but not cut.
type Process struct {
	plan *plan
	wire *wire
}

// DatabaseURL is where this process finds the database. Each process has its own; it works as long as the process lives.
func (p *Process) DatabaseURL() string { return p.wire.url }

// Call does something to somebody else: pays at a bank, sends a mail. Before and after fn the process may die, or the connection
// break: then fn is not called, or has been called and its error is not told. A dead process calls nobody.
func (p *Process) Call(fn func() error) error {
	if err := p.plan.pass("a foreign call is made"); err != nil {
		return err
	}
	err := fn()
	if cut := p.plan.pass("a foreign call was made, before its answer is heard"); cut != nil {
		return cut
	}
	return err
}

// Transport makes each request of an HTTP client a [Process.Call]. A nil base is [http.DefaultTransport].
func (p *Process) Transport(base http.RoundTripper) http.RoundTripper {
	if base == nil {
		base = http.DefaultTransport
	}
	return transport{p, base}
}

type transport struct {
	process *Process
	base    http.RoundTripper
}

func (t transport) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	err = t.process.Call(func() error {
		resp, err = t.base.RoundTrip(r) //nolint:bodyclose // the caller's, or closed below
		return err
	})
	if err != nil && resp != nil {
		_ = resp.Body.Close()
		resp = nil
	}
	return resp, err
}

// mishap is what happens to a process when it comes to its point.
type mishap string

const (
	none   mishap = ""
	die    mishap = "the process dies"
	sever  mishap = "the connection breaks"
	freeze mishap = "the process is frozen, while others go on,"
)

var (
	errDead    = errors.New("idemtest: this process is dead")
	errSevered = errors.New("idemtest: the connection was cut")
)

// plan says at which point of a process what happens to it. A point is a moment that is about to come to pass: something is sent to the
// server, or heard from it.
type plan struct {
	what mishap
	at   int // which point, from 1

	mu     sync.Mutex
	passed int
	where  string        // the point, once it is reached
	dead   bool          // nothing passes any more
	struck chan struct{} // closed at the point
	thawed chan struct{} // closed when a frozen process goes on
	killed context.CancelCauseFunc
	bury   func() // closes what a dead process had open
}

func newPlan(what mishap, at int) *plan {
	return &plan{what: what, at: at, struck: make(chan struct{}), thawed: make(chan struct{})}
}

// pass is called at each point. It returns when the process may go on, and otherwise why not.
func (p *plan) pass(where string) error {
	p.mu.Lock()
	if p.dead {
		p.mu.Unlock()
		return errDead
	}
	p.passed++
	here := p.what != none && p.passed == p.at
	if here {
		p.where = where
		p.dead = p.what == die
		close(p.struck)
	}
	frozen := p.what == freeze && p.passed >= p.at
	p.mu.Unlock()
	switch {
	case here && p.what == die:
		p.killed(errDead)
		p.bury()
		return errDead
	case here && p.what == sever:
		return errSevered
	case frozen:
		<-p.thawed
	}
	return nil
}

// reached says whether the process has come to its point.
func (p *plan) reached() bool {
	select {
	case <-p.struck:
		return true
	default:
		return false
	}
}

func (p *plan) points() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.passed
}

func (p *plan) isDead() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

func (p *plan) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.what == none {
		return "nothing goes wrong"
	}
	return fmt.Sprintf("point %d: %s when %s", p.at, p.what, p.where)
}
