//go:build unix

package conformance

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pgonce/pgonce/internal/pg"
	sm "github.com/pgonce/pgonce/statemachine"
)

func (y *yard[TX]) breaks(says ...string) (n int64) {
	y.t.Helper()
	for br, err := range y.items.VerifyHistory(y.t.Context()) {
		noErr(y.t, err)
		if int(n) < len(says) && !strings.Contains(br.String(), says[n]) {
			y.t.Errorf("break %d: %s, want it to say %q", n, br, says[n])
		}
		n++
	}
	return n
}

// What raw SQL has done is named; what was done through the machine is not.
func machineVerifyHistory[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	for id := range int64(5) {
		y.insert(id, inA)
		y.want(id, prepare, sm.Applied, inA, inB, sm.Dedup("d"))
		y.want(id, prepare, sm.AlreadyApplied, inB, inB, sm.Dedup("e"))
		y.want(id, goEvent, sm.Applied, inB, inT)
	}
	y.insert(8, inA)
	wantInt(t, "breaks", y.breaks(), 0)
	y.sql(`UPDATE item SET state = 'a' WHERE id = 1`)
	y.want(1, goEvent, sm.Applied, inA, inT)
	y.sql(`UPDATE item SET state = NULL WHERE id = 2`)
	y.sql(`UPDATE item SET state = 'x' WHERE id = 8`)
	wantInt(t, "breaks", y.breaks(`row 1: move`, `row 2 is in "", its last move`, `row 8 is in "x" and has no history`), 3)
	for br, err := range y.items.VerifyHistory(t.Context()) { // a loop that ends early
		noErr(t, err)
		if br.Kind != sm.BreakInChain || br.ID != "1" || br.Event != "go" || br.Want != "t" || br.Got != "a" || br.Seq == 0 || br.At.IsZero() {
			t.Errorf("got %+v", br)
		}
		break
	}
	y.sql(`DELETE FROM item`)
	wantInt(t, "breaks of deleted rows", y.breaks(), 0)
}

func machineStateAndHistory[TX any](t *testing.T, c Client[TX]) {
	y := newYardOf(t, c, 2, flow, sm.Table{Name: "item", Version: "version"})
	y.insert(1, inA)
	y.insert(2, "newer")
	y.want(1, prepare, sm.Applied, inA, inB, sm.Actor("ops"), sm.Meta(map[string]int{"n": 1}))
	y.want(1, prepare, sm.AlreadyApplied, inB, inB, sm.Dedup("d"))
	s, err := y.items.State(t.Context(), 1)
	if s != inB || err != nil {
		t.Errorf("got %q, %v", s, err)
	}
	tx := y.tx(pg.RepeatableRead)
	y.want(1, goEvent, sm.Applied, inB, inT)
	s, err = y.items.StateTx(t.Context(), tx.Handle(), 1)
	if s != inB || err != nil { // its snapshot
		t.Errorf("got %q, %v", s, err)
	}
	noErr(t, tx.Commit(t.Context()))
	_, err = y.items.State(t.Context(), 2)
	wantErr(t, err, sm.ErrUnknownState)
	_, err = y.items.State(t.Context(), 3)
	wantErr(t, err, sm.ErrNotFound)
	var got []string
	for tr, err := range y.items.History(t.Context(), 1) {
		noErr(t, err)
		if tr.Seq == 0 || tr.At.IsZero() {
			t.Errorf("got %+v", tr)
		}
		got = append(got, fmt.Sprintf("%s %s>%s %s v%d %s%s%s", tr.Event, tr.From, tr.To, tr.Outcome, tr.Version, tr.Dedup, tr.Actor, tr.Meta))
	}
	want := []string{`prepare a>b Applied v1 ops{"n": 1}`, `prepare b>b AlreadyApplied v1 d`, `go b>t Applied v2 `}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	for _, err := range y.items.History(t.Context(), 3) {
		noErr(t, err)
		t.Error("a row that is not there has a history")
	}
	for _, err := range bind(t, y.d, sm.MustNew("p", sm.Initial(inA), sm.Final(inA)), sm.Table{Name: "item", NoHistory: true}).History(t.Context(), 1) {
		wantErr(t, err, sm.ErrInvalid)
	}
}
