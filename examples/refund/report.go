package main

import (
	"fmt"
	"io"

	"github.com/pgonce/pgonce/examples/internal/demo"
)

// print shows the storm, what is wrong, and last the line that scripts read.
func (r *report) print(w io.Writer) {
	s, f := r.storm, r.faulty
	t := &s.tally
	demo.Table(w, [][2]string{
		{"refunds asked for", fmt.Sprintf("%d by %d workers, in %.1f s", s.refunds, s.Workers, r.took.Seconds())},
		{"HTTP attempts", fmt.Sprint(t.attempts.Load())},
		{"  in flight (409)", fmt.Sprint(t.inFlight.Load())},
		{"  unavailable (503)", fmt.Sprint(t.unavailable.Load())},
		{"  broken connections", fmt.Sprint(t.broken.Load())},
		{"processes killed (SIGKILL)", fmt.Sprintf("%d of %d", f.kills, serviceProcesses+workerProcesses)},
		{"backends terminated", fmt.Sprint(f.terminated)},
		{"jobs delivered again", fmt.Sprint(f.again)},
		{"  and those not done in two seconds", fmt.Sprint(s.jobs.Stuck.Load())},
		{"", ""},
		{"money that left the bank", fmt.Sprintf("%s in %d payments", demo.Euros(r.ledger.cents), len(s.bank.Payments()))},
		{"money that should have", demo.Euros(s.expectedCents())},
		{"double payouts", fmt.Sprint(r.ledger.doubles)},
		{"refused by the bank and given back", fmt.Sprint(r.refused)},
		{"repeats that got the first answer", fmt.Sprint(r.Replays)},
		{"  of them after 30 minutes or 30 days", fmt.Sprint(r.late)},
		{"other amounts refused", fmt.Sprintf("%d of %d", r.Conflicts, 5*s.forgeries())},
	})
	fmt.Fprintf(w, "the bank was %s\n", s.bank.Misbehaved())
	r.Print(w)
}
