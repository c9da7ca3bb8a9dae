package main

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// contestants are the ways to make refunds, the right one last.
var contestants = []struct{ way, name string }{
	{"unique", "unique index, sharded by another column"},
	{"select", "select, then insert"},
	{"lock", "lock that lives for ten minutes"},
	{right, "idem.Do, a stable reference, FireTx"},
}

// showTheBug runs the same storm against each way, and counts at the bank.
func showTheBug(ctx context.Context, opt options, g *ground, out io.Writer) error {
	var reports []*report
	for _, c := range contestants {
		fmt.Fprintf(out, "== %s\n", c.name)
		r, err := measure(ctx, opt, g, c.way, out)
		if err != nil {
			return fmt.Errorf("%s: %w", c.way, err)
		}
		reports = append(reports, r)
	}
	fmt.Fprintf(out, "\n%-40s %9s %15s %18s %11s\n", "", "payments", "double payouts", "paid too much", "never paid")
	for i, r := range reports {
		fmt.Fprintf(out, "%-40s %9d %15d %18s %11d\n", contestants[i].name,
			len(r.storm.bank.Payments()), r.ledger.doubles, euros(r.ledger.doubledCents), r.storm.unpaid(r.ledger))
	}
	fmt.Fprintln(out)
	last := len(reports) - 1
	reports[last].print(out)
	var errs []error
	for i, r := range reports[:last] {
		if r.ledger.doubles == 0 {
			errs = append(errs, fmt.Errorf("%s paid nothing twice in this storm, so it shows nothing; try more refunds", contestants[i].way))
		}
	}
	return errors.Join(append(errs, reports[last].err())...)
}
