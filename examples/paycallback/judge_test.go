package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/pgonce/pgonce/examples/paycallback/callback"
)

// The verdict has to be able to fail: each way to be wrong is told.
func TestJudgeFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	s := &storm{options: options{orders: 5, crowd: 100}, first: 10}
	transactions := make([]string, s.size())
	good := func() ([]*call, books) {
		b := books{heard: map[string]map[int64]int{"notify": {}, "push": {}, "schedule": {}}}
		var calls []*call
		for n := range s.size() {
			id := s.first + int64(n)
			transactions[n] = fmt.Sprintf("T%d", id)
			e := entry{ID: id, State: callback.Paid, Transaction: &transactions[n], Moves: 1, Jobs: 3, Enqueued: 3}
			status := http.StatusOK
			if s.closed(n) {
				e, status = entry{ID: id, State: callback.Closed}, http.StatusConflict
			} else {
				for _, kind := range kinds {
					b.heard[kind][id] = 1
				}
			}
			b.orders = append(b.orders, e)
			calls = append(calls, &call{n: n, status: status}, &call{n: n, status: status})
		}
		return append(calls, &call{n: 1, forged: otherAmount, status: http.StatusUnprocessableEntity}), b
	}
	const shut = 7
	if !s.closed(shut) {
		t.Fatal("order 7 should be closed")
	}
	for name, tc := range map[string]struct {
		spoil func(c []*call, b *books)
		says  string // "" is ok
	}{
		"right":                  {func([]*call, *books) {}, ""},
		"pushed twice":           {func(_ []*call, b *books) { b.heard["push"][10] = 2 }, "push was done 2 times"},
		"never delivered":        {func(_ []*call, b *books) { delete(b.heard["schedule"], 10) }, "schedule was done 0 times"},
		"told of a closed order": {func(_ []*call, b *books) { b.heard["notify"][10+shut] = 1 }, "notify was done 1 times, want 0"},
		"moved twice":            {func(_ []*call, b *books) { b.orders[2].Moves = 2 }, "Moves:2"},
		"a job too many":         {func(_ []*call, b *books) { b.orders[2].Enqueued = 4 }, "Enqueued:4"},
		"not paid":               {func(_ []*call, b *books) { b.orders[2].State = callback.Unpaid }, "State:unpaid"},
		"by another payment":     {func(_ []*call, b *books) { b.orders[2].Transaction = &transactions[1] }, `by "T11"`},
		"lost":                   {func(_ []*call, b *books) { b.orders = b.orders[1:] }, "7 orders are in the database"},
		"no answer":              {func(c []*call, _ *books) { c[0].status = 0 }, "was answered with 0, want 200"},
		"a closed order taken":   {func(c []*call, _ *books) { c[2*shut].status = http.StatusOK }, "was answered with 200, want 409"},
		"another amount taken":   {func(c []*call, _ *books) { c[len(c)-1].status = http.StatusOK }, "was answered with 200, want 422"},
	} {
		calls, b := good()
		tc.spoil(calls, &b)
		r := s.judge(calls, b)
		said := strings.Join(r.Wrongs, "\n")
		if (r.Word() == "ok") != (tc.says == "") || !strings.Contains(said, tc.says) {
			t.Errorf("%s: verdict %s: %s", name, r.Word(), said)
		}
	}
}
