package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/partialrefund/original"
	"github.com/pgonce/pgonce/examples/partialrefund/refunds"
)

// wrong starts the instances of the original.
func wrong(ctx context.Context, s *storm) error {
	for range instances {
		pool, err := s.Connect(ctx)
		if err != nil {
			return err
		}
		service := original.New(pool, refunds.NewBank(s.bank.URL(), patience))
		if err := s.Listen(refunds.Routes(service, demo.Logger(s.Verbose))); err != nil {
			return err
		}
	}
	return nil
}

// doubles are what was paid too often.
type doubles struct {
	payments int   // of an apply id after its first
	cents    int64 // of those
	beyond   int64 // cents that left beyond what was paid for the orders
}

func (s *storm) doubles() (d doubles) {
	seen, left := map[string]bool{}, map[string]int64{}
	for _, p := range s.bank.ledger() {
		if seen[p.Purpose] {
			d.payments++
			d.cents += p.AmountCents
		}
		seen[p.Purpose] = true
		left[p.Account] += p.AmountCents // an account for each order
	}
	for _, cents := range left {
		d.beyond += max(0, cents-s.paidFor())
	}
	return d
}

// runOriginal sends the same gust to the original.
func runOriginal(ctx context.Context, opt options, g *demo.Ground, out io.Writer) (d doubles, err error) {
	s, err := prepare(ctx, opt, g, out, wrong)
	if err != nil {
		return d, err
	}
	defer s.Close()
	if err := s.blow(ctx, s.gust(0, s.Duplicates, false)); err != nil {
		return d, err
	}
	s.Close()
	return s.doubles(), nil
}

// showTheBug runs the original and the right way under the same storm, and counts what the original has paid twice.
func showTheBug(ctx context.Context, opt options, g *demo.Ground, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	fmt.Fprintln(out, "== the original: a lock in Redis with the wrong key, which is never released")
	d, err := runOriginal(ctx, opt, g, out)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "The original paid %d times again for an apply id, %s, and %s more than was paid for the orders.\n\n",
		d.payments, demo.Euros(d.cents), demo.Euros(d.beyond))
	fmt.Fprintln(out, "== idem.Do, a conditional UPDATE, a CHECK, and row locks for agreements")
	right := storming(ctx, opt, g, out)
	if d.payments == 0 {
		right = errors.Join(right, errors.New("the original did nothing twice in this storm, so it shows nothing; try more orders"))
	}
	return right
}
