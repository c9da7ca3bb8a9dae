package main

import (
	"net/http"
	"strings"
	"testing"

	"github.com/pgonce/pgonce/examples/internal/crowd"
	"github.com/pgonce/pgonce/examples/wechatpay/wallet"
)

// The verdict has to be able to fail: each way to be wrong is told.
func TestJudgeFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	spoilt := func(spoil func(s *storm, a []answer, b *books) []answer) (word, said string) {
		s := &storm{options: options{orders: 8}, id: "j", wire: newWire(), locks: lockBook{lost: map[string]bool{}}}
		s.Stage = &crowd.Stage{Crowd: &crowd.Crowd{Workers: 2}}
		s.wire.most = 2
		b := books{entries: map[string]entry{}, effects: 7}
		var answers []answer
		for n := range s.orders {
			e := entry{Number: s.number(n), Payment: wallet.Unpaid, Consumption: wallet.NotConsumed}
			a := answer{n: n, kind: unpaid, status: http.StatusUnprocessableEntity}
			if !neverPaid(n) {
				transaction := "T-" + s.number(n)
				e = entry{s.number(n), wallet.Paid, wallet.Consumed, &transaction, []int64{amountOf(n)}, 1}
				a = answer{n: n, status: http.StatusOK}
			}
			b.entries[e.Number] = e
			answers = append(answers, a)
		}
		answers = append(answers, answer{kind: dearer, status: http.StatusUnprocessableEntity})
		v := s.judge(spoil(s, answers, &b), b)
		return v.Word(), strings.Join(v.Wrongs, "\n")
	}
	change := func(n int, how func(e *entry)) func(s *storm, a []answer, b *books) []answer {
		return func(s *storm, a []answer, b *books) []answer {
			e := b.entries[s.number(n)]
			how(&e)
			b.entries[e.Number] = e
			return a
		}
	}
	for name, tc := range map[string]struct {
		spoil func(s *storm, a []answer, b *books) []answer
		says  string // "" is ok
	}{
		"right":             {change(0, func(*entry) {}), ""},
		"money twice":       {change(0, func(e *entry) { e.Credits = append(e.Credits, e.Credits[0]) }), "the wallet got"},
		"no money":          {change(0, func(e *entry) { e.Credits = nil }), "the wallet got"},
		"another amount":    {change(0, func(e *entry) { e.Credits[0]++ }), "the wallet got"},
		"not consumed":      {change(0, func(e *entry) { e.Consumption = wallet.Enqueued }), "is paid and consumed, the database has"},
		"not paid":          {change(0, func(e *entry) { e.Payment = wallet.Unpaid }), "is paid and consumed, the database has"},
		"another's":         {change(0, func(e *entry) { *e.Transaction = "T" }), "is paid and consumed, the database has"},
		"enqueued twice":    {change(0, func(e *entry) { e.Messages = 2 }), "was enqueued 2 times"},
		"never paid for":    {change(7, func(e *entry) { e.Payment = wallet.Paid }), "was never paid"},
		"credited for free": {change(7, func(e *entry) { e.Credits = []int64{1} }), "was never paid"},
		"no answer":         {func(_ *storm, a []answer, _ *books) []answer { a[0].status = 0; return a }, "ended with status 0"},
		"a lie was taken":   {func(_ *storm, a []answer, _ *books) []answer { a[8].status = http.StatusOK; return a }, "(kind 1) ended with status 200"},
		"two at a time":     {func(s *storm, a []answer, _ *books) []answer { s.wire.overlaps[s.number(0)] = 1; return a }, "while it was being asked"},
		"two after a loss": {func(s *storm, a []answer, _ *books) []answer {
			s.wire.overlaps[s.number(0)], s.locks.lost[s.number(0)] = 1, true
			return a
		}, ""},
		"overrun not told":    {func(s *storm, a []answer, _ *books) []answer { s.wire.slow = 1; return a }, "0 overruns were told"},
		"overrun not logged":  {func(s *storm, a []answer, _ *books) []answer { s.wire.slow, s.locks.overruns = 1, 1; return a }, "0 logged"},
		"one after the other": {func(s *storm, a []answer, _ *books) []answer { s.wire.most = 1; return a }, "never at the platform at the same time"},
	} {
		word, said := spoilt(tc.spoil)
		if (word == "ok") != (tc.says == "") || !strings.Contains(said, tc.says) {
			t.Errorf("%s: verdict %s: %s", name, word, said)
		}
	}
}
