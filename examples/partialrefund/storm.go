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
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/pgonce/pgonce/examples/internal/crowd"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/partialrefund/refunds"
	"github.com/riverqueue/river"
)

// instances is how many of the service there are, each with connections of its own.
const instances = 3

// storm is a crowd that asks for refunds.
type storm struct {
	options
	*crowd.Stage
	tell  *demo.Teller
	id    string // tells this storm's orders from those of others in the same database
	bank  *refundService
	queue *demo.Queue
	acked []atomic.Bool // by order and refund: it was accepted
	asked []first
}

// first is closed when a request has its first answer.
type first struct {
	once sync.Once
	done chan struct{}
}

// kind is what somebody asks for.
type kind int

const (
	apply       kind = iota // a refund
	agree                   // the seller's agreement to it
	agreeAlone              // an agreement to what nobody has asked for
	otherAmount             // a refund under a known id, of a cent more
	noOrder                 // a refund of an order that there is not
)

// answer is what became of one request.
type answer struct {
	kind     kind
	order, n int
	echo     bool
	skipped  bool // it was not sent: there was no refund to agree to
	status   int  // 0 is no answer
	replayed bool
	receipt  refunds.Receipt
	left     int64
}

func (s *storm) order(n int) string          { return fmt.Sprintf("%s-%03d", s.id, n) }
func (s *storm) applyID(order, n int) string { return fmt.Sprintf("%s/%02d", s.order(order), n) }

// amountOf repeats itself, so that an agreement could be about several refunds of an order.
func amountOf(n int) int64 { return []int64{500, 700, 700, 1100}[n%4] }

// aloneOf is an amount that nobody asks for.
func aloneOf(n int) int64 { return int64(20 + n%5) }

// paidFor is less than is asked back, so some are refused.
func (s *storm) paidFor() (sum int64) {
	for n := range s.refunds {
		sum += amountOf(n)
	}
	return sum * 2 / 3
}

// closed says that the refund service refuses to pay for an order. What was taken off it for that is given back.
func closed(order int) bool { return order%10 == 7 }

// agreed says that the seller agrees to a refund: every second one.
func agreed(n int) bool { return n%2 == 0 }

// prepare makes orders, and starts the refund service and whatever serves.
func prepare(ctx context.Context, opt options, g *demo.Ground, out io.Writer, serve func(ctx context.Context, s *storm) error) (s *storm, err error) {
	s = &storm{options: opt, tell: demo.NewTeller(out), id: fmt.Sprintf("p%d-%d", opt.Seed, time.Now().UnixNano())}
	s.acked, s.asked = make([]atomic.Bool, opt.orders*opt.refunds), make([]first, opt.orders*opt.refunds)
	for i := range s.asked {
		s.asked[i].done = make(chan struct{})
	}
	s.Stage = &crowd.Stage{Ground: g, Name: "partialrefund", Crowd: &crowd.Crowd{Workers: opt.Workers, Seed: opt.Seed}}
	s.Crowd.Progress = func(asked, of int) { s.tell.Say("%d of %d requests answered", asked, of) }
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.bank, err = openRefundService(opt.Seed, opt.Faults); err != nil {
		return s, err
	}
	s.AtEnd(s.bank.Close)
	for n := range opt.orders {
		account := fmt.Sprintf("account-%d", n)
		if closed(n) {
			account = closedAccount + account
		}
		for _, schema := range []string{"partialrefund", "partialrefund_original"} {
			_, err := g.Pool.Exec(ctx, `INSERT INTO `+schema+`.shop_order (id, account, paid_cents) VALUES ($1, $2, $3)`, s.order(n), account, s.paidFor())
			if err != nil {
				return s, err
			}
		}
	}
	s.queue = &demo.Queue{
		Pool: g.Pool, Schema: refunds.QueueSchema, Arg: s.id,
		Where: `(starts_with(args ->> 'order', $1) OR starts_with(args ->> 'apply_id', $1) OR starts_with(args ->> 'apply_id', 'agree-' || $1))`,
	}
	if opt.Faults {
		s.Faults = &crowd.Faults{Pool: g.Pool, Names: []string{s.Name, "pgonce:%"}, Queue: s.queue, Rng: rand.New(rand.NewPCG(opt.Seed, 2))}
	}
	return s, serve(ctx, s)
}

// right starts the instances that do it right, and a worker with each.
func right(ctx context.Context, s *storm) error {
	log := demo.Logger(s.Verbose)
	for range instances {
		db, err := s.ConnectSQL()
		if err != nil {
			return err
		}
		service, err := refunds.NewService(ctx, sqlx.NewDb(db, "pgx"), log)
		if err != nil {
			return err
		}
		s.AtEnd(func() { _ = service.Close(context.WithoutCancel(ctx)) })
		mux := refunds.Routes(service, log)
		mux.HandleFunc("GET /orders/{order}", service.StatusHTTP)
		if err := s.Listen(mux); err != nil {
			return err
		}
		pool, err := s.Connect(ctx)
		if err != nil {
			return err
		}
		queue, err := refunds.NewQueue(pool, service, refunds.NewPayouts(service, refunds.NewBank(s.bank.URL(), patience)), log)
		if err != nil {
			return err
		}
		if err := s.Work(ctx, queue); err != nil {
			return err
		}
	}
	return nil
}

