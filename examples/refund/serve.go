package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/refund/bank"
	"github.com/pgonce/pgonce/examples/refund/payment"
	"github.com/pgonce/pgonce/examples/refund/wrong"
)

// applicationName is what services and workers are called by the server.
const applicationName = "refund"

// right is the way to make refunds that pays once.
const right = "right"

// serve is a payment service. It runs until standard input closes, so that it cannot outlive
// whoever started it, and prints its address as its first line.
func serve(ctx context.Context, opt options) error {
	pool, err := connect(ctx, opt, 10)
	if err != nil {
		return err
	}
	defer pool.Close()
	logger := demo.Logger(opt.Verbose)
	mux := http.NewServeMux()
	if opt.way == right {
		service, err := payment.NewService(ctx, pool)
		if err != nil {
			return err
		}
		mux.Handle("POST /refunds", payment.AcceptHTTP(service, logger))
		mux.HandleFunc("GET /refunds/{number}", service.StatusHTTP)
	} else {
		refunds, err := wrongWay(opt, pool)
		if err != nil {
			return err
		}
		mux.Handle("POST /refunds", payment.AcceptHTTP(refunds, logger))
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", opt.listen)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		demo.UntilStopped()
		_ = srv.Close()
	}()
	fmt.Printf("http://%s\n", l.Addr())
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// work is a worker: it consumes messages and makes payouts until standard input closes.
func work(ctx context.Context, opt options) error {
	pool, err := connect(ctx, opt, 20)
	if err != nil {
		return err
	}
	defer pool.Close()
	var (
		refunds payment.Refunder
		payouts *payment.Payouts
	)
	if opt.way == right {
		if refunds, err = payment.NewService(ctx, pool); err != nil {
			return err
		}
		payouts, err = payment.NewPayouts(ctx, pool, payment.NewBank(opt.bankURL, payment.Patience))
	} else {
		refunds, err = wrongWay(opt, pool)
	}
	if err != nil {
		return err
	}
	queue, err := payment.NewQueue(pool, refunds, payouts, demo.Logger(opt.Verbose))
	if err != nil {
		return err
	}
	if err := queue.Start(ctx); err != nil {
		return err
	}
	fmt.Println("working")
	demo.UntilStopped()
	return queue.Stop(ctx)
}

func wrongWay(opt options, pool *pgxpool.Pool) (payment.Refunder, error) {
	way, found := wrong.Ways(pool, payment.NewBank(opt.bankURL, payment.Patience))[opt.way]
	if !found {
		return nil, fmt.Errorf("there is no way %q; see --help", opt.way)
	}
	return way, nil
}

func connect(ctx context.Context, opt options, most int32) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(opt.DatabaseURL)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = most
	cfg.ConnConfig.RuntimeParams["application_name"] = applicationName
	return pgxpool.NewWithConfig(ctx, cfg)
}

const toTry = `
The service is at %[1]s, with a purchase of 20.00 EUR. Press Ctrl-C to end it. Try:

  curl -si %[1]s/refunds -H 'X-Merchant: m1' -H 'Idempotency-Key: r1' -d '{"purchase": "p1", "account": "a", "amount_cents": 1250}'
      202 and a receipt; the second time the same receipt, with Idempotent-Replayed: true

  curl -si %[1]s/refunds -H 'X-Merchant: m1' -H 'Idempotency-Key: r1' -d '{"purchase": "p1", "account": "a", "amount_cents": 1251}'
      422: the key was used for another request

  curl -si %[1]s/refunds -H 'X-Merchant: m1' -H 'Idempotency-Key: r2' -d '{"purchase": "p1", "account": "a", "amount_cents": 800}'
      422: more than what is left of the purchase

  curl -si %[1]s/refunds/r1 -H 'X-Merchant: m1'
      its state: requested, and a little later paid, with the bank's serial number
`

// leaveUp runs a service, a worker and a bank that misbehaves, until ctx ends.
func leaveUp(ctx context.Context, opt options, g *ground, out io.Writer) error {
	b, err := bank.Open(bank.Config{Faults: opt.Faults, Seed: opt.Seed, Patience: payment.Patience})
	if err != nil {
		return err
	}
	defer b.Close()
	if _, err := g.pool.Exec(ctx, `INSERT INTO shop.purchase (merchant, id, paid_cents) VALUES ('m1', 'p1', 2000) ON CONFLICT DO NOTHING`); err != nil {
		return err
	}
	f, err := launch(g, right, b.URL(), opt.Verbose)
	if err != nil {
		return err
	}
	defer demo.StopAll(f.all())
	url, _ := f.services[0].State()
	fmt.Fprintf(out, toTry, url)
	<-ctx.Done()
	return nil
}
