// Package bank is a bank that misbehaves, over a real socket. It is slow beyond every patience,
// pays and then says nothing, pays and says 500, pays and cuts the line, or answers twice.
//
// It has one virtue, which is all that a payment service needs of a bank: it honours a
// reference. Whatever has the same reference is the same payment, and is made once.
package bank

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/pgonce/pgonce/examples/internal/foreign"
)

// Order is what the bank is asked for, by POST /payments.
type Order struct {
	Reference   string `json:"reference"` // the same reference is the same payment
	Account     string `json:"account"`
	AmountCents int64  `json:"amount_cents"`
	Purpose     string `json:"purpose"` // what a person reads on the statement; the bank does not
}

// Payment is money that left.
type Payment struct {
	Order
	Serial string
}

// Config says how a bank behaves.
type Config struct {
	Faults bool   // misbehave
	Seed   uint64 // for the choice of what to do wrong
	// Patience is how long clients wait for an answer. A slow call takes twice as long.
	Patience time.Duration
}

// misbehaviour is what goes wrong with one call in five.
var misbehaviour = []foreign.Odds{
	{Mood: foreign.Slow, Of: 4},
	{Mood: foreign.Silent, Of: 4},
	{Mood: foreign.Fails, Of: 4},
	{Mood: foreign.Cuts, Of: 3},
	{Mood: foreign.Twice, Of: 3},
	{Mood: foreign.Down, Of: 3},
}

// Bank is a running bank. Its ledger is its own: it outlives the services and knows nothing
// of their database.
type Bank struct {
	*foreign.Server

	mu       sync.Mutex
	ledger   map[string]decision // by reference
	payments []Payment
}

// decision is what the bank has said about a reference, once and for all.
type decision struct {
	order  Order
	answer foreign.Answer
}

// Open starts a bank on a loopback address.
func Open(cfg Config) (*Bank, error) {
	b := &Bank{ledger: map[string]decision{}}
	behaviour := foreign.Config{Seed: cfg.Seed, Patience: cfg.Patience, Slowness: 2 * cfg.Patience}
	if cfg.Faults {
		behaviour.Odds = misbehaviour
	}
	var err error
	if b.Server, err = foreign.Open(behaviour); err != nil {
		return nil, err
	}
	b.Handle("POST /payments", b.pay)
	return b, nil
}

// Payments is the money that left, in order.
func (b *Bank) Payments() []Payment {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]Payment(nil), b.payments...)
}

// ClosedAccount is how the number of an account begins to which the bank refuses to pay.
const ClosedAccount = "closed-"

// decide makes the payment or refuses it, or says again what it has said before.
func (b *Bank) decide(o Order) foreign.Answer {
	b.mu.Lock()
	defer b.mu.Unlock()
	answer := func(status int, word, value string) foreign.Answer {
		return foreign.Answer{Status: status, Body: map[string]string{"reference": o.Reference, word: value}}
	}
	d, known := b.ledger[o.Reference]
	switch {
	case known && d.order != o:
		return answer(http.StatusConflict, "reason", "the reference belongs to another payment")
	case known:
		return d.answer
	case strings.HasPrefix(o.Account, ClosedAccount):
		d = decision{o, answer(http.StatusUnprocessableEntity, "reason", "account closed")}
	default:
		serial := fmt.Sprintf("B%08d", len(b.payments)+1)
		b.payments = append(b.payments, Payment{o, serial})
		d = decision{o, answer(http.StatusOK, "serial", serial)}
	}
	b.ledger[o.Reference] = d
	return d.answer
}

// pay answers POST /payments.
func (b *Bank) pay(r *http.Request) (func() foreign.Answer, error) {
	o, err := foreign.Decode[Order](r)
	if err != nil || o.Reference == "" || o.AmountCents <= 0 {
		return nil, errors.New("want reference, account, amount_cents")
	}
	return func() foreign.Answer { return b.decide(o) }, nil
}
