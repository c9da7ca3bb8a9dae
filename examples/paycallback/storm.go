package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/paycallback/callback"
)

// ground is what a storm takes place on.
type ground struct {
	pool    *pgxpool.Pool
	url     string
	program string // what services and workers are started from
}

// storm is a provider that calls back again and again.
type storm struct {
	options
	*ground
	*demo.Teller
	way               string
	shop              string // tells this storm's orders from those of others in the same database
	first             int64  // the id of its first order
	others            *others
	services, workers []*demo.Process
	jobs              *demo.Queue

	answered       atomic.Int64
	attempts, lost atomic.Int64
	kills          int
	again          int64
}

// call is one callback, and what became of it.
type call struct {
	n      int // the order's
	forged forgery
	status int // 0 when there was no answer
}

// forgery is what is wrong with a callback.
type forgery int

const (
	genuine      forgery = iota
	otherAmount          // a cent more
	otherPayment         // another transaction, when the order is paid
)

const (
	serviceProcesses = 2
	workerProcesses  = 2
)

// crowds are how many callbacks come at once, for an order each: the first orders are theirs.
func (s *storm) crowds() []int { return []int{s.crowd / 100, s.crowd / 10, s.crowd} }

func (s *storm) size() int { return len(s.crowds()) + s.orders }

// closed says that an order was given up before it was paid.
func (s *storm) closed(n int) bool { return n >= len(s.crowds()) && n%20 == 7 }

func amountOf(n int) int64 { return int64(100 + n%900) }

// prepare starts the other systems, the services and the workers, and makes the orders.
func prepare(ctx context.Context, opt options, g *ground, way string, out io.Writer) (s *storm, err error) {
	s = &storm{options: opt, ground: g, Teller: demo.NewTeller(out), way: way, shop: fmt.Sprintf("%s-%d-%d", way, opt.Seed, time.Now().UnixNano())}
	if s.others, err = openOthers(opt.Faults, opt.Seed); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := s.stock(ctx); err != nil {
		return s, err
	}
	s.jobs = &demo.Queue{
		Pool: g.pool, Schema: callback.QueueSchema, Where: `(args ->> 'order')::bigint = ANY($1)`, Arg: s.ids(),
	}
	add := func(kind, name string, n int) (all []*demo.Process) {
		for i := range n {
			all = append(all, &demo.Process{
				Name:    fmt.Sprintf("%s %d", name, i+1),
				Command: []string{g.program, kind, "--way", way, "--others-url", s.others.URL(), fmt.Sprintf("--verbose=%t", opt.Verbose)},
				Env:     []string{"DATABASE_URL=" + g.url},
			})
		}
		return all
	}
	s.services, s.workers = add("serve", "service", serviceProcesses), add("work", "worker", workerProcesses)
	return s, demo.StartAll(s.fleet())
}

func (s *storm) fleet() []*demo.Process {
	return append(append([]*demo.Process(nil), s.services...), s.workers...)
}

// stock makes the orders, with ids in a row.
func (s *storm) stock(ctx context.Context) error {
	amounts, states := make([]int64, s.size()), make([]string, s.size())
	for n := range amounts {
		amounts[n], states[n] = amountOf(n), string(callback.Unpaid)
	}
	const draw = `
SELECT setval(pg_get_serial_sequence('orders.purchase', 'id'), nextval(pg_get_serial_sequence('orders.purchase', 'id')) + $1::bigint) - $1::bigint`
	if err := s.pool.QueryRow(ctx, draw, s.size()).Scan(&s.first); err != nil {
		return err
	}
	insert := `INSERT INTO orders.purchase (shop, id, amount_cents, state) SELECT $1, $2::bigint + n - 1, a, s FROM unnest($3::bigint[], $4::text[]) WITH ORDINALITY AS u (a, s, n)`
	if s.way == wrong {
		insert = `INSERT INTO careless.purchase (id, amount_cents, state) SELECT $2::bigint + n - 1, a, s FROM unnest($3::bigint[], $4::text[]) WITH ORDINALITY AS u (a, s, n) WHERE $1 <> ''`
	}
	if _, err := s.pool.Exec(ctx, insert, s.shop, s.first, amounts, states); err != nil {
		return err
	}
	if s.way == wrong {
		return nil
	}
	var closed []int64
	for n := range s.size() {
		if s.closed(n) {
			closed = append(closed, s.first+int64(n))
		}
	}
	return callback.CloseAll(ctx, s.pool, closed)
}

func (s *storm) ids() []int64 {
	all := make([]int64, s.size())
	for n := range all {
		all[n] = s.first + int64(n)
	}
	return all
}

// close ends the services, the workers and the other systems. It may be called twice.
func (s *storm) close() {
	demo.StopAll(s.fleet())
	s.others.Close()
}

// gather sends a crowd for one order, all at the same moment.
func (s *storm) gather(ctx context.Context, n, size int) []*call {
	calls, start := make([]*call, size), make(chan struct{})
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: size}}
	defer client.CloseIdleConnections()
	var wg sync.WaitGroup
	for i := range calls {
		calls[i] = &call{n: n}
		wg.Go(func() {
			<-start
			s.insist(ctx, client, rand.New(rand.NewPCG(s.Seed, uint64(i))), calls[i])
		})
	}
	close(start)
	wg.Wait()
	return calls
}

