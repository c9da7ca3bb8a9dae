package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// storm is a crowd of impatient clients.
type storm struct {
	refunds    int
	duplicates int
	workers    int
	seed       uint64
	merchant   string
	service    *process

	answered atomic.Int64
	tally    tally
}

// tally counts what the clients met on the way to their answers.
type tally struct {
	attempts, inFlight, unavailable, broken atomic.Int64
}

// order is one request that a client repeats until it is answered.
type order struct {
	key     string
	amount  int64
	forgery bool // a known key with another amount: must be refused
}

// answer is what a client was told in the end.
type answer struct {
	order
	status   int // 201 or a refusal; 0 when there was none
	replayed bool
	receipt  receipt
}

const purchases = 50 // the refunds are spread over so many

func (s *storm) purchase(n int) string    { return fmt.Sprintf("p-%02d", n%purchases) }
func (s *storm) key(n int) string         { return fmt.Sprintf("refund-%05d", n) }
func amountOf(n int) int64                { return int64(100 + n%900) }
func (s *storm) forgeries() (count int)   { return (s.refunds + 99) / 100 }
func (s *storm) total() int               { return s.refunds*s.duplicates + s.forgeries() }
func (s *storm) expectedCents() (c int64) { return sumOf(s.refunds, amountOf) }

func sumOf(n int, f func(int) int64) (sum int64) {
	for i := range n {
		sum += f(i)
	}
	return sum
}

// run sends everything and returns what was answered, in no order.
func (s *storm) run(ctx context.Context) []answer {
	orders := s.orders()
	answers := make([]answer, len(orders))
	next := make(chan int)
	var wg sync.WaitGroup
	for w := range s.workers {
		wg.Go(func() {
			client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
			defer client.CloseIdleConnections()
			rng := rand.New(rand.NewPCG(s.seed, uint64(w)))
			for i := range next {
				answers[i] = s.insist(ctx, client, rng, orders[i])
				s.answered.Add(1)
			}
		})
	}
	for i := range orders {
		next <- i
	}
	close(next)
	wg.Wait()
	return answers
}

// orders shuffles the duplicates of neighbouring refunds together, so that they meet. The
// forgeries come at the end, when their keys are surely used.
func (s *storm) orders() []order {
	const window = 40 // refunds in the air at a time
	rng := rand.New(rand.NewPCG(s.seed, 1<<32))
	var all []order
	for from := 0; from < s.refunds; from += window {
		var batch []order
		for n := from; n < min(from+window, s.refunds); n++ {
			for range s.duplicates {
				batch = append(batch, order{key: s.key(n), amount: amountOf(n)})
			}
		}
		rng.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
		all = append(all, batch...)
	}
	for n := 0; n < s.refunds; n += 100 {
		all = append(all, order{key: s.key(n), amount: amountOf(n) + 1, forgery: true})
	}
	return all
}

// insist repeats a request until it has a final answer, or ctx ends.
func (s *storm) insist(ctx context.Context, client *http.Client, rng *rand.Rand, o order) answer {
	for n := 0; ctx.Err() == nil; n++ {
		a, final := s.try(ctx, client, o)
		if final {
			return a
		}
		pause := time.Duration(1+rng.IntN(1<<min(n, 6))) * time.Millisecond
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return answer{order: o}
}

// try sends a request once. Whatever is neither a success nor a refusal leaves the client
// none the wiser, so it must ask again.
func (s *storm) try(ctx context.Context, client *http.Client, o order) (a answer, final bool) {
	a.order = o
	url, err := s.service.address(ctx)
	if err != nil {
		return a, false
	}
	s.tally.attempts.Add(1)
	var n int
	_, _ = fmt.Sscanf(o.key, "refund-%d", &n)
	body, _ := json.Marshal(request{Purchase: s.purchase(n), AmountCents: o.amount}) // cannot fail
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/refunds", bytes.NewReader(body))
	if err != nil {
		return a, false
	}
	req.Header.Set("X-Merchant", s.merchant)
	req.Header.Set("Idempotency-Key", o.key)
	res, err := client.Do(req)
	if err != nil {
		s.tally.broken.Add(1)
		return a, false
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		s.tally.broken.Add(1)
		return a, false
	}
	switch res.StatusCode {
	case http.StatusConflict:
		s.tally.inFlight.Add(1)
		return a, false
	case http.StatusServiceUnavailable:
		s.tally.unavailable.Add(1)
		return a, false
	case http.StatusCreated:
		if json.Unmarshal(data, &a.receipt) != nil {
			return a, false
		}
	}
	a.status, a.replayed = res.StatusCode, res.Header.Get("Idempotent-Replayed") == "true"
	return a, true
}
