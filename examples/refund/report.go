package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// payout is a row of money that left.
type payout struct {
	ID          int64
	Purchase    string
	Request     string
	AmountCents int64
}

// books is what the database says after a storm.
type books struct {
	payouts       []payout
	refundedCents int64 // by the purchases
	records       int64 // finished keys
}

func readBooks(ctx context.Context, pool *pgxpool.Pool, merchant string) (books, error) {
	var b books
	rows, _ := pool.Query(ctx, `SELECT id, purchase, request, amount_cents FROM shop.payout WHERE merchant = $1`, merchant)
	var err error
	if b.payouts, err = pgx.CollectRows(rows, pgx.RowToStructByPos[payout]); err != nil {
		return b, err
	}
	err = pool.QueryRow(ctx, `
SELECT (SELECT coalesce(sum(refunded_cents), 0) FROM shop.purchase WHERE merchant = $1),
       (SELECT count(*) FROM pgonce.idem_record WHERE scope = $1 AND op = $2)`,
		merchant, createRefund.Name).Scan(&b.refundedCents, &b.records)
	return b, err
}

// report is the verdict over a storm.
type report struct {
	effects, replays, conflicts, failed int
	faults                              []string // what is wrong; none is a verdict of ok
	paidCents                           int64
}

// judge holds what the clients were told against what the database says.
func (s *storm) judge(answers []answer, b books) report {
	var r report
	wrong := func(format string, args ...any) { r.faults = append(r.faults, fmt.Sprintf(format, args...)) }

	paid := map[string]payout{}
	for _, p := range b.payouts {
		if other, twice := paid[p.Request]; twice {
			wrong("%s was paid twice: payouts %d and %d", p.Request, other.ID, p.ID)
		}
		paid[p.Request] = p
		r.paidCents += p.AmountCents
	}
	r.effects = len(paid)
	executions, successes := map[string]int{}, 0
	for _, a := range answers {
		switch {
		case a.status == http.StatusCreated && !a.forgery:
			successes++
			p, found := paid[a.key]
			if want := (receipt{p.ID, p.Purchase, p.AmountCents}); !found || a.receipt != want {
				wrong("%s was acknowledged as %+v, the books say %+v", a.key, a.receipt, want)
			}
			if !a.replayed {
				executions[a.key]++
			}
		case a.status == http.StatusUnprocessableEntity && a.forgery:
			r.conflicts++
		default:
			r.failed++
			wrong("%s (another amount: %t) ended with status %d", a.key, a.forgery, a.status)
		}
	}
	for key, n := range executions {
		if n > 1 {
			wrong("%s was answered %d times as if executed anew", key, n)
		}
	}
	r.replays = successes - r.effects
	if r.effects != s.refunds || int(b.records) != s.refunds {
		wrong("%d refunds were asked for, %d were paid, %d are recorded", s.refunds, r.effects, b.records)
	}
	if r.paidCents != s.expectedCents() || b.refundedCents != s.expectedCents() {
		wrong("%d cents should have left; %d were paid out, %d taken off the purchases", s.expectedCents(), r.paidCents, b.refundedCents)
	}
	return r
}

func (r report) verdict() string {
	if len(r.faults) == 0 {
		return "ok"
	}
	return "BROKEN"
}

// print shows the storm, what is wrong, and last the line that scripts read.
func (r report) print(w io.Writer, s *storm, f *faults, took time.Duration) {
	t := &s.tally
	rows := [][2]string{
		{"refunds asked for", fmt.Sprintf("%d, each %d times, by %d workers", s.refunds, s.duplicates, s.workers)},
		{"answered", fmt.Sprintf("%d in %.1f s", s.answered.Load(), took.Seconds())},
		{"HTTP attempts", fmt.Sprint(t.attempts.Load())},
		{"  in flight (409)", fmt.Sprint(t.inFlight.Load())},
		{"  unavailable (503)", fmt.Sprint(t.unavailable.Load())},
		{"  broken connections", fmt.Sprint(t.broken.Load())},
		{"service killed (SIGKILL)", fmt.Sprint(f.kills)},
		{"backends terminated", fmt.Sprint(f.terminated)},
		{"", ""},
		{"money that left", fmt.Sprintf("%s in %d payouts", euros(r.paidCents), r.effects)},
		{"money that should have", euros(s.expectedCents())},
		{"repeats that got the first answer", fmt.Sprint(r.replays)},
		{"other amounts refused", fmt.Sprintf("%d of %d", r.conflicts, s.forgeries())},
	}
	const left, right = 35, 38
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
	for i, fault := range r.faults {
		if i == 10 {
			fmt.Fprintf(w, "  ... and %d more\n", len(r.faults)-i)
			break
		}
		fmt.Fprintln(w, "  WRONG:", fault)
	}
	fmt.Fprintf(w, "refund requests=%d effects=%d replays=%d conflicts=%d failed=%d verdict=%s\n",
		r.effects+r.replays+r.conflicts+r.failed, r.effects, r.replays, r.conflicts, r.failed, r.verdict())
}

func euros(cents int64) string { return fmt.Sprintf("%d.%02d EUR", cents/100, cents%100) }
