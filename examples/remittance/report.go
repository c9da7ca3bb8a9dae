package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/remittance/remit"
)

// storming runs the storm against the right way and prints the report.
func storming(ctx context.Context, opt options, g *ground, out io.Writer) error {
	r, err := measure(ctx, opt, g, right, out)
	if err != nil {
		return err
	}
	r.print(out)
	return r.Err()
}

// measure runs a whole storm.
func measure(ctx context.Context, opt options, g *ground, way string, out io.Writer) (*report, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	s, err := prepare(ctx, opt, g, way, out)
	if err != nil {
		return nil, err
	}
	defer s.close()
	s.Say("%d remittances, each message delivered %d times to %d workers, seed %d", s.messages, s.Duplicates, s.Workers, s.Seed)
	for range s.messages / 100 { // half of what people want to stop, before it begins; the rest when it may be too late
		if way == right {
			err = errors.Join(err, s.stop(ctx))
		}
	}
	if err := errors.Join(err, s.publish(ctx)); err != nil {
		return nil, err
	}
	if err := s.settle(ctx); err != nil {
		return nil, err
	}
	took := s.Took()
	s.close() // the bank too: what its slow calls still pay must be in its ledger
	var r *report
	if way == wrong {
		r, err = s.judgeOriginal(ctx)
	} else {
		var b books
		if b, err = readBooks(ctx, s); err == nil {
			r = s.judge(b)
		}
	}
	if err != nil {
		return nil, err
	}
	r.took = took
	return r, nil
}

// print shows the storm, what is wrong, and last the line that scripts read.
func (r *report) print(w io.Writer) {
	s := r.storm
	demo.Table(w, [][2]string{
		{"messages", fmt.Sprintf("%d to %d workers, in %.1f s", s.total, s.Workers, r.took.Seconds())},
		{"workers killed (SIGKILL)", fmt.Sprintf("%d of %d", s.faulty.kills, s.Workers)},
		{"jobs delivered again", fmt.Sprint(s.faulty.again)},
		{"  and those taken from the dead", fmt.Sprint(s.jobs.Stuck.Load())},
		{"resets by an operator", fmt.Sprint(s.renewals)},
		{"decisions by a person", fmt.Sprint(s.decisions)},
		{"calls refused after an enquiry", fmt.Sprint(s.bank.Blocked())},
		{"", ""},
		{"money that left the bank", fmt.Sprintf("%s in %d payments", demo.Euros(r.paid), r.payments)},
		{"  and came back", demo.Euros(r.back)},
		{"payments of a sending after its first", fmt.Sprint(r.doubles)},
		{"paid, failed, bounced", fmt.Sprintf("%d, %d, %d", r.flags[remit.Paid], r.flags[remit.Failed], r.flags[remit.Bounced])},
		{"cancelled, blocked", fmt.Sprintf("%d, %d", r.flags[remit.Cancel], r.flags[remit.Illegal])},
		{"unknown, or still at the bank", fmt.Sprint(r.flags[remit.Unknown] + r.flags[remit.AtBank])},
	})
	fmt.Fprintf(w, "the bank was %s\n", s.bank.Misbehaved())
	r.Print(w)
}

// judgeOriginal counts what the original does: its consumers answer everything with success.
func (s *storm) judgeOriginal(ctx context.Context) (*report, error) {
	r := &report{Verdict: demo.Verdict{Name: "original"}, storm: s}
	paid := map[string]int{}
	for _, e := range s.bank.Entries() {
		if e.Back {
			continue
		}
		r.payments++
		r.paid += e.AmountCents
		if paid[e.Purpose]++; paid[e.Purpose] > 1 {
			r.doubles++
			r.back += e.AmountCents // too much
		}
	}
	rows, err := s.pool.Query(ctx, `SELECT id, flag FROM original.remittance WHERE id LIKE $1`, s.jobs.Arg)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		var flag remit.Flag
		if err := rows.Scan(&id, &flag); err != nil {
			return nil, err
		}
		switch n := paid[id+"/1"]; {
		case n > 0 && flag != remit.Paid:
			r.stranded++
		case n == 0 && flag != remit.Failed:
			r.unpaid++
		}
	}
	return r, rows.Err()
}

// showTheBug runs the original and then the right way, and compares.
func showTheBug(ctx context.Context, opt options, g *ground, out io.Writer) error {
	fmt.Fprintln(out, "== the original: read, lock, send, blind update, acknowledge")
	bad, err := measure(ctx, opt, g, wrong, out)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "== RunSteps, AtMostOnce with an enquiry, a machine")
	good, err := measure(ctx, opt, g, right, out)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%-44s %9s %15s %15s %19s %11s\n", "", "payments", "double payments", "paid too much", "paid, not marked so", "never sent")
	fmt.Fprintf(out, "%-44s %9d %15d %15s %19d %11d\n", "original", bad.payments, bad.doubles, demo.Euros(bad.back), bad.stranded, bad.unpaid)
	fmt.Fprintf(out, "%-44s %9d %15d %15s %19d %11d\n\n", "RunSteps, AtMostOnce with an enquiry, FireTx", good.payments, good.doubles, demo.Euros(0), 0, 0)
	good.print(out)
	if bad.doubles == 0 {
		err = errors.New("the original has paid nothing twice in this storm, so it shows nothing; try more messages")
	}
	return errors.Join(good.Err(), err)
}
