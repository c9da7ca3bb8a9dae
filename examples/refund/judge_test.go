package main

import (
	"net/http"
	"strings"
	"testing"

	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/refund/bank"
	"github.com/pgonce/pgonce/examples/refund/payment"
)

// The verdict has to be able to fail: each way to be wrong is told.
func TestJudgeFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	s := &storm{options: options{refunds: 2, Options: demo.Options{Duplicates: 2}}, id: "j"}
	serials := []string{"B1", "B2"}
	entryOf := func(n int) entry {
		return entry{int64(n + 1), s.merchant(n), s.number(n), purchaseOf(n), amountOf(n), payment.Paid, &serials[n]}
	}
	paymentOf := func(n int) bank.Payment {
		return bank.Payment{Order: bank.Order{AmountCents: amountOf(n), Purpose: s.key(n)}, Serial: serials[n]}
	}
	told := func(n int, replayed bool) answer {
		e := entryOf(n)
		return answer{order: order{n: n}, status: http.StatusAccepted, replayed: replayed, receipt: payment.Receipt{RefundID: e.ID, Purchase: e.Purchase, AmountCents: e.AmountCents}}
	}
	sum := amountOf(0) + amountOf(1)
	good := func() ([]answer, books) {
		refusal := answer{order: order{forgery: true}, status: http.StatusUnprocessableEntity}
		return []answer{told(0, false), told(0, true), told(1, true), told(1, true), refusal},
			books{[]bank.Payment{paymentOf(0), paymentOf(1)}, []entry{entryOf(0), entryOf(1)}, 2, 2, sum}
	}
	for name, tc := range map[string]struct {
		spoil func(a []answer, b *books) []answer
		says  string // "" is ok
	}{
		"right": {func(a []answer, _ *books) []answer { return a }, ""},
		"paid twice": {func(a []answer, b *books) []answer {
			b.payments = append(b.payments, paymentOf(0))
			return a
		}, "was paid 2 times by the bank"},
		"not paid": {func(a []answer, b *books) []answer { b.payments = b.payments[:1]; return a }, "was paid 0 times"},
		"twice in the database": {func(a []answer, b *books) []answer {
			b.refunds = append(b.refunds, entryOf(1))
			return a
		}, "is in the database twice"},
		"still open":              {func(a []answer, b *books) []answer { b.refunds[1].State = payment.Requested; return a }, "was paid by the bank under B2"},
		"another serial":          {func(a []answer, b *books) []answer { b.refunds[1].Serial = &serials[0]; return a }, "was paid by the bank under B2"},
		"acknowledged, not there": {func(a []answer, b *books) []answer { b.refunds = b.refunds[1:]; return a }, "was acknowledged as"},
		"another receipt":         {func(a []answer, _ *books) []answer { a[1].receipt.RefundID = 7; return a }, "was acknowledged as"},
		"executed twice, they said": {func(a []answer, _ *books) []answer {
			return append(a, told(0, false))
		}, "as if executed anew"},
		"late, and not a replay": {func(a []answer, _ *books) []answer { a[0].late = true; return a }, "not marked as a replay"},
		"no answer":              {func(a []answer, _ *books) []answer { return append(a, answer{order: order{n: 1}}) }, "ended with status 0"},
		"forgery went through":   {func(a []answer, _ *books) []answer { a[4].status = http.StatusAccepted; return a }, "ended with status 202"},
		"off the books":          {func(a []answer, b *books) []answer { b.refundedCents++; return a }, "cents should have left"},
		"no record":              {func(a []answer, b *books) []answer { b.records = 1; return a }, "1 are recorded"},
	} {
		answers, b := good()
		answers = tc.spoil(answers, &b)
		r := s.judge(answers, b)
		said := strings.Join(r.Wrongs, "\n")
		if (r.Word() == "ok") != (tc.says == "") || !strings.Contains(said, tc.says) {
			t.Errorf("%s: verdict %s: %s", name, r.Word(), said)
		}
	}
}

// A refund that the bank has to refuse is wrong if it was paid, and if the database does not say that it was refused.
func TestJudgeKnowsRefusals(t *testing.T) {
	t.Parallel()
	const n = 13
	if !closed(n) {
		t.Fatal("refund 13 should be refused by the bank")
	}
	s := &storm{options: options{refunds: n + 1}, id: "j"}
	for state, want := range map[payment.State]bool{payment.Refused: true, payment.Paid: false, payment.Requested: false} {
		r := &report{}
		b := books{refunds: []entry{{Merchant: s.merchant(n), Number: s.number(n), State: state}}}
		r.ledger = b.ledger()
		s.judgeBooks(r, b, map[string]entry{s.key(n): b.refunds[0]})
		if complained := strings.Contains(strings.Join(r.Wrongs, "\n"), "was refused by the bank"); complained == want {
			t.Errorf("%s: %v", state, r.Wrongs)
		}
	}
}
