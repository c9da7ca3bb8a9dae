package main

import (
	"net/http"
	"strings"
	"testing"

	"github.com/pgonce/pgonce/examples/partialrefund/refunds"
)

// The verdict has to be able to fail: each way to be wrong is told.
func TestJudgeFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	s := &storm{options: options{orders: 1, refunds: 3}, id: "j"} // 1900 are asked for, 1266 were paid
	serials := []string{"S1", "S2"}
	good := func() ([]answer, books) {
		var b books
		b.orders, b.effects = map[string]int64{s.order(0): 1200}, 2
		var answers []answer
		for n := range 2 {
			id := s.applyID(0, n)
			b.refunds = append(b.refunds, entry{id, s.order(0), refunds.Customer, amountOf(n), refunds.Refunded, &serials[n], nil})
			b.payments = append(b.payments, payment{refunds.Transfer{Reference: id, AmountCents: amountOf(n)}, serials[n]})
			r := refunds.Receipt{ApplyID: id, Order: s.order(0), AmountCents: amountOf(n), Kind: refunds.Customer}
			answers = append(answers, answer{n: n, status: http.StatusAccepted, receipt: r})
		}
		agreement := s.agreement(answer{kind: agree}).ID
		b.refunds[0].Agreement = &agreement
		joined := answer{kind: agree, status: http.StatusAccepted, receipt: answers[0].receipt}
		joined.receipt.Joined = true
		return append(answers, joined, answer{n: 2, status: http.StatusUnprocessableEntity, left: 66}), b
	}
	for name, tc := range map[string]struct {
		spoil func(a []answer, b *books) []answer
		says  string // "" is ok
	}{
		"right":        {func(a []answer, _ *books) []answer { return a }, ""},
		"skipped":      {func(a []answer, _ *books) []answer { return append(a, answer{kind: agree, skipped: true}) }, ""},
		"paid twice":   {func(a []answer, b *books) []answer { b.payments = append(b.payments, b.payments[0]); return a }, "was paid 2 times"},
		"not paid":     {func(a []answer, b *books) []answer { b.payments = b.payments[:1]; return a }, "was paid 0 times"},
		"by nobody":    {func(a []answer, b *books) []answer { b.payments[0].Reference = "x"; return a }, "left, the database has"},
		"still open":   {func(a []answer, b *books) []answer { b.refunds[0].State = refunds.Agreed; return a }, "left, the database has"},
		"other serial": {func(a []answer, b *books) []answer { b.refunds[0].Serial = &serials[1]; return a }, "left, the database has"},
		"off the books": {func(a []answer, b *books) []answer {
			b.orders[s.order(0)]++
			return a
		}, "1201 by the order"},
		"more than was paid": {func(a []answer, b *books) []answer {
			b.refunds[0].AmountCents, b.payments[0].AmountCents, b.orders[s.order(0)] = 600, 600, 1300
			return a
		}, "1266 cents were paid, 1300 left"},
		"acknowledged, not there": {func(a []answer, b *books) []answer { b.refunds = b.refunds[1:]; return a }, "was acknowledged, the database has"},
		"another's receipt":       {func(a []answer, _ *books) []answer { a[0].receipt = a[1].receipt; return a }, "was acknowledged as"},
		"agreement not joined":    {func(a []answer, _ *books) []answer { a[2].receipt.Joined = false; return a }, "should have joined"},
		"agreement made another": {func(a []answer, b *books) []answer {
			b.refunds[0].Kind, a[2].receipt.Kind = refunds.BySeller, refunds.BySeller
			return a
		}, "should have joined"},
		"agreement not kept":   {func(a []answer, b *books) []answer { b.refunds[0].Agreement = nil; return a }, "should have joined"},
		"refused without need": {func(a []answer, _ *books) []answer { a[3].left = 5000; return a }, "ended with status 422"},
		"refused without left": {func(a []answer, _ *books) []answer { a[3].left = -1; return a }, "ended with status 422"},
		"told too little":      {func(a []answer, _ *books) []answer { a[3].left = 10; return a }, "told that 10 are left, at the end 66 were"},
		"no answer":            {func(a []answer, _ *books) []answer { return append(a, answer{}) }, "ended with status 0"},
		"other amount taken": {func(a []answer, _ *books) []answer {
			return append(a, answer{kind: otherAmount, status: http.StatusAccepted})
		}, "ended with status 202"},
		"unknown order taken": {func(a []answer, _ *books) []answer {
			return append(a, answer{kind: noOrder, status: http.StatusAccepted})
		}, "ended with status 202"},
	} {
		answers, b := good()
		answers = tc.spoil(answers, &b)
		v := s.judge(answers, b)
		said := strings.Join(v.Wrongs, "\n")
		if (v.Word() == "ok") != (tc.says == "") || !strings.Contains(said, tc.says) {
			t.Errorf("%s: verdict %s: %s", name, v.Word(), said)
		}
	}
}
