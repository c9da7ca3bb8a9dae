//go:build unix

package conformance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
	sm "github.com/pgonce/pgonce/statemachine"
)

// The machine of an order that is closed when it is not paid in time.
var (
	expire = sm.NewEvent[itemState]("expire")
	timed  = sm.MustNew("timed", sm.Initial(inA), sm.Final(inX, inT), sm.From(inA).On(goEvent).To(inT),
		sm.From(inA).After(15*time.Minute).On(expire).To(inX))
)

func newTimed[TX any](t *testing.T, c Client[TX], conns, rows int) *yard[TX] {
	t.Helper()
	y := newYardOf(t, c, conns, timed, sm.Table{Name: "item", Since: "at"})
	y.sql(`INSERT INTO item (id, at) SELECT g, now() - interval '15 minutes' - g * interval '1 second' FROM generate_series(1, $1::int) g`, rows)
	return y
}

// What is due is moved, what is not is not, and the time of the new state begins.
func machineSweep[TX any](t *testing.T, c Client[TX]) {
	y := newTimed(t, c, 2, 250)
	y.sql(`INSERT INTO item (id, at) VALUES (1000, now() - interval '14 minutes'), (1001, now()), (1002, NULL)`)
	y.sql(`UPDATE item SET state = 't' WHERE id = 1`)
	var effects int
	rows, err := y.items.Sweep(t.Context(), &sm.SweepConfig{Limit: 30, Batch: 20, Options: []sm.Option{sm.Actor("sweep"), sm.Set("note", "late")}},
		func(ctx context.Context, tx TX, row itemRow) error {
			effects++
			return c.Exec(ctx, tx, fmt.Sprintf(`INSERT INTO child VALUES (%d)`, row.ID))
		})
	noErr(t, err)
	if len(rows) != 30 || effects != 30 || rows[0].ID != 250 || rows[0].To != inX || rows[0].Err != nil { // the oldest first
		t.Errorf("%d rows, %d effects: %+v", len(rows), effects, rows[0])
	}
	wantInt(t, "effects", y.int(`SELECT count(*) FROM child`), 30)
	rows, err = y.items.Sweep(t.Context(), nil, nil)
	noErr(t, err)
	wantInt(t, "rows", int64(len(rows)), 219)
	wantInt(t, "moved", y.int(`SELECT count(*) FROM item i JOIN pgonce.transition h ON entity = i.id::text AND h.at = i.at WHERE state = 'x'`), 249)
	wantInt(t, "not due", y.int(`SELECT count(*) FROM item WHERE id >= 1000 AND state = 'a'`), 3)
	rows, err = y.items.Sweep(t.Context(), nil, nil)
	if err != nil || len(rows) != 0 {
		t.Errorf("got %v, %v", rows, err)
	}
	y.want(1001, goEvent, sm.Applied, inA, inT)
	_, err = sm.Bind[int64](timed, y.d, sm.Table{Name: "item"})
	wantErr(t, err, sm.ErrInvalid)
	wantText(t, err, "needs Table.Since")
	wantErr(t, bind(t, y.d, timed, sm.Table{Name: "item", Since: "note"}).Validate(t.Context()), sm.ErrSchema)
}

// Sweepers share the work and never do a thing twice; what somebody holds is passed over.
func machineSweepers[TX any](t *testing.T, c Client[TX]) {
	y := newTimed(t, c, 6, 400)
	noErr(t, y.items.Validate(t.Context()))
	holder := y.hold(`SELECT FROM item WHERE id IN (400, 200) FOR UPDATE`)
	var moved atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			rows, err := y.items.Sweep(t.Context(), &sm.SweepConfig{Batch: 15, Pause: 1}, nil)
			if err != nil {
				t.Error(err)
			}
			for _, r := range rows {
				if r.Applied() {
					moved.Add(1)
				}
			}
		})
	}
	wg.Wait()
	wantInt(t, "moved", moved.Load(), 398)
	noErr(t, holder.Rollback(t.Context()))
	rows, err := y.items.Sweep(t.Context(), nil, nil)
	noErr(t, err)
	wantInt(t, "moved after", int64(len(rows)), 2)
	wantInt(t, "history", y.int(`SELECT count(DISTINCT entity) FROM pgonce.transition WHERE event = 'expire'`), 400)
	wantInt(t, "history", y.int(`SELECT count(*) FROM pgonce.transition`), 400)
}

// The oldest rows are refused, by a constraint and by the caller: they are reported, and all the others are moved.
func machineSweepPoison[TX any](t *testing.T, c Client[TX]) {
	y := newTimed(t, c, 2, 60)
	y.sql(`ALTER TABLE item ADD CONSTRAINT old CHECK (state = 'a' OR id NOT IN (60, 59, 31))`)
	errNot := errors.New("not this one")
	for range 2 {
		rows, err := y.items.Sweep(t.Context(), &sm.SweepConfig{Batch: 10}, func(ctx context.Context, tx TX, row itemRow) error {
			if row.ID == 45 {
				return errNot
			}
			return c.Exec(ctx, tx, fmt.Sprintf(`INSERT INTO child VALUES (%d)`, row.ID))
		})
		noErr(t, err)
		refused := 0
		for _, r := range rows {
			switch r.ID {
			case 60, 59, 31:
				refused++
				if pg.Code(r.Err) != "23514" {
					t.Errorf("got %+v", r)
				}
			case 45:
				refused++
				wantErr(t, r.Err, errNot)
			default:
				noErr(t, r.Err)
			}
		}
		wantInt(t, "refused", int64(refused), 4)
	}
	wantInt(t, "moved", y.int(`SELECT count(*) FROM item WHERE state = 'x'`), 56)
	wantInt(t, "effects", y.int(`SELECT count(*) FROM child`), 56)
	wantInt(t, "history", y.int(`SELECT count(*) FROM pgonce.transition`), 56)
}