// gust is everything, so many times, shuffled for some orders together, so that repeats meet. An agreement comes when its refund has
// been asked for.
func (s *storm) gust(round uint64, duplicates int, echo bool) (all []answer) {
	const together = 2 // orders
	rng := rand.New(rand.NewPCG(s.Seed, round<<32))
	for from := 0; from < s.orders; from += together {
		var first, then []answer
		for order := from; order < min(from+together, s.orders); order++ {
			for n := range s.refunds {
				first = append(first, slices.Repeat([]answer{{kind: apply, order: order, n: n, echo: echo}}, duplicates)...)
				if agreed(n) {
					then = append(then, slices.Repeat([]answer{{kind: agree, order: order, n: n, echo: echo}}, duplicates)...)
				}
			}
			first = append(first, slices.Repeat([]answer{{kind: agreeAlone, order: order, echo: echo}}, duplicates)...)
			first = append(first, answer{kind: noOrder, order: order, echo: echo})
			then = append(then, answer{kind: otherAmount, order: order, echo: echo})
		}
		for _, batch := range [][]answer{first, then} {
			rng.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
			all = append(all, batch...)
		}
	}
	return all
}

func (s *storm) index(a answer) int { return a.order*s.refunds + a.n }

// agreement is what the seller says about a refund, or alone.
func (s *storm) agreement(a answer) refunds.Request {
	if a.kind == agreeAlone {
		return refunds.Request{ID: s.order(a.order) + "/alone", Order: s.order(a.order), AmountCents: aloneOf(a.order)}
	}
	return refunds.Request{ID: s.applyID(a.order, a.n) + "/agreed", Order: s.order(a.order), AmountCents: amountOf(a.n)}
}

var errSkipped = errors.New("there is no refund to agree to")

// request makes the HTTP request of one of the gust. What is about a refund waits until that has its answer.
func (s *storm) request(ctx context.Context, a *answer, url string) (*http.Request, error) {
	if a.kind == agree || a.kind == otherAmount {
		select {
		case <-s.asked[s.index(*a)].done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if !s.acked[s.index(*a)].Load() {
			a.skipped = true
			return nil, errSkipped
		}
	}
	var body any
	switch a.kind {
	case agree, agreeAlone:
		body, url = s.agreement(*a), url+"/agreements"
	case apply:
		body, url = map[string]int64{"amount_cents": amountOf(a.n)}, url+"/orders/"+s.order(a.order)+"/refunds"
	case otherAmount:
		body, url = map[string]int64{"amount_cents": amountOf(a.n) + 1}, url+"/orders/"+s.order(a.order)+"/refunds"
	case noOrder:
		body, url = map[string]int64{"amount_cents": 1}, url+"/orders/"+s.order(a.order)+"-x/refunds"
	}
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(data))
	if err == nil {
		req.Header.Set("Idempotency-Key", s.applyID(a.order, a.n))
		req.Header.Set("X-Asked-By", []string{"customer", "staff"}[rand.IntN(2)])
		if a.kind == noOrder {
			req.Header.Set("Idempotency-Key", s.order(a.order)+"-x")
		}
	}
	return req, err
}

func (s *storm) told(a *answer, told crowd.Answer) {
	a.status, a.replayed = told.Status, told.Header.Get("Idempotent-Replayed") == "true"
	var body struct {
		refunds.Receipt
		Left *int64 `json:"left_cents"`
	}
	if a.status != 0 && json.Unmarshal(told.Body, &body) != nil {
		a.status = 0
	}
	a.receipt, a.left = body.Receipt, -1
	if body.Left != nil {
		a.left = *body.Left
	}
	if a.kind != apply || a.echo {
		return
	}
	i := s.index(*a)
	if a.status == http.StatusAccepted {
		s.acked[i].Store(true)
	}
	s.asked[i].once.Do(func() { close(s.asked[i].done) })
}

// blow sends a gust, while things break.
func (s *storm) blow(ctx context.Context, all []answer) error {
	return s.Blow(ctx, len(all), func(i int, url string) (*http.Request, error) { return s.request(ctx, &all[i], url) },
		func(i int, a crowd.Answer) { s.told(&all[i], a) })
}

// settle waits until the refund service's word about every refund is in the database.
func (s *storm) settle(ctx context.Context) error {
	return demo.Await(ctx, "the queue", func(ctx context.Context) (int, error) {
		if err := s.queue.Rescue(ctx, 2*time.Second); err != nil {
			return 0, err
		}
		return s.queue.Open(ctx)
	})
}

// notify puts every agreement that was sent by HTTP into the queue too, as a broker does that has lost its memory.
func (s *storm) notify(ctx context.Context, answers []answer) error {
	jobs, err := refunds.NewPublisher(s.Pool, demo.Logger(s.Verbose))
	if err != nil {
		return err
	}
	var params []river.InsertManyParams
	for _, a := range answers {
		if (a.kind == agree || a.kind == agreeAlone) && a.status == http.StatusAccepted {
			params = append(params, river.InsertManyParams{Args: refunds.Notification{Request: s.agreement(a)}})
		}
	}
	_, err = jobs.InsertManyFast(ctx, params)
	return err
}

// again makes every row older and asks for everything once more.
func (s *storm) again(ctx context.Context, before []answer) ([]answer, error) {
	err := demo.Age(ctx, s.Pool, 30*24*time.Hour,
		demo.Aged{Schema: "partialrefund", Where: `starts_with(order_id, $2)`, Arg: s.id},
		demo.Aged{Schema: "pgonce", Table: "idem_record", Where: `scope = 'shop' AND op LIKE 'partialrefund.%' AND starts_with(id, $2)`, Arg: s.id},
		demo.Aged{Schema: "pgonce", Table: "transition", Where: `machine = 'partial refund' AND (starts_with(entity, $2) OR starts_with(entity, 'agree-' || $2))`, Arg: s.id})
	if err != nil {
		return nil, err
	}
	s.tell.Say("every row made 30 days older; everything is asked for once more, agreements by message too")
	if err := s.notify(ctx, before); err != nil {
		return nil, err
	}
	all := s.gust(1, 1, true)
	return all, errors.Join(s.blow(ctx, all), s.settle(ctx))
}
