package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/refund/bank"
	"github.com/pgonce/pgonce/examples/refund/payment"
	"github.com/riverqueue/river"
)

// ground is what a storm takes place on.
type ground struct {
	pool    *pgxpool.Pool
	url     string
	program string // what services and workers are started from
}

// storm is a crowd that asks for the same refunds again and again.
type storm struct {
	options
	*ground
	id    string // tells this storm's merchants from those of others in the same database
	fleet *fleet
	bank  *bank.Bank
	queue *river.Client[pgx.Tx]
	jobs  *demo.Queue
	*demo.Teller

	sent  atomic.Int64 // orders that a service has answered or the queue has taken
	tally tally
}

// tally counts what the clients met on the way to their answers.
type tally struct {
	attempts, inFlight, unavailable, broken atomic.Int64
}

// order is one request. By HTTP, a client repeats it until it is answered; by message, the
// queue does.
type order struct {
	n       int
	message bool
	forgery bool // a known number with another amount: must be refused
}

// answer is what became of an order in the end.
type answer struct {
	order
	late     bool // asked for after the rows were aged
	status   int  // 202 or a refusal; 0 when there was none
	replayed bool
	receipt  payment.Receipt
}

// The refunds are spread over so many merchants and purchases.
const (
	merchants = 10
	purchases = 50
)

func (s *storm) merchant(n int) string { return fmt.Sprintf("%s-m%d", s.id, n%merchants) }
func (s *storm) number(n int) string   { return fmt.Sprintf("refund-%05d", n) }
func (s *storm) key(n int) string      { return s.merchant(n) + "/" + s.number(n) }
func purchaseOf(n int) string          { return fmt.Sprintf("p-%02d", n%purchases) }
func amountOf(n int) int64             { return int64(100 + n%900) }

// closed says that the bank will refuse this refund. One purchase in fifty was paid from an
// account that is closed by now.
func closed(n int) bool { return n%purchases == 13 }

func (s *storm) forgeries() int { return (s.refunds + 99) / 100 }

// body is what a refund is asked for with; a forgery asks for a cent more.
func (o order) body() []byte {
	ask := payment.Order{Purchase: purchaseOf(o.n), Account: fmt.Sprintf("account-%d", o.n%purchases), AmountCents: amountOf(o.n)}
	if closed(o.n) {
		ask.Account = bank.ClosedAccount + ask.Account
	}
	if o.forgery {
		ask.AmountCents++
	}
	data, _ := json.Marshal(ask) // cannot fail
	return data
}

// request is the order as it goes out. A customer asks by HTTP, the returns desk by message.
func (s *storm) request(o order) payment.Request {
	by := "customer"
	if o.message {
		by = "desk"
	}
	return payment.Request{Merchant: s.merchant(o.n), Number: s.number(o.n), AskedBy: fmt.Sprintf("%s-%d", by, o.n), Body: o.body()}
}

// gust shuffles the duplicates of neighbouring refunds together, so that they meet. Each is asked
// for at least once by message, if there are two; the forgeries come at the end, when their numbers are surely used.
func (s *storm) gust() []order {
	const window = 40 // refunds in the air at a time
	rng := rand.New(rand.NewPCG(s.Seed, 1<<32))
	var all []order
	for from := 0; from < s.refunds; from += window {
		var batch []order
		for n := from; n < min(from+window, s.refunds); n++ {
			for d := range s.Duplicates {
				batch = append(batch, order{n: n, message: d == 1 || d > 1 && rng.IntN(2) == 0})
			}
		}
		rng.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
		all = append(all, batch...)
	}
	for n := 0; n < s.refunds; n += 100 {
		all = append(all, order{n: n, forgery: true})
	}
	return all
}

// echo is everything once more, long after, by both ways, with forgeries by both.
func (s *storm) echo() []order {
	var all []order
	for n := range s.refunds {
		all = append(all, order{n: n}, order{n: n, message: true})
		if n%100 == 0 {
			all = append(all, order{n: n, forgery: true}, order{n: n, forgery: true, message: true})
		}
	}
	return all
}

// run sends the orders and returns what became of them, in the same order.
func (s *storm) run(ctx context.Context, orders []order) ([]answer, error) {
	answers := make([]answer, len(orders))
	jobs := make(map[int64]int) // the message's job, and whose answer it gives
	var mu sync.Mutex
	next := make(chan int)
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	for w := range s.Workers {
		wg.Go(func() {
			client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: serviceProcesses}}
			defer client.CloseIdleConnections()
			rng := rand.New(rand.NewPCG(s.Seed, uint64(w)))
			for i := range next {
				if !orders[i].message {
					answers[i] = s.insist(ctx, client, rng, orders[i])
				} else if job, err := s.publish(ctx, orders[i]); err != nil {
					failed.Store(&err)
				} else {
					mu.Lock()
					jobs[job] = i
					mu.Unlock()
				}
				s.sent.Add(1)
			}
		})
	}
	for i := range orders {
		next <- i
	}
	close(next)
	wg.Wait()
	if err := failed.Load(); err != nil {
		return nil, fmt.Errorf("publish: %w", *err)
	}
	return answers, s.collect(ctx, orders, jobs, answers)
}