// storm sends the callbacks of all other orders, shuffled among their neighbours, so that those of one order meet. Every fifth order gets
// one with another amount too.
func (s *storm) storm(ctx context.Context) []*call {
	const window = 20
	rng := rand.New(rand.NewPCG(s.Seed, 1<<32))
	var all []*call
	for from := len(s.crowds()); from < s.size(); from += window {
		var batch []*call
		for n := from; n < min(from+window, s.size()); n++ {
			for range s.Duplicates {
				batch = append(batch, &call{n: n})
			}
			if n%5 == 0 {
				batch = append(batch, &call{n: n, forged: otherAmount})
			}
		}
		rng.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
		all = append(all, batch...)
	}
	s.send(ctx, all)
	return all
}

// late sends another payment for orders that are paid by now.
func (s *storm) late(ctx context.Context) []*call {
	var all []*call
	for n := range s.size() {
		if n%5 == 1 {
			all = append(all, &call{n: n, forged: otherPayment})
		}
	}
	s.send(ctx, all)
	return all
}

func (s *storm) send(ctx context.Context, calls []*call) {
	next := make(chan *call)
	var wg sync.WaitGroup
	for w := range s.Workers {
		wg.Go(func() {
			client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: serviceProcesses}}
			defer client.CloseIdleConnections()
			rng := rand.New(rand.NewPCG(s.Seed, uint64(w)))
			for c := range next {
				s.insist(ctx, client, rng, c)
				s.answered.Add(1)
			}
		})
	}
	for _, c := range calls {
		next <- c
	}
	close(next)
	wg.Wait()
}

// insist repeats a callback until it has a final answer. For the original a few times only: after its first success it fails for ever.
func (s *storm) insist(ctx context.Context, client *http.Client, rng *rand.Rand, c *call) {
	most := 1000
	if s.way == wrong {
		most = 5
	}
	for n := 0; n < most && ctx.Err() == nil; n++ {
		url, up := s.services[rng.IntN(len(s.services))].State()
		if url == "" {
			select {
			case <-ctx.Done():
			case <-up:
			}
			continue
		}
		if status := s.try(ctx, client, url, c); status != 0 && status != http.StatusServiceUnavailable {
			c.status = status
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(1+rng.IntN(1<<min(n, 6))) * time.Millisecond):
		}
	}
}

// try sends a callback once. Status 0 is no answer.
func (s *storm) try(ctx context.Context, client *http.Client, url string, c *call) int {
	s.attempts.Add(1)
	ask := callback.Callback{Order: s.first + int64(c.n), AmountCents: amountOf(c.n), Transaction: fmt.Sprintf("T%d", s.first+int64(c.n))}
	switch c.forged {
	case otherAmount:
		ask.AmountCents++
	case otherPayment:
		ask.Transaction += "-2"
	}
	body, err := json.Marshal(ask)
	if err != nil {
		return 0
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/callbacks", bytes.NewReader(body))
	if err != nil {
		return 0
	}
	res, err := client.Do(req)
	if err != nil {
		s.lost.Add(1)
		return 0
	}
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	return res.StatusCode
}

// strike kills every service and every worker once, at certain points of the storm, and has jobs delivered again.
func (s *storm) strike(ctx context.Context, total int) error {
	victims := s.fleet()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for s.kills < len(victims) {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		n := int(s.answered.Load())
		if n < (s.kills+1)*total/(len(victims)+1) {
			continue
		}
		p := victims[(s.kills+int(s.Seed%7))%len(victims)]
		p.Kill()
		s.kills++
		down := time.Now()
		if err := p.Start(); err != nil {
			return err
		}
		again, err := s.jobs.Again(ctx, s.kills, 20)
		if err != nil && ctx.Err() == nil {
			return err
		}
		s.again += again
		s.Say("%d of %d callbacks answered: %s killed with SIGKILL, back after %d ms", n, total, p.Name, time.Since(down).Milliseconds())
	}
	return nil
}

// blow sends everything while things break, and waits until every job is done.
func (s *storm) blow(ctx context.Context) ([]*call, error) {
	var all []*call
	for n, size := range s.crowds() {
		from := time.Now()
		all = append(all, s.gather(ctx, n, size)...)
		s.Say("%d callbacks at once for one order: answered in %d ms", size, time.Since(from).Milliseconds())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	broken := make(chan error, 1)
	go func() {
		var err error
		if s.Faults {
			err = s.strike(ctx, s.orders*s.Duplicates)
		}
		if err != nil {
			cancel() // a process did not come back, not everybody will be answered
		}
		broken <- err
	}()
	all = append(all, s.storm(ctx)...)
	if err := <-broken; err != nil {
		return nil, err
	}
	all = append(all, s.late(ctx)...)
	return all, errors.Join(ctx.Err(), demo.Await(ctx, "the jobs", func(ctx context.Context) (int, error) {
		n, err := s.jobs.Open(ctx)
		if err == nil && n > 0 && s.Faults {
			err = s.jobs.Rescue(ctx, 5*patience)
		}
		return n, err
	}))
}
