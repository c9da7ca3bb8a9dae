package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/examples/internal/crowd"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/wechatpay/wallet"
	"github.com/riverqueue/river"
)

// instances is how many of the service there are, each with locks and connections of its own.
const instances = 3

// storm is a platform that calls back again and again.
type storm struct {
	options
	*crowd.Stage
	tell     *demo.Teller
	id       string // tells this storm's orders from those of others in the same database
	platform *platform
	wire     *wire
	queue    *demo.Queue
	locks    lockBook
}

// lockBook is what was told of locks.
type lockBook struct {
	mu       sync.Mutex
	overruns int
	lines    int             // of the log, about overruns
	lost     map[string]bool // orders whose lock was lost
}

func (b *lockBook) observe(e dblock.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e.Kind {
	case dblock.Overrun:
		b.overruns++
	case dblock.Lost:
		b.lost[e.Key.ID] = true
	}
}

// kind is what becomes of a callback that is not true.
type kind int

const (
	honest     kind = iota
	dearer          // another amount than was paid
	unpaid          // of an order that nobody has paid
	unknown         // of an order that there is not
	otherTrade      // under another transaction
)

// answer is what became of one callback.
type answer struct {
	n      int
	kind   kind
	status int // 0 is no answer
}

func (s *storm) number(n int) string { return fmt.Sprintf("%s-%05d", s.id, n) }
func amountOf(n int) int64           { return int64(100 + n%900) }

// neverPaid says that nobody has paid for the n-th order.
func neverPaid(n int) bool { return n%50 == 7 }

func (s *storm) callback(a answer) wallet.Callback {
	c := wallet.Callback{Number: s.number(a.n), Transaction: "T-" + s.number(a.n), AmountCents: amountOf(a.n)}
	switch a.kind {
	case dearer:
		c.AmountCents++
	case unknown:
		c.Number += "-x"
	case otherTrade:
		c.Transaction += "-x"
	case honest, unpaid:
	}
	return c
}

// prepare makes orders, most of which are paid, and starts the platform and whatever serves.
func prepare(ctx context.Context, opt options, g *demo.Ground, out io.Writer, serve func(ctx context.Context, s *storm) error) (s *storm, err error) {
	s = &storm{
		options: opt, tell: demo.NewTeller(out), wire: newWire(), locks: lockBook{lost: map[string]bool{}},
		id: fmt.Sprintf("w%d-%d", opt.Seed, time.Now().UnixNano()),
	}
	s.Stage = &crowd.Stage{Ground: g, Name: "wechatpay", Crowd: &crowd.Crowd{Workers: opt.Workers, Seed: opt.Seed}}
	s.Crowd.Progress = func(asked, of int) { s.tell.Say("%d of %d callbacks answered", asked, of) }
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.platform, err = openPlatform(opt.Seed, opt.Faults); err != nil {
		return s, err
	}
	s.AtEnd(s.platform.Close)
	s.AtEnd(s.wire.RoundTripper.(*http.Transport).CloseIdleConnections)
	var numbers []string
	var amounts []int64
	for n := range opt.orders {
		if !neverPaid(n) {
			s.platform.pay(s.callback(answer{n: n}))
		}
		numbers, amounts = append(numbers, s.number(n)), append(amounts, amountOf(n))
	}
	for _, table := range []string{"wechatpay", "wechatpay_original"} {
		_, err := g.Pool.Exec(ctx, `INSERT INTO `+table+`.wallet_order (number, wallet, amount_cents)
			SELECT number, 'wallet of ' || number, cents FROM unnest($1::text[], $2::bigint[]) o (number, cents)`, numbers, amounts)
		if err != nil {
			return s, err
		}
	}
	s.queue = &demo.Queue{Pool: g.Pool, Schema: wallet.QueueSchema, Where: `starts_with(args ->> 'number', $1)`, Arg: s.id}
	if opt.Faults {
		s.Faults = &crowd.Faults{Pool: g.Pool, Names: []string{s.Name, "pgonce:%"}, Queue: s.queue, Rng: rand.New(rand.NewPCG(opt.Seed, 2))}
	}
	return s, serve(ctx, s)
}

