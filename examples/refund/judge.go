package main

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/pgonce/pgonce/examples/refund/payment"
)

// report is the verdict over a storm.
type report struct {
	storm  *storm
	faulty *faults
	took   time.Duration

	effects, replays, conflicts, failed int
	ledger                              ledger
	refused, late                       int      // by the bank; replays after the rows were aged
	wrongs                              []string // what is wrong; none is a verdict of ok
}

func (r *report) wrong(format string, args ...any) {
	r.wrongs = append(r.wrongs, fmt.Sprintf(format, args...))
}

func (r *report) verdict() string {
	if len(r.wrongs) == 0 {
		return "ok"
	}
	return "BROKEN"
}

func (r *report) err() error {
	if r.verdict() == "ok" {
		return nil
	}
	return errors.New("the books do not agree with what was asked for")
}

// judge holds what the clients were told against the database, and the database against the
// bank's ledger.
func (s *storm) judge(answers []answer, b books) *report {
	r := &report{ledger: b.ledger(), effects: b.effects}
	known := map[string]entry{}
	for _, e := range b.refunds {
		key := e.Merchant + "/" + e.Number
		if _, twice := known[key]; twice {
			r.wrong("%s is in the database twice", key)
		}
		known[key] = e
	}
	s.judgeAnswers(r, answers, known)
	s.judgeBooks(r, b, known)
	return r
}

// judgeAnswers: everybody got the first answer, marked as a replay but for the first; no
// other amount went through.
func (s *storm) judgeAnswers(r *report, answers []answer, known map[string]entry) {
	executions, successes := map[string]int{}, 0
	for _, a := range answers {
		key := s.key(a.n)
		switch {
		case a.status == http.StatusAccepted && !a.forgery:
			successes++
			e, found := known[key]
			if want := (payment.Receipt{RefundID: e.ID, Purchase: e.Purchase, AmountCents: e.AmountCents}); !found || a.receipt != want {
				r.wrong("%s was acknowledged as %+v, the database says %+v", key, a.receipt, want)
			}
			switch {
			case a.late && a.replayed:
				r.late++
			case a.late:
				r.wrong("%s was asked for again long after, and the answer is not marked as a replay", key)
			case !a.replayed:
				executions[key]++
			}
		case a.status == http.StatusUnprocessableEntity && a.forgery:
			r.conflicts++
		default:
			r.failed++
			r.wrong("%s (message: %t, another amount: %t) ended with status %d", key, a.message, a.forgery, a.status)
		}
	}
	for key, n := range executions {
		if n > 1 {
			r.wrong("%s was answered %d times as if executed anew", key, n)
		}
	}
	r.replays = successes - r.effects
}

// judgeBooks: the bank has paid each refund once, unless it refused; and the database says so.
func (s *storm) judgeBooks(r *report, b books, known map[string]entry) {
	for n := range s.refunds {
		key := s.key(n)
		e, paid := known[key], r.ledger.byPurpose[key]
		want := 1
		if closed(n) {
			want = 0
			r.refused++
		}
		if len(paid) != want {
			r.wrong("%s was paid %d times by the bank, want %d", key, len(paid), want)
			continue
		}
		switch {
		case want == 0 && (e.State != payment.Refused || e.Serial != nil):
			r.wrong("%s was refused by the bank, the database says %q", key, e.State)
		case want == 1 && (e.State != payment.Paid || e.Serial == nil || *e.Serial != paid[0].Serial || e.AmountCents != paid[0].AmountCents):
			r.wrong("%s was paid by the bank under %s, the database has %+v", key, paid[0].Serial, e)
		}
	}
	if r.effects != s.refunds || len(known) != s.refunds || b.records != s.refunds {
		r.wrong("%d refunds were asked for, %d are in the database, %d are recorded", s.refunds, r.effects, b.records)
	}
	if want := s.expectedCents(); r.ledger.cents != want || b.refundedCents != want {
		r.wrong("%d cents should have left; %d did, and %d are off the purchases", want, r.ledger.cents, b.refundedCents)
	}
}
