//go:build unix

package conformance

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

// A tenant sees nothing of another's rows: not the state, not the history, not the answer to an id.
func machineScope[TX any](t *testing.T, c Client[TX]) {
	y := newYardOf(t, c, 2, flow, sm.Table{Name: "item", Scope: "amount = $1 AND ok"})
	for id := range int64(4) {
		y.insert(id, inA)
	}
	y.sql(`UPDATE item SET amount = 7 WHERE id = 2`)
	mine, other := y.items.In(100), y.items.In(7)
	_, err := y.fire(1, goEvent)
	wantErr(t, err, sm.ErrInvalid)
	wantText(t, err, "use In")
	for _, opts := range [][]sm.Option{{sm.Where("amount > $1", 1), sm.Set("note", "n")}, {sm.Dedup("d")}, {sm.Lock()}} {
		_, err = other.Fire(t.Context(), 1, goEvent, opts...)
		wantErr(t, err, sm.ErrNotFound)
	}
	res, err := mine.Fire(t.Context(), 1, goEvent, sm.Dedup("d"), sm.Match("note IS NULL"), sm.SetExpr("refunded", "amount + $1", 1))
	if err != nil || !res.Applied() {
		t.Errorf("got %+v, %v", res, err)
	}
	for _, opts := range [][]sm.Option{nil, {sm.Dedup("d")}} { // it is a repeat for its owner only
		_, err = other.Fire(t.Context(), 1, goEvent, opts...)
		wantErr(t, err, sm.ErrNotFound)
		res, err = mine.Fire(t.Context(), 1, goEvent, opts...)
		if err != nil || res.Outcome != sm.AlreadyApplied {
			t.Errorf("got %+v, %v", res, err)
		}
		rows, err := other.FireMany(t.Context(), []int64{1, 2, 3}, prepare, append(opts, sm.Where("true"))...)
		noErr(t, err)
		y.wantTold(rows, map[int64]string{1: "row not found", 2: map[bool]string{true: "Applied", false: "AlreadyApplied"}[opts == nil], 3: "row not found"})
	}
	_, err = other.State(t.Context(), 1)
	wantErr(t, err, sm.ErrNotFound)
	for _, err := range other.History(t.Context(), 1) {
		noErr(t, err)
		t.Error("another's history")
	}
	_, err = other.FireFunc(t.Context(), 3, goEvent, func(context.Context, TX, itemState) error { t.Error("asked"); return nil })
	wantErr(t, err, sm.ErrNotFound)
	n, err := other.Adopt(t.Context(), "")
	noErr(t, err)
	wantInt(t, "adopted", n, 0)
	y.sql(`UPDATE item SET ok = false WHERE id = 3`) // as if deleted
	_, err = mine.Fire(t.Context(), 3, goEvent)
	wantErr(t, err, sm.ErrNotFound)
	_, err = y.items.In(1, 2).Fire(t.Context(), 1, goEvent)
	wantErr(t, err, sm.ErrInvalid)
}

