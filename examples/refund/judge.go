package main

import (
	"net/http"
	"time"

	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/refund/payment"
)

// report is the verdict over a storm.
type report struct {
	storm  *storm
	faulty *faults
	took   time.Duration

	demo.Verdict
	ledger        ledger
	refused, late int // by the bank; replays after the rows were aged
}

// judge holds what the clients were told against the database, and the database against the
// bank's ledger.
func (s *storm) judge(answers []answer, b books) *report {
	r := &report{ledger: b.ledger(), Verdict: demo.Verdict{Name: "refund", Effects: b.effects}}
	known := map[string]entry{}
	for _, e := range b.refunds {
		key := e.Merchant + "/" + e.Number
		if _, twice := known[key]; twice {
			r.Wrong("%s is in the database twice", key)
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
				r.Wrong("%s was acknowledged as %+v, the database says %+v", key, a.receipt, want)
			}
			switch {
			case a.late && a.replayed:
				r.late++
			case a.late:
				r.Wrong("%s was asked for again long after, and the answer is not marked as a replay", key)
			case !a.replayed:
				executions[key]++
			}
		case a.status == http.StatusUnprocessableEntity && a.forgery:
			r.Conflicts++
		default:
			r.Failed++
			r.Wrong("%s (message: %t, another amount: %t) ended with status %d", key, a.message, a.forgery, a.status)
		}
	}
	for key, n := range executions {
		if n > 1 {
			r.Wrong("%s was answered %d times as if executed anew", key, n)
		}
	}
	r.Replays = successes - r.Effects
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
			r.Wrong("%s was paid %d times by the bank, want %d", key, len(paid), want)
			continue
		}
		switch {
		case want == 0 && (e.State != payment.Refused || e.Serial != nil):
			r.Wrong("%s was refused by the bank, the database says %q", key, e.State)
		case want == 1 && (e.State != payment.Paid || e.Serial == nil || *e.Serial != paid[0].Serial || e.AmountCents != paid[0].AmountCents):
			r.Wrong("%s was paid by the bank under %s, the database has %+v", key, paid[0].Serial, e)
		}
	}
	if r.Effects != s.refunds || len(known) != s.refunds || b.records != s.refunds {
		r.Wrong("%d refunds were asked for, %d are in the database, %d are recorded", s.refunds, r.Effects, b.records)
	}
	if want := s.expectedCents(); r.ledger.cents != want || b.refundedCents != want {
		r.Wrong("%d cents should have left; %d did, and %d are off the purchases", want, r.ledger.cents, b.refundedCents)
	}
}
