package main

import (
	"errors"
	"net/http"
	"path"
	"sync"
	"time"

	"github.com/pgonce/pgonce/examples/internal/foreign"
	"github.com/pgonce/pgonce/examples/wechatpay/wallet"
)

const (
	// patience is how long the platform is waited for, and slowness how long it takes now and then: longer than expected, and than the
	// life of the original's lock.
	patience = 600 * time.Millisecond
	slowness = 200 * time.Millisecond

	expect = 50 * time.Millisecond // how long a callback should take
)

// odds are what goes wrong at the platform.
var odds = []foreign.Odds{
	{Mood: foreign.Slow, Of: 15},
	{Mood: foreign.Silent, Of: 2},
	{Mood: foreign.Fails, Of: 4},
	{Mood: foreign.Cuts, Of: 4},
	{Mood: foreign.Twice, Of: 4},
	{Mood: foreign.Down, Of: 4},
}

// platform is somebody else's. It knows what was paid.
type platform struct {
	*foreign.Server
	mu       sync.Mutex
	payments map[string]wallet.Callback
}

func openPlatform(seed uint64, misbehave bool) (*platform, error) {
	cfg := foreign.Config{Seed: seed, Patience: patience, Slowness: slowness}
	if misbehave {
		cfg.Odds = odds
	}
	server, err := foreign.Open(cfg)
	if err != nil {
		return nil, err
	}
	p := &platform{Server: server, payments: map[string]wallet.Callback{}}
	server.Handle("GET /payments/{number}", func(r *http.Request) (func() foreign.Answer, error) {
		number := r.PathValue("number")
		if number == "" {
			return nil, errors.New("want a number")
		}
		return func() foreign.Answer { return p.tell(number) }, nil
	})
	return p, nil
}

// pay is what a customer does.
func (p *platform) pay(c wallet.Callback) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.payments[c.Number] = c
}

func (p *platform) tell(number string) foreign.Answer {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, paid := p.payments[number]
	if !paid {
		return foreign.Answer{Status: http.StatusNotFound, Body: map[string]string{"number": number}}
	}
	return foreign.Answer{Status: http.StatusOK, Body: c}
}

// wire watches what goes to the platform: of any order one question at a time. It counts on the side of those who ask, between
// having the lock and giving it back.
type wire struct {
	http.RoundTripper
	mu        sync.Mutex
	asking    map[string]int // by order
	overlaps  map[string]int // by order: questions that met another one
	most, all int            // questions about different orders at the same time; questions
	slow      int            // that took twice as long as expected
}

func newWire() *wire {
	return &wire{RoundTripper: &http.Transport{MaxIdleConnsPerHost: 16}, asking: map[string]int{}, overlaps: map[string]int{}}
}

func (w *wire) client() *http.Client { return &http.Client{Timeout: patience, Transport: w} }

// RoundTrip passes a question on.
func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	number, start := path.Base(r.URL.Path), time.Now()
	w.mu.Lock()
	w.asking[number]++
	w.all++
	w.most = max(w.most, len(w.asking))
	if w.asking[number] > 1 {
		w.overlaps[number]++
	}
	w.mu.Unlock()
	res, err := w.RoundTripper.RoundTrip(r)
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Since(start) > 2*expect {
		w.slow++
	}
	if w.asking[number]--; w.asking[number] == 0 {
		delete(w.asking, number)
	}
	return res, err
}