// LockTimeout is for one statement: what the transaction had before it has after.
func machineLockTimeout[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	y.insert(1, inA)
	y.insert(2, inA)
	noErr(t, y.items.Validate(t.Context()))
	other := y.hold(`SELECT FROM item WHERE id = 1 FOR UPDATE`)
	for _, ev := range []sm.Event[itemState]{goEvent, prepare} { // of two sources and of one
		_, err := y.fire(1, ev, sm.LockTimeout(20*time.Millisecond))
		wantErr(t, err, sm.ErrBusy)
		if !sm.IsRetryable(err) {
			t.Errorf("%v may be tried again", err)
		}
	}
	tx := y.tx(pg.ReadCommitted)
	var setting string
	noErr(t, tx.Run(t.Context(), pg.Stmt{SQL: `SELECT set_config('lock_timeout', '7min', true)`, Dest: []any{&setting}}))
	plain := bind(t, y.d, sm.MustNew("plain", sm.Initial(inA), sm.Final(inT), sm.From(inA).On(goEvent).To(inT)), sm.Table{Name: "item", NoHistory: true})
	short := sm.LockTimeout(20 * time.Millisecond)
	for verb, do := range map[string]func() error{
		"FireTx": func() error {
			_, err := y.items.FireTx(t.Context(), tx.Handle(), 2, goEvent, short, sm.Lock())
			return err
		},
		"FireTx with an id": func() error {
			_, err := y.items.FireTx(t.Context(), tx.Handle(), 2, goEvent, short, sm.Dedup("d"))
			return err
		},
		"FireTx without a history": func() error {
			_, err := plain.FireTx(t.Context(), tx.Handle(), 2, goEvent, short, sm.Lock())
			return err
		},
		"FireTx of one source": func() error {
			_, err := plain.FireTx(t.Context(), tx.Handle(), 2, goEvent, short)
			return err
		},
		"FireManyTx": func() error {
			_, err := y.items.FireManyTx(t.Context(), tx.Handle(), []int64{2}, goEvent, short)
			return err
		},
		"FireManyTx without a history": func() error {
			_, err := plain.FireManyTx(t.Context(), tx.Handle(), []int64{2}, goEvent, short)
			return err
		},
		"FireFuncTx": func() error {
			_, err := y.items.FireFuncTx(t.Context(), tx.Handle(), 2, goEvent, func(context.Context, TX, itemState) error { return nil }, short)
			return err
		},
		"CreateTx":                   func() error { _, err := y.items.CreateTx(t.Context(), tx.Handle(), 3, inA, short); return err },
		"CreateTx without a history": func() error { _, err := plain.CreateTx(t.Context(), tx.Handle(), 4, inA, short); return err },
	} {
		noErr(t, do())
		noErr(t, tx.Run(t.Context(), pg.Stmt{SQL: `SELECT current_setting('lock_timeout')`, Dest: []any{&setting}}))
		if setting != "7min" {
			t.Errorf("lock_timeout is %s after %s", setting, verb)
		}
	}
	_, err := y.items.FireTx(t.Context(), tx.Handle(), 1, goEvent, sm.LockTimeout(20*time.Millisecond))
	wantErr(t, err, sm.ErrBusy)
	tx.Rollback(t.Context())
	noErr(t, other.Rollback(t.Context()))
	for _, d := range []time.Duration{0, -1, time.Microsecond, 1 << 62} {
		_, err = y.fire(1, goEvent, sm.LockTimeout(d))
		wantErr(t, err, sm.ErrInvalid)
	}
}

// A final state that the bank can take back, and columns that somebody has to set.
func machineReversalAndRequire[TX any](t *testing.T, c Client[TX]) {
	bounce := sm.NewEvent[itemState]("bounce")
	m := sm.MustNew("payment", sm.Initial(inA), sm.Final(inT, inX), sm.Require(inT, "note"),
		sm.From(inA).On(goEvent).To(inT).Setting("note"), sm.From(inT).On(bounce).To(inX).Reversal("late return"))
	y := newYardOf(t, c, 1, m, sm.Table{Name: "item"})
	y.insert(1, inA)
	for _, opts := range [][]sm.Option{nil, {sm.Set("note", nil)}, {sm.Set("amount", 1)}} {
		_, err := y.fire(1, goEvent, opts...)
		wantErr(t, err, sm.ErrInvalid)
		wantText(t, err, "note")
	}
	y.want(1, goEvent, sm.Applied, inA, inT, sm.Set("note", "n"))
	y.want(1, bounce, sm.Applied, inT, inX)
	_, err := y.fire(1, goEvent, sm.Set("note", "n"))
	if e, ok := errors.AsType[*sm.ConflictError](err); !ok || !e.Final || e.Reason != sm.ReasonState {
		t.Errorf("got %v", err)
	}
	other := sm.MustNew("other", sm.Initial(inA), sm.Final(inT), sm.From(inA).On(goEvent).To(inT).Setting("nothing"))
	err = bind(t, y.d, other, sm.Table{Name: "item"}).Validate(t.Context())
	wantErr(t, err, sm.ErrSchema)
	wantText(t, err, `no column "nothing"`)
}

// Two machines on one row: each has its own column, its own history and its own ids.
func machineTwoOnOneRow[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE wallet (id bigint PRIMARY KEY, pay text NOT NULL DEFAULT 'a', "Consumed" text NOT NULL DEFAULT 'a'); INSERT INTO wallet VALUES (1)`)
	d := c.Open(t, db, 4)
	pays := bind(t, d, flow, sm.Table{Name: "wallet", State: "pay"})
	eats := bind(t, d, cycle, sm.Table{Name: "wallet", State: "Consumed"})
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if _, err := pays.Fire(t.Context(), 1, goEvent, sm.Dedup("d")); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if _, err := eats.Fire(t.Context(), 1, turnOn, sm.Dedup("d")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	wantInt(t, "history", db.Int(t, `SELECT count(*) FROM pgonce.transition`), 2)
	wantInt(t, "the row", db.Int(t, `SELECT count(*) FROM wallet WHERE pay = 't' AND "Consumed" = 'b'`), 1)
	for _, b := range []*sm.Binding[int64, itemState, TX]{pays, eats} {
		for br, err := range b.VerifyHistory(t.Context()) {
			t.Errorf("%v, %v", br, err)
		}
	}
}
