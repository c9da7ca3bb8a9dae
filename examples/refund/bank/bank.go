// Package bank is a bank that misbehaves, over a real socket. It is slow beyond every patience,
// pays and then says nothing, pays and says 500, pays and cuts the line, or answers twice.
//
// It has one virtue, which is all that a payment service needs of a bank: it honours a
// reference. Whatever has the same reference is the same payment, and is made once.
package bank

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
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

// Bank is a running bank. Its ledger is its own: it outlives the services and knows nothing
// of their database.
type Bank struct {
	cfg    Config
	server *http.Server
	url    string
	calls  sync.WaitGroup // handlers, those that have lost their client too

	mu       sync.Mutex
	rng      *rand.Rand
	ledger   map[string]decision // by reference
	payments []Payment
	met      map[mood]int
}

// decision is what the bank has said about a reference, once and for all.
type decision struct {
	order  Order
	status int
	answer map[string]string
}

// Open starts a bank on a loopback address.
func Open(cfg Config) (*Bank, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &Bank{
		cfg: cfg, url: "http://" + l.Addr().String(), rng: rand.New(rand.NewPCG(cfg.Seed, 3)),
		ledger: map[string]decision{}, met: map[mood]int{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /payments", b.pay)
	b.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	b.calls.Go(func() { _ = b.server.Serve(l) })
	return b, nil
}

// URL is where the bank is.
func (b *Bank) URL() string { return b.url }

// Close ends the bank's day: it waits for calls whose clients have given up, since they move
// money too. What it says after that does not change any more.
func (b *Bank) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_ = b.server.Shutdown(ctx)
	b.calls.Wait()
}

// Payments is the money that left, in order.
func (b *Bank) Payments() []Payment {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]Payment(nil), b.payments...)
}

// Misbehaved tells how often each thing went wrong.
func (b *Bank) Misbehaved() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var parts []string
	for _, m := range []mood{slow, silent, fails, cuts, twice, down} {
		parts = append(parts, fmt.Sprintf("%d %s", b.met[m], m))
	}
	return strings.Join(parts, ", ")
}

// ClosedAccount is how the number of an account begins to which the bank refuses to pay.
const ClosedAccount = "closed-"

// decide makes the payment or refuses it, or says again what it has said before.
func (b *Bank) decide(o Order) decision {
	b.mu.Lock()
	defer b.mu.Unlock()
	d, known := b.ledger[o.Reference]
	switch {
	case known && d.order != o:
		return decision{o, http.StatusConflict, map[string]string{"reference": o.Reference, "reason": "the reference belongs to another payment"}}
	case known:
		return d
	case strings.HasPrefix(o.Account, ClosedAccount):
		d = decision{o, http.StatusUnprocessableEntity, map[string]string{"reference": o.Reference, "reason": "account closed"}}
	default:
		serial := fmt.Sprintf("B%08d", len(b.payments)+1)
		b.payments = append(b.payments, Payment{o, serial})
		d = decision{o, http.StatusOK, map[string]string{"reference": o.Reference, "serial": serial}}
	}
	b.ledger[o.Reference] = d
	return d
}

// pay answers POST /payments.
func (b *Bank) pay(w http.ResponseWriter, r *http.Request) {
	b.calls.Add(1)
	defer b.calls.Done()
	var o Order
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&o); err != nil || o.Reference == "" || o.AmountCents <= 0 {
		http.Error(w, "want reference, account, amount_cents", http.StatusBadRequest)
		return
	}
	b.perform(w, r, o, b.mood())
}
