package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
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
	logger := logging(opt)
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
		untilClosed(os.Stdin)
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
	queue, err := payment.NewQueue(pool, refunds, payouts, logging(opt))
	if err != nil {
		return err
	}
	if err := queue.Start(ctx); err != nil {
		return err
	}
	fmt.Println("working")
	untilClosed(os.Stdin)
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
	cfg, err := pgxpool.ParseConfig(opt.databaseURL)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = most
	cfg.ConnConfig.RuntimeParams["application_name"] = applicationName
	return pgxpool.NewWithConfig(ctx, cfg)
}

// logging is silent unless it was asked for: a storm breaks everything all the time. net/http has
// words of its own for a bank that answers twice.
func logging(opt options) *slog.Logger {
	if opt.verbose {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	log.SetOutput(io.Discard)
	return slog.New(slog.DiscardHandler)
}

func untilClosed(r io.Reader) { _, _ = io.Copy(io.Discard, r) }
