// Package bank is a bank that misbehaves, over a real socket, and pays as often as it is called: it does not notice that a reference comes
// twice. What it has is an enquiry, and one virtue: a reference that it did not know when it was asked is refused from then on.
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
	Reference   string `json:"reference"`
	Account     string `json:"account"`
	AmountCents int64  `json:"amount_cents"`
	Purpose     string `json:"purpose"` // what a person reads on the statement; the bank does not
}

// What the number of an account begins with makes the bank treat payments to it.
const (
	Closed   = "closed-"   // refuses them
	Bouncing = "bouncing-" // returns them, a little later
	Tardy    = "tardy-"    // is at them for a second
	Opaque   = "opaque-"   // pays, and can never say so
)

// Config says how a bank behaves.
type Config struct {
	Faults             bool
	Seed               uint64
	Patience, Slowness time.Duration // of its clients; how long a slow call takes
}

// misbehaviour is what goes wrong with one call in five.
var misbehaviour = []foreign.Odds{
	{Mood: foreign.Slow, Of: 5},
	{Mood: foreign.Silent, Of: 5},
	{Mood: foreign.Fails, Of: 3},
	{Mood: foreign.Cuts, Of: 3},
	{Mood: foreign.Twice, Of: 2},
	{Mood: foreign.Down, Of: 2},
}

// Entry is money that left, or came back. The entries are in order.
type Entry struct {
	Order
	Serial string
	Back   bool // a return of the payment with this serial number
}

// The bank's codes.
const (
	atIt    = 1
	paid    = 4
	refused = 8
	blocked = 9
	unknown = 12
)

type word struct {
	Reference string `json:"reference"`
	Code      int    `json:"code"`
	Serial    string `json:"serial,omitempty"`
	Reason    string `json:"reason,omitempty"`
}

// matter is what the bank knows of a reference.
type matter struct {
	order Order
	word  word
	ready time.Time // before that, it is at it
}

type comeback struct {
	Serial string    `json:"serial"`
	Reason string    `json:"reason"`
	due    time.Time // before that, nobody knows
}

// Bank is a running bank. Its ledger is its own: it outlives the workers and knows nothing of their database.
type Bank struct {
	*foreign.Server

	mu      sync.Mutex
	matters map[string]matter // by reference, the last one
	entries []Entry
	returns []comeback
	met     struct{ refusals, blocked int }
}

// Open starts a bank on a loopback address.
func Open(cfg Config) (*Bank, error) {
	b := &Bank{matters: map[string]matter{}}
	behaviour := foreign.Config{Seed: cfg.Seed, Patience: cfg.Patience, Slowness: cfg.Slowness}
	if cfg.Faults {
		behaviour.Odds = misbehaviour
	}
	var err error
	if b.Server, err = foreign.Open(behaviour); err != nil {
		return nil, err
	}
	b.Handle("POST /payments", func(r *http.Request) (func() foreign.Answer, error) {
		o, err := foreign.Decode[Order](r)
		if err != nil || o.Reference == "" || o.AmountCents <= 0 {
			return nil, errors.New("want reference, account, amount_cents")
		}
		return func() foreign.Answer { return b.pay(o) }, nil
	})
	b.Handle("POST /enquiries", func(r *http.Request) (func() foreign.Answer, error) {
		asked, err := foreign.Decode[word](r)
		if err != nil || asked.Reference == "" {
			return nil, errors.New("want reference")
		}
		return func() foreign.Answer { return b.enquire(asked.Reference) }, nil
	})
	b.Handle("GET /returns", func(*http.Request) (func() foreign.Answer, error) { return b.comebacks, nil })
	return b, nil
}

// Entries is the ledger.
func (b *Bank) Entries() []Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]Entry(nil), b.entries...)
}

// Blocked is how many calls came for a reference that was refused after an enquiry: each would have been a second payment.
func (b *Bank) Blocked() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.met.blocked
}

// pay makes a payment or refuses it, each time that it is asked.
func (b *Bank) pay(o Order) foreign.Answer {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := matter{order: o, word: word{Reference: o.Reference}}
	switch {
	case b.matters[o.Reference].word.Code == blocked:
		b.met.blocked++
		return ok(word{Reference: o.Reference, Code: blocked, Reason: "refused after an enquiry"})
	case strings.HasPrefix(o.Account, Closed):
		m.word.Code, m.word.Reason = refused, "account closed"
		b.met.refusals++
	default:
		m.word.Code, m.word.Serial = paid, fmt.Sprintf("B%08d", len(b.entries)+1)
		b.entries = append(b.entries, Entry{Order: o, Serial: m.word.Serial})
	}
	switch {
	case strings.HasPrefix(o.Account, Tardy):
		m.ready = time.Now().Add(time.Second)
	case strings.HasPrefix(o.Account, Bouncing):
		b.entries = append(b.entries, Entry{Order: o, Serial: m.word.Serial, Back: true})
		b.returns = append(b.returns, comeback{m.word.Serial, "no such person", time.Now().Add(300 * time.Millisecond)})
	}
	b.matters[o.Reference] = m
	return ok(m.said())
}

// enquire says what became of a reference. One that it does not know is refused from now on, which it says too.
func (b *Bank) enquire(reference string) foreign.Answer {
	b.mu.Lock()
	defer b.mu.Unlock()
	m, known := b.matters[reference]
	if !known {
		b.matters[reference] = matter{word: word{Reference: reference, Code: blocked, Reason: "refused after an enquiry"}}
		return ok(word{Reference: reference, Code: unknown})
	}
	return ok(m.said())
}

// said is what the bank tells at this moment.
func (m matter) said() word {
	if strings.HasPrefix(m.order.Account, Opaque) {
		return word{Reference: m.word.Reference, Code: 99, Reason: "ask your branch"}
	}
	if time.Now().Before(m.ready) {
		return word{Reference: m.word.Reference, Code: atIt}
	}
	return m.word
}

// comebacks lists what has come back.
func (b *Bank) comebacks() foreign.Answer {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := []comeback{}
	for _, c := range b.returns {
		if time.Now().After(c.due) {
			all = append(all, c)
		}
	}
	return foreign.Answer{Status: http.StatusOK, Body: all}
}

func ok(w word) foreign.Answer { return foreign.Answer{Status: http.StatusOK, Body: w} }
