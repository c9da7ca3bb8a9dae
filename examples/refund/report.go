package main

import (
	"fmt"
	"io"
	"strings"
)

// print shows the storm, what is wrong, and last the line that scripts read.
func (r *report) print(w io.Writer) {
	s, f := r.storm, r.faulty
	t := &s.tally
	table(w, [][2]string{
		{"refunds asked for", fmt.Sprintf("%d by %d workers, in %.1f s", s.refunds, s.workers, r.took.Seconds())},
		{"HTTP attempts", fmt.Sprint(t.attempts.Load())},
		{"  in flight (409)", fmt.Sprint(t.inFlight.Load())},
		{"  unavailable (503)", fmt.Sprint(t.unavailable.Load())},
		{"  broken connections", fmt.Sprint(t.broken.Load())},
		{"processes killed (SIGKILL)", fmt.Sprintf("%d of %d", f.kills, serviceProcesses+workerProcesses)},
		{"backends terminated", fmt.Sprint(f.terminated)},
		{"jobs delivered again", fmt.Sprint(f.again)},
		{"  and those not done in two seconds", fmt.Sprint(s.stuck.Load())},
		{"", ""},
		{"money that left the bank", fmt.Sprintf("%s in %d payments", euros(r.ledger.cents), len(s.bank.Payments()))},
		{"money that should have", euros(s.expectedCents())},
		{"double payouts", fmt.Sprint(r.ledger.doubles)},
		{"refused by the bank and given back", fmt.Sprint(r.refused)},
		{"repeats that got the first answer", fmt.Sprint(r.replays)},
		{"  of them after 30 minutes or 30 days", fmt.Sprint(r.late)},
		{"other amounts refused", fmt.Sprintf("%d of %d", r.conflicts, 5*s.forgeries())},
	})
	fmt.Fprintf(w, "the bank was %s\n", s.bank.Misbehaved())
	for i, what := range r.wrongs {
		if i == 10 {
			fmt.Fprintf(w, "  ... and %d more\n", len(r.wrongs)-i)
			break
		}
		fmt.Fprintln(w, "  WRONG:", what)
	}
	fmt.Fprintf(w, "refund requests=%d effects=%d replays=%d conflicts=%d failed=%d verdict=%s\n",
		r.effects+r.replays+r.conflicts+r.failed, r.effects, r.replays, r.conflicts, r.failed, r.verdict())
}

// table draws rows of two columns in a frame; an empty row is a line.
func table(w io.Writer, rows [][2]string) {
	const left, right = 37, 38
	line := func(a, mid, z string) {
		fmt.Fprintln(w, a+strings.Repeat("─", left+2)+mid+strings.Repeat("─", right+2)+z)
	}
	line("┌", "┬", "┐")
	for _, row := range rows {
		if row[0] == "" {
			line("├", "┼", "┤")
			continue
		}
		fmt.Fprintf(w, "│ %-*s │ %-*s │\n", left, row[0], right, row[1])
	}
	line("└", "┴", "┘")
}

func euros(cents int64) string { return fmt.Sprintf("%d.%02d EUR", cents/100, cents%100) }
