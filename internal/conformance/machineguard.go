//go:build unix

package conformance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pgonce/pgonce/internal/pg"
	sm "github.com/pgonce/pgonce/statemachine"
)

// Two refunds on two rows of one order that share a limit, which no column of one row knows: the guard reads the other
// rows under the lock of a third. One of them fits.
func machineGuardInGo[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 4)
	y.insert(1, inA)
	y.want(1, prepare, sm.Applied, inA, inB)
	errSpent := errors.New("spent")
	asked := 0
	guard := func(err error) sm.Guard[itemState, TX] {
		return func(ctx context.Context, tx TX, from itemState) error {
			asked++
			if from != inB {
				t.Errorf("asked about %q", from)
			}
			noErr(t, c.Exec(ctx, tx, `INSERT INTO child VALUES (1)`))
			return err
		}
	}
	fire := func(g sm.Guard[itemState, TX], opts ...sm.Option) (itemResult, error) {
		return y.items.FireFunc(t.Context(), 1, goEvent, g, opts...)
	}
	_, err := fire(guard(errSpent))
	wantErr(t, err, errSpent)
	_, err = fire(guard(nil), sm.Where("NOT ok"))
	wantErr(t, err, sm.ErrGuard)
	y.wantState(1, inB)
	wantInt(t, "what a refused guard has written", y.int(`SELECT count(*) FROM child`), 0)
	res, err := fire(guard(nil), sm.Dedup("d"))
	if err != nil || !res.Applied() || res.From != inB || res.To != inT {
		t.Errorf("got %+v, %v", res, err)
	}
	wantInt(t, "what the guard has written", y.int(`SELECT count(*) FROM child`), 1)
	for _, opts := range [][]sm.Option{nil, {sm.Dedup("d")}} { // a repeat does not ask
		if res, err := fire(guard(errSpent), opts...); err != nil || res.Outcome != sm.AlreadyApplied {
			t.Errorf("got %+v, %v", res, err)
		}
	}
	wantInt(t, "the guard was asked", int64(asked), 3)
	_, err = y.items.FireFunc(t.Context(), 9, goEvent, guard(nil))
	wantErr(t, err, sm.ErrNotFound)
	_, err = fire(nil)
	wantErr(t, err, sm.ErrInvalid)

	tx := y.tx(pg.ReadCommitted)
	res, err = y.items.FireFuncTx(t.Context(), tx.Handle(), 1, archive, func(context.Context, TX, itemState) error { return nil })
	if err != nil || !res.Applied() {
		t.Errorf("got %+v, %v", res, err)
	}
	noErr(t, tx.Commit(t.Context()))
	y.wantState(1, inL)
}

// The guard runs while the row is locked, one after the other; a panic in it leaves nothing behind.
func machineGuardHoldsTheRow[TX any](t *testing.T, c Client[TX]) {
	refundMore := sm.NewEvent[itemState]("refund")
	m := sm.MustNew("refunds", sm.Initial(inA), sm.Final(inT), sm.From(inA).On(refundMore).To(inA), sm.From(inA).On(goEvent).To(inT))
	y := newYardOf(t, c, 8, m, sm.Table{Name: "item"})
	y.insert(1, inA)
	errSpent := errors.New("spent")
	var inside, fits atomic.Int64
	var wg sync.WaitGroup
	for n := range 6 {
		wg.Go(func() {
			_, err := y.items.FireFunc(t.Context(), 1, refundMore, func(ctx context.Context, tx TX, _ itemState) error {
				if inside.Add(1) != 1 {
					t.Error("two guards at once")
				}
				defer inside.Add(-1)
				if y.int(`SELECT count(*) FROM child`) == 2 {
					return errSpent
				}
				return c.Exec(ctx, tx, `INSERT INTO child VALUES (1)`)
			}, sm.Dedup(fmt.Sprint(n)))
			if err == nil {
				fits.Add(1)
			} else if !errors.Is(err, errSpent) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	wantInt(t, "refunds that fit", fits.Load(), 2)
	wantInt(t, "moves", y.int(`SELECT count(*) FROM pgonce.transition`), 2)
	func() {
		defer func() {
			if recover() != "boom" {
				t.Error("the panic is gone")
			}
		}()
		_, _ = y.items.FireFunc(t.Context(), 1, goEvent, func(context.Context, TX, itemState) error { panic("boom") })
	}()
	y.want(1, goEvent, sm.Applied, inA, inT)
}