// right starts the instances that do it right, and the consumers.
func right(ctx context.Context, s *storm) error {
	log := demo.Logger(s.Verbose)
	for range instances {
		pool, err := s.Connect(ctx)
		if err != nil {
			return err
		}
		service, err := wallet.NewService(ctx, pool, wallet.NewPlatform(s.platform.URL(), s.wire.client()), wallet.Config{
			MaxWait: 2 * time.Second, Expect: expect, Observe: s.locks.observe, Logger: slog.New(&lineCounter{log.Handler(), &s.locks}),
		})
		if err != nil {
			return err
		}
		s.AtEnd(func() { _ = service.Close(context.WithoutCancel(ctx)) })
		mux := http.NewServeMux()
		mux.Handle("POST /callbacks", wallet.CallbackHTTP(service, log))
		mux.HandleFunc("GET /orders/{number}", service.OrderHTTP)
		if err := s.Listen(mux); err != nil {
			return err
		}
	}
	for range 2 {
		pool, err := s.Connect(ctx)
		if err != nil {
			return err
		}
		consumer, err := wallet.NewConsumer(ctx, pool)
		if err != nil {
			return err
		}
		queue, err := wallet.NewQueue(pool, consumer, log)
		if err != nil {
			return err
		}
		if err := s.Work(ctx, queue); err != nil {
			return err
		}
	}
	return nil
}

// gust is every callback, so many times, the repeats of some orders shuffled together, so that they meet; with some that are
// not true.
func (s *storm) gust(round uint64, duplicates int) []answer {
	const together = 10 // orders
	rng := rand.New(rand.NewPCG(s.Seed, round<<32))
	var all []answer
	for from := 0; from < s.orders; from += together {
		var batch []answer
		for n := from; n < min(from+together, s.orders); n++ {
			a := answer{n: n}
			if neverPaid(n) {
				a.kind = unpaid
			}
			for range duplicates {
				batch = append(batch, a)
			}
			if lie := kind(n % 25); lie == dearer || lie == unknown || lie == otherTrade {
				batch = append(batch, answer{n: n, kind: lie})
			}
		}
		rng.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
		all = append(all, batch...)
	}
	return all
}

// blow sends a gust, while things break.
func (s *storm) blow(ctx context.Context, all []answer) error {
	return s.Blow(ctx, len(all), func(i int, url string) (*http.Request, error) {
		body, err := json.Marshal(s.callback(all[i]))
		if err != nil {
			return nil, err
		}
		return http.NewRequest(http.MethodPost, url+"/callbacks", bytes.NewReader(body))
	}, func(i int, a crowd.Answer) { all[i].status = a.Status })
}

// settle waits until every message is consumed.
func (s *storm) settle(ctx context.Context) error {
	return demo.Await(ctx, "the messages", func(ctx context.Context) (int, error) {
		if err := s.queue.Rescue(ctx, 2*time.Second); err != nil {
			return 0, err
		}
		return s.queue.Open(ctx)
	})
}

// again makes every row older, and everything comes once more: each callback and each message.
func (s *storm) again(ctx context.Context) ([]answer, error) {
	const d = 30 * time.Minute
	err := demo.Age(ctx, s.Pool, d,
		demo.Aged{Schema: "wechatpay", Where: `starts_with(number, $2)`, Arg: s.id},
		demo.Aged{Schema: "pgonce", Table: "transition", Where: `machine LIKE 'wallet %' AND starts_with(entity, $2)`, Arg: s.id})
	if err != nil {
		return nil, err
	}
	s.tell.Say("every row made older by %v; every callback and every message once more", d)
	jobs, err := wallet.NewPublisher(s.Pool, demo.Logger(s.Verbose))
	if err != nil {
		return nil, err
	}
	var params []river.InsertManyParams
	for n := range s.orders {
		if !neverPaid(n) {
			params = append(params, river.InsertManyParams{Args: wallet.Message{Number: s.number(n)}})
		}
	}
	if _, err := jobs.InsertManyFast(ctx, params); err != nil {
		return nil, err
	}
	all := s.gust(1, 1)
	return all, errors.Join(s.blow(ctx, all), s.settle(ctx))
}

// lineCounter counts the lines about overruns on their way to the log.
type lineCounter struct {
	slog.Handler
	book *lockBook
}

// Enabled lets everything through to be counted.
func (*lineCounter) Enabled(context.Context, slog.Level) bool { return true }

// Handle counts.
func (c *lineCounter) Handle(ctx context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "longer than expected") {
		c.book.mu.Lock()
		c.book.lines++
		c.book.mu.Unlock()
	}
	if !c.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return c.Handler.Handle(ctx, r)
}
