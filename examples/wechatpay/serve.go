package main

import (
	"context"
	"fmt"
	"io"

	"github.com/pgonce/pgonce/examples/internal/demo"
)

// serve leaves the instances up, with ten orders: the platform knows of all but number 7 that they are paid.
func serve(ctx context.Context, opt options, g *demo.Ground, out io.Writer) error {
	opt.orders, opt.Faults = 10, false
	s, err := prepare(ctx, opt, g, out, right)
	if err != nil {
		return err
	}
	defer s.Close()
	first, never := s.callback(answer{n: 1}), s.callback(answer{n: 7})
	fmt.Fprintf(out, `The service is up. Try, in another shell:

  curl -i %[1]s/callbacks -d '{"number": "%[2]s", "transaction": "%[3]s", "amount_cents": %[4]d}'
      200 SUCCESS; once more, here or at %[5]s: 200 SUCCESS, and nothing happens

  curl -s %[1]s/orders/%[2]s
      "paid" and "consumed"

  curl -i %[1]s/callbacks -d '{"number": "%[2]s", "transaction": "%[3]s", "amount_cents": 1}'
      422: that is not what was paid

  curl -i %[1]s/callbacks -d '{"number": "%[6]s", "transaction": "%[7]s", "amount_cents": %[8]d}'
      422: the platform does not know of it

  curl -i %[1]s/callbacks -d '{"number": "nobody", "transaction": "t", "amount_cents": 1}'
      404

The database is %[9]s
Ctrl-C ends it.
`, s.Crowd.URLs[0], first.Number, first.Transaction, first.AmountCents, s.Crowd.URLs[1], never.Number, never.Transaction, never.AmountCents, s.URL)
	<-ctx.Done()
	return nil
}
