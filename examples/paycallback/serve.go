package main

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/pgonce/pgonce/examples/paycallback/callback"
)

const toTry = `
The service is at %[1]s, with orders %[2]d and %[3]d of 12.50 EUR, of which %[3]d is closed. Press Ctrl-C to end it. Try:

  curl -si %[1]s/callbacks -d '{"order": %[2]d, "amount_cents": 1250, "transaction": "T%[2]d"}'
      200 success: it is paid, and three jobs are in the queue; the second time the same, and nothing happens
  for i in $(seq 20); do curl -s %[1]s/callbacks -d '{"order": %[2]d, "amount_cents": 1250, "transaction": "T%[2]d"}' & done; wait
      twenty times success
  curl -si %[1]s/callbacks -d '{"order": %[2]d, "amount_cents": 1251, "transaction": "T%[2]d"}'
      422: another amount; so is another transaction
  curl -si %[1]s/callbacks -d '{"order": %[3]d, "amount_cents": 1250, "transaction": "T%[3]d"}'
      409: the order is closed

What the mailer, the push service and the dispatcher are told is shown here, once for each:
`

// leaveUp runs services, workers and other systems that misbehave, until ctx ends.
func leaveUp(ctx context.Context, opt options, g *ground, out io.Writer) error {
	opt.orders = 0
	s, err := prepare(ctx, opt, g, right, out)
	if err != nil {
		return err
	}
	defer s.close()
	if _, err := g.pool.Exec(ctx, `UPDATE orders.purchase SET amount_cents = 1250 WHERE shop = $1`, s.shop); err != nil {
		return err
	}
	if err := callback.CloseAll(ctx, g.pool, []int64{s.first + 1}); err != nil {
		return err
	}
	url, _ := s.services[0].State()
	fmt.Fprintf(out, toTry, url, s.first, s.first+1)
	var mu sync.Mutex
	s.others.listen(func(what string, t callback.Told) {
		mu.Lock()
		defer mu.Unlock()
		s.Say("%s: order %d", what, t.Order)
	})
	<-ctx.Done()
	return nil
}
