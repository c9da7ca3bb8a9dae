package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/pgonce/pgonce/examples/remittance/bank"
	"github.com/pgonce/pgonce/examples/remittance/remit"
)

// The verdict has to be able to fail: each way to be wrong is told.
func TestJudgeFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	s := &storm{options: options{messages: 2}, id: "j"}
	serials := []string{"B1", "B2"}
	pay := func(n int) bank.Entry {
		return bank.Entry{Order: bank.Order{Reference: "ref" + serials[n], AmountCents: amountOf(n), Purpose: s.key(n) + "/1"}, Serial: serials[n]}
	}
	tell := func(n int, replayed bool) delivery {
		output, _ := json.Marshal(remit.Answer{Outcome: remit.Outcome{Flag: remit.Paid, Serial: serials[n]}, Replayed: replayed})
		return delivery{"completed", remit.Message{Remittance: s.key(n), Send: 1, AmountCents: amountOf(n)}, output}
	}
	good := func() books {
		forged := delivery{"cancelled", remit.Message{Remittance: s.key(0), Send: 1, AmountCents: amountOf(0) + 1}, []byte(`{"refused": "bad message"}`)}
		entries := []entry{{s.key(0), remit.Paid, 1, amountOf(0), &serials[0]}, {s.key(1), remit.Paid, 1, amountOf(1), &serials[1]}}
		return books{
			bank: []bank.Entry{pay(0), pay(1)}, remittances: entries, effects: 2,
			deliveries: []delivery{tell(0, false), tell(0, true), tell(1, true), forged},
		}
	}
	for name, tc := range map[string]struct {
		spoil func(b *books)
		says  string // "" is ok
	}{
		"right":                    {func(*books) {}, ""},
		"paid twice":               {func(b *books) { b.bank = append(b.bank, pay(0)) }, "was paid 2 times"},
		"more out than the amount": {func(b *books) { e := pay(0); e.Purpose = s.key(0) + "/2"; b.bank = append(b.bank, e) }, "cents out, net of returns"},
		"not paid":                 {func(b *books) { b.bank = b.bank[1:] }, "0 cents are out"},
		"unknown":                  {func(b *books) { b.remittances[1].Flag = remit.Unknown }, "is at 7 (unknown), want 2 (paid)"},
		"still at the bank":        {func(b *books) { b.remittances[1].Flag = remit.AtBank }, "is at 8 (at the bank)"},
		"failed, and paid":         {func(b *books) { b.remittances[1].Flag = remit.Failed }, "101 cents are out"},
		"another serial number":    {func(b *books) { b.remittances[1].Serial = &serials[0] }, "was last paid under B2"},
		"lost":                     {func(b *books) { b.remittances = b.remittances[:1] }, "1 remittances are in the database"},
		"executed twice":           {func(b *books) { b.deliveries = append(b.deliveries, tell(0, false)) }, "as if executed anew"},
		"two answers":              {func(b *books) { b.deliveries[1].Output = tell(1, true).Output }, "was answered as"},
		"no answer":                {func(b *books) { b.deliveries[1].Output = nil }, "ended as completed"},
		"put aside":                {func(b *books) { b.deliveries[1].State = "discarded" }, "ended as discarded"},
		"another amount taken":     {func(b *books) { b.deliveries[3].State = "completed" }, "ended as completed"},
		"not recorded":             {func(b *books) { b.effects = 1 }, "1 are recorded"},
		"moved past the machine":   {func(b *books) { b.breaks = []string{"row 1 is elsewhere"} }, "row 1 is elsewhere"},
	} {
		b := good()
		tc.spoil(&b)
		r := s.judge(b)
		said := strings.Join(r.Wrongs, "\n")
		if (r.Word() == "ok") != (tc.says == "") || !strings.Contains(said, tc.says) {
			t.Errorf("%s: verdict %s: %s", name, r.Word(), said)
		}
	}
}

// What came back may be sent once more, and no more than that is out at any time.
func TestJudgeCountsReturns(t *testing.T) {
	t.Parallel()
	s := &storm{options: options{messages: 1}, id: "j"}
	serial := "B3"
	entryOf := func(send string, back bool) bank.Entry {
		return bank.Entry{Order: bank.Order{AmountCents: amountOf(0), Purpose: s.key(0) + send}, Serial: serial, Back: back}
	}
	for want, order := range map[string][]bank.Entry{
		"ok":     {entryOf("/1", false), entryOf("/1", true), entryOf("/2", false)},
		"BROKEN": {entryOf("/1", false), entryOf("/2", false), entryOf("/1", true)},
	} {
		r := &report{}
		s.judgeBank(r, books{bank: order}, map[string]entry{s.key(0): {s.key(0), remit.Paid, 2, amountOf(0), &serial}})
		if r.Word() != want {
			t.Errorf("%s, want %s: %v", r.Word(), want, r.Wrongs)
		}
	}
}
