package main

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/pgonce/pgonce/examples/internal/foreign"
)

// patience is how long the push service is waited for.
const patience = 400 * time.Millisecond

// odds are what goes wrong at the push service.
var odds = []foreign.Odds{
	{Mood: foreign.Slow, Of: 10},
	{Mood: foreign.Silent, Of: 10},
	{Mood: foreign.Fails, Of: 10},
	{Mood: foreign.Cuts, Of: 10},
	{Mood: foreign.Twice, Of: 10},
	{Mood: foreign.Down, Of: 10},
}

// pushService is somebody else's. It pushes one reference once, and has a ledger of what it has pushed.
type pushService struct {
	*foreign.Server
	mu     sync.Mutex
	pushed map[string]foreign.Answer
}

type push struct{ Reference, To, Text string }

// gone is an assignee whom the push service does not know.
const gone = "gone"

func openPushService(seed uint64, misbehave bool) (*pushService, error) {
	cfg := foreign.Config{Seed: seed, Patience: patience, Slowness: 2 * patience}
	if misbehave {
		cfg.Odds = odds
	}
	server, err := foreign.Open(cfg)
	if err != nil {
		return nil, err
	}
	p := &pushService{Server: server, pushed: map[string]foreign.Answer{}}
	server.Handle("POST /pushes", func(r *http.Request) (func() foreign.Answer, error) {
		ask, err := foreign.Decode[push](r)
		if err == nil && (ask.Reference == "" || ask.To == "") {
			err = errors.New("want reference, to")
		}
		return func() foreign.Answer { return p.push(ask) }, err
	})
	return p, nil
}

func (p *pushService) push(ask push) foreign.Answer {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, known := p.pushed[ask.Reference]
	switch {
	case known:
	case ask.To == gone:
		a = foreign.Answer{Status: http.StatusUnprocessableEntity, Body: map[string]string{"reference": ask.Reference, "reason": "nobody of that name"}}
	default:
		receipt := fmt.Sprintf("P%06d", len(p.pushed)+1)
		a = foreign.Answer{Status: http.StatusOK, Body: map[string]string{"reference": ask.Reference, "receipt": receipt}}
	}
	p.pushed[ask.Reference] = a
	return a
}

// receipts are what was pushed, by reference.
func (p *pushService) receipts() map[string]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := map[string]string{}
	for reference, a := range p.pushed {
		if a.Status == http.StatusOK {
			all[reference] = a.Body.(map[string]string)["receipt"]
		}
	}
	return all
}
