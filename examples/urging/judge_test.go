package main

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pgonce/pgonce/examples/urging/urges"
)

// The verdict has to be able to fail: each way to be wrong is told.
func TestJudgeFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	s := &storm{options: options{users: 2, tickets: 1, windows: 1}, tickets: []int64{7}}
	end, receipt := time.Date(2026, 1, 2, 14, 32, 0, 0, time.UTC), "P000001"
	told := func(user int, again bool) answer {
		status := http.StatusCreated
		if again {
			status = http.StatusOK
		}
		return answer{user: user, status: status, told: urges.Answer{Urge: 1, Again: again, Next: end}}
	}
	good := func() ([]answer, books) {
		w := window{ID: 1, Ticket: 7, EndsAt: end, State: urges.Pushed, Receipt: &receipt, Users: []string{userName(0), userName(1)}, LatestIsIt: true}
		return []answer{told(0, false), told(0, true), told(1, false), {ticket: -1, status: http.StatusNotFound}},
			books{windows: []window{w}, effects: 2, receipts: map[string]string{"urge-1": receipt}}
	}
	for name, tc := range map[string]struct {
		spoil func(a []answer, b *books) []answer
		says  string // "" is ok
	}{
		"right": {func(a []answer, _ *books) []answer { return a }, ""},
		"two urges in a window": {func(a []answer, b *books) []answer {
			w := b.windows[0]
			w.ID, w.Round = 2, 1
			b.windows = append(b.windows, w)
			return a
		}, "more than one urge in a window"},
		"a user twice": {func(a []answer, b *books) []answer {
			b.windows[0].Users = append(b.windows[0].Users, userName(0))
			return a
		}, "is twice in urge 1"},
		"a user too few":        {func(a []answer, b *books) []answer { b.windows[0].Users = b.windows[0].Users[:1]; return a }, "1 users are in urge 1"},
		"too few sub-records":   {func(a []answer, b *books) []answer { b.effects = 1; return a }, "1 sub-records"},
		"no urge":               {func(a []answer, b *books) []answer { b.windows = nil; return a }, "0 urges are in the database"},
		"latest time":           {func(a []answer, b *books) []answer { b.windows[0].LatestIsIt = false; return a }, "the latest time of urge 1"},
		"not pushed":            {func(a []answer, b *books) []answer { b.receipts = nil; return a }, "was pushed under"},
		"another receipt":       {func(a []answer, b *books) []answer { b.receipts["urge-1"] = "P2"; return a }, "was pushed under"},
		"push not recorded":     {func(a []answer, b *books) []answer { b.windows[0].State = urges.Raised; return a }, "was pushed under"},
		"another urge":          {func(a []answer, _ *books) []answer { a[0].told.Urge = 2; return a }, "told urge 2"},
		"another end":           {func(a []answer, _ *books) []answer { a[1].told.Next = end.Add(time.Second); return a }, "next at"},
		"first twice":           {func(a []answer, _ *books) []answer { return append(a, told(0, false)) }, "told 2 times that it was his first"},
		"cached, and the first": {func(a []answer, _ *books) []answer { a[0].cached = true; return a }, "again: false"},
		"no answer":             {func(a []answer, _ *books) []answer { return append(a, answer{}) }, "ended with status 0"},
		"unknown ticket urged":  {func(a []answer, _ *books) []answer { a[3].status = http.StatusCreated; return a }, "ended with status 201"},
	} {
		answers, b := good()
		answers = tc.spoil(answers, &b)
		v := s.judge(answers, b)
		said := strings.Join(v.Wrongs, "\n")
		if (v.Word() == "ok") != (tc.says == "") || !strings.Contains(said, tc.says) || (v.Err() == nil) != (tc.says == "") {
			t.Errorf("%s: verdict %s: %s", name, v.Word(), said)
		}
	}
}
