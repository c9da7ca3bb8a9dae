package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/refund/bank"
	"github.com/pgonce/pgonce/examples/refund/payment"
)

// echoes are how much later everything is asked for once more: after the life of every lock, and after
// most memories.
var echoes = []struct {
	name string
	by   time.Duration
}{{"30 minutes", 30 * time.Minute}, {"30 days", 30 * 24 * time.Hour}}

// storming runs the storm against the right way and prints the report.
func storming(ctx context.Context, opt options, g *ground, out io.Writer) error {
	r, err := measure(ctx, opt, g, right, out)
	if err != nil {
		return err
	}
	r.print(out)
	return r.Err()
}

// measure runs a whole storm against one way of making refunds: the gust and its echoes.
func measure(ctx context.Context, opt options, g *ground, way string, out io.Writer) (*report, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	s, err := prepare(ctx, opt, g, way, out)
	if err != nil {
		return nil, err
	}
	defer s.close()
	s.Say("%d refunds, each asked for %d times over HTTP and by message, seed %d", s.refunds, s.Duplicates, s.Seed)
	f := &faults{storm: s, rng: rand.New(rand.NewPCG(s.Seed, 2))}
	all, err := s.blow(ctx, f)
	if err != nil {
		return nil, err
	}
	for _, e := range echoes {
		s.Say("all settled; every row made older by %s, everything asked for again", e.name)
		answers, err := s.again(ctx, e.by)
		if err != nil {
			return nil, err
		}
		all = append(all, answers...)
	}
	took := s.Took()
	s.close() // the bank too: what its slow calls still pay must be in its ledger
	b, err := readBooks(ctx, s)
	if err != nil {
		return nil, err
	}
	r := s.judge(all, b)
	r.storm, r.faulty, r.took = s, f, took
	return r, nil
}

// prepare starts a bank, the services and the workers, and stocks the shop.
func prepare(ctx context.Context, opt options, g *ground, way string, out io.Writer) (s *storm, err error) {
	s = &storm{options: opt, ground: g, id: fmt.Sprintf("%s-%d-%d", way, opt.Seed, time.Now().UnixNano())}
	s.Teller = demo.NewTeller(out)
	s.jobs = &demo.Queue{Pool: g.pool, Schema: payment.QueueSchema, Where: `args ->> 'merchant' = ANY($1)`, Arg: s.merchants()}
	if s.queue, err = payment.NewPublisher(g.pool); err != nil {
		return nil, err
	}
	if s.bank, err = bank.Open(bank.Config{Faults: opt.Faults, Seed: opt.Seed, Patience: payment.Patience}); err != nil {
		return nil, err
	}
	if err = s.stock(ctx); err == nil {
		s.fleet, err = launch(g, way, s.bank.URL(), opt.Verbose)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// close ends the services, the workers and the bank. It may be called twice.
func (s *storm) close() {
	if s.fleet != nil {
		demo.StopAll(s.fleet.all())
	}
	s.bank.Close()
}

// stock creates what the merchants have sold, so that there is something to give back.
func (s *storm) stock(ctx context.Context) error {
	for n := range purchases { // a multiple of merchants
		_, err := s.pool.Exec(ctx, `INSERT INTO shop.purchase (merchant, id, paid_cents) VALUES ($1, $2, $3)`,
			s.merchant(n), purchaseOf(n), int64(s.refunds)*1000)
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *storm) merchants() []string {
	var all []string
	for n := range merchants {
		all = append(all, s.merchant(n))
	}
	return all
}

// blow sends the gust while things break.
func (s *storm) blow(ctx context.Context, f *faults) ([]answer, error) {
	orders := s.gust()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	broken := make(chan error, 1)
	go func() {
		var err error
		if s.Faults {
			err = f.run(ctx, len(orders))
		}
		if err != nil {
			cancel() // a process did not come back, not everybody will be answered
		}
		broken <- err
	}()
	answers, err := s.run(ctx, orders)
	if err != nil {
		cancel()
	}
	if err := errors.Join(<-broken, err); err != nil {
		return nil, err
	}
	return answers, s.settle(ctx)
}

// again makes all rows older and asks for everything once more, by both ways; and the queue
// delivers every payout once more.
func (s *storm) again(ctx context.Context, by time.Duration) ([]answer, error) {
	if err := age(ctx, s.pool, by, s.merchants()); err != nil {
		return nil, err
	}
	if err := s.payAgain(ctx); err != nil {
		return nil, err
	}
	answers, err := s.run(ctx, s.echo())
	if err != nil {
		return nil, err
	}
	for i := range answers {
		answers[i].late = true
	}
	return answers, s.settle(ctx)
}
