package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/pgonce/pgonce/examples/internal/demo"
)

// contestants are the ways to make refunds, the right one last.
var contestants = []struct{ way, name string }{
	{"unique", "unique index, sharded by another column"},
	{"select", "select, then insert"},
	{"lock", "lock that lives for ten minutes"},
	{right, "idem.Do, a stable reference, FireTx"},
}

// compete runs the same storm against each way.
func compete(ctx context.Context, opt options, g *ground, out io.Writer) ([]*report, error) {
	var reports []*report
	for _, c := range contestants {
		fmt.Fprintf(out, "== %s\n", c.name)
		r, err := measure(ctx, opt, g, c.way, out)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.way, err)
		}
		reports = append(reports, r)
	}
	return reports, nil
}

// showTheBug counts, at the bank, what each way has paid twice.
func showTheBug(ctx context.Context, opt options, g *ground, out io.Writer) error {
	reports, err := compete(ctx, opt, g, out)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%-40s %9s %15s %15s %11s\n", "", "payments", "double payouts", "paid too much", "never paid")
	for i, r := range reports {
		fmt.Fprintf(out, "%-40s %9d %15d %15s %11d\n", contestants[i].name,
			len(r.storm.bank.Payments()), r.ledger.doubles, demo.Euros(r.ledger.doubledCents), r.storm.unpaid(r.ledger))
	}
	fmt.Fprintln(out)
	last := len(reports) - 1
	reports[last].print(out)
	errs := []error{reports[last].Err()}
	for i, r := range reports[:last] {
		if r.ledger.doubles == 0 {
			errs = append(errs, fmt.Errorf("%s: nothing was paid twice in this storm, so it shows nothing; try more refunds", contestants[i].way))
		}
	}
	return errors.Join(errs...)
}
