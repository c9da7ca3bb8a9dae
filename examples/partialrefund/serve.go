package main

import (
	"context"
	"fmt"
	"io"

	"github.com/pgonce/pgonce/examples/internal/demo"
)

// serve leaves the instances up, with one order.
func serve(ctx context.Context, opt options, g *demo.Ground, out io.Writer) error {
	opt.orders, opt.refunds, opt.Faults = 1, 4, false // 20.00 EUR were paid
	s, err := prepare(ctx, opt, g, out, right)
	if err != nil {
		return err
	}
	defer s.Close()
	fmt.Fprintf(out, `The service is up, with an order for which %[3]d cents were paid. Try, in another shell:

  curl -i %[1]s/orders/%[2]s/refunds -H 'Idempotency-Key: a1' -H 'X-Asked-By: customer' -d '{"amount_cents": 700}'
      202; once more: the same, with Idempotent-Replayed: true; with another amount: 422

  curl -i %[1]s/agreements -d '{"id": "n1", "order": "%[2]s", "amount_cents": 700}'
      202, "joined": true, of the refund a1; nothing is paid for it

  curl -s %[1]s/orders/%[2]s
      one refund of 700, "refunded", agreed to by n1

  curl -i %[4]s/orders/%[2]s/refunds -H 'Idempotency-Key: a2' -H 'X-Asked-By: staff' -d '{"amount_cents": 1500}'
      422, and "left_cents" says how much is left

  curl -i %[1]s/orders/nobody/refunds -H 'Idempotency-Key: a3' -H 'X-Asked-By: staff' -d '{"amount_cents": 1}'
      404

The database is %[5]s
Ctrl-C ends it.
`, s.Crowd.URLs[0], s.order(0), s.paidFor(), s.Crowd.URLs[1], s.URL)
	<-ctx.Done()
	return nil
}
