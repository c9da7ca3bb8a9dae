package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/pgonce/pgonce/examples/internal/foreign"
	"github.com/pgonce/pgonce/examples/partialrefund/refunds"
)

// patience is how long the refund service is waited for.
const patience = 400 * time.Millisecond

// odds are what goes wrong at the refund service.
var odds = []foreign.Odds{
	{Mood: foreign.Slow, Of: 3},
	{Mood: foreign.Silent, Of: 2},
	{Mood: foreign.Fails, Of: 4},
	{Mood: foreign.Cuts, Of: 3},
	{Mood: foreign.Twice, Of: 3},
	{Mood: foreign.Down, Of: 4},
}

// payment is money that left.
type payment struct {
	refunds.Transfer
	Serial string
}

// refundService is somebody else's. It pays one reference once, refuses closed accounts, and has a ledger.
type refundService struct {
	*foreign.Server
	mu       sync.Mutex
	decided  map[string]foreign.Answer
	payments []payment
}

// closedAccount is how the number of an account begins to which the service refuses to pay.
const closedAccount = "closed-"

func openRefundService(seed uint64, misbehave bool) (*refundService, error) {
	cfg := foreign.Config{Seed: seed, Patience: patience, Slowness: 2 * patience}
	if misbehave {
		cfg.Odds = odds
	}
	server, err := foreign.Open(cfg)
	if err != nil {
		return nil, err
	}
	s := &refundService{Server: server, decided: map[string]foreign.Answer{}}
	server.Handle("POST /refunds", func(r *http.Request) (func() foreign.Answer, error) {
		t, err := foreign.Decode[refunds.Transfer](r)
		if err == nil && (t.Reference == "" || t.AmountCents <= 0) {
			err = errors.New("want reference, account, amount_cents")
		}
		return func() foreign.Answer { return s.pay(t) }, err
	})
	return s, nil
}

func (s *refundService) pay(t refunds.Transfer) foreign.Answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, known := s.decided[t.Reference]
	switch {
	case known:
	case strings.HasPrefix(t.Account, closedAccount):
		a = foreign.Answer{Status: http.StatusUnprocessableEntity, Body: map[string]string{"reference": t.Reference, "reason": "account closed"}}
	default:
		serial := fmt.Sprintf("S%08d", len(s.payments)+1)
		s.payments = append(s.payments, payment{t, serial})
		a = foreign.Answer{Status: http.StatusOK, Body: map[string]string{"reference": t.Reference, "serial": serial}}
	}
	s.decided[t.Reference] = a
	return a
}

// ledger is the money that left, in order.
func (s *refundService) ledger() []payment {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]payment(nil), s.payments...)
}
