package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/wechatpay/original"
	"github.com/pgonce/pgonce/examples/wechatpay/wallet"
)

// wrong starts the instances of the original, and its consumer.
func wrong(ctx context.Context, s *storm) error {
	log := demo.Logger(s.Verbose)
	for range instances {
		pool, err := s.Connect(ctx)
		if err != nil {
			return err
		}
		service, err := original.New(pool, wallet.NewPlatform(s.platform.URL(), s.wire.client()), log)
		if err != nil {
			return err
		}
		mux := http.NewServeMux()
		mux.Handle("POST /callbacks", wallet.CallbackHTTP(service, log))
		if err := s.Listen(mux); err != nil {
			return err
		}
	}
	pool, err := s.Connect(ctx)
	if err != nil {
		return err
	}
	queue, err := wallet.NewQueue(pool, &original.Consumer{Pool: pool}, log)
	if err != nil {
		return err
	}
	return s.Work(ctx, queue)
}

// doubles are what the original has done more than once: messages that were put into the queue again for an order, and money
// that was put into a wallet again.
type doubles struct {
	messages, credits int
	cents             int64
}

// runOriginal sends the same gust to the original.
func runOriginal(ctx context.Context, opt options, g *demo.Ground, out io.Writer) (d doubles, err error) {
	s, err := prepare(ctx, opt, g, out, wrong)
	if err != nil {
		return d, err
	}
	defer s.Close()
	if err := errors.Join(s.blow(ctx, s.gust(0, s.Duplicates)), s.settle(ctx)); err != nil {
		return d, err
	}
	s.Close()
	const count = `
SELECT (SELECT coalesce(sum(n - 1), 0) FROM (
            SELECT count(*) n FROM wechatpay_queue.river_job WHERE starts_with(args ->> 'number', $1) GROUP BY args ->> 'number') d),
       coalesce(sum(n - 1), 0), coalesce(sum(cents * (n - 1)), 0)::bigint
FROM (SELECT count(*) n, max(amount_cents) cents FROM wechatpay_original.credit WHERE starts_with(number, $1) GROUP BY number) d`
	return d, g.Pool.QueryRow(ctx, count, s.id).Scan(&d.messages, &d.credits, &d.cents)
}

// showTheBug runs the original and the right way under the same storm, and counts what the original has done twice.
func showTheBug(ctx context.Context, opt options, g *demo.Ground, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	fmt.Fprintln(out, "== the original: a lock in Redis whose life is the longest wait")
	d, err := runOriginal(ctx, opt, g, out)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "The original put %d messages too many into the queue, and money into wallets %d times too often: %s.\n\n",
		d.messages, d.credits, demo.Euros(d.cents))
	fmt.Fprintln(out, "== two machines, one commit, a lock that lives as long as its holder")
	right := storming(ctx, opt, g, out)
	if d.messages == 0 || d.credits == 0 {
		right = errors.Join(right, errors.New("the original did nothing twice in this storm, so it shows nothing; try more orders"))
	}
	return right
}
