//go:build unix

package conformance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
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

// Create is known by its id: of many callers one inserts the row, and a repeat is a repeat whatever has become of the row.
func machineCreate[TX any](t *testing.T, c Client[TX]) {
	y := newYardOf(t, c, 6, flow, sm.Table{Name: "item", Version: "version", Since: "at"})
	create := func(id int64, amount int, opts ...sm.Option) (itemResult, error) {
		return y.items.Create(t.Context(), id, inA, append(opts, sm.Set("amount", amount), sm.SetExpr("note", "upper($1)", "n"), sm.Match("amount = $1", amount))...)
	}
	var applied atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			switch res, err := create(1, 7, sm.Actor("ops")); {
			case err != nil:
				t.Error(err)
			case res.Applied():
				applied.Add(1)
			case res.Outcome != sm.AlreadyApplied || res.To != inA || res.Seq == 0 || res.At.IsZero():
				t.Errorf("got %+v", res)
			}
		})
	}
	wg.Wait()
	wantInt(t, "applied", applied.Load(), 1)
	wantInt(t, "the row", y.int(`SELECT count(*) FROM item WHERE id = 1 AND state = 'a' AND amount = 7 AND note = 'N' AND at IS NOT NULL`), 1)
	y.wantHistory(1, "(create):>a")
	y.want(1, goEvent, sm.Applied, inA, inT)
	res, err := create(1, 7)
	if err != nil || res.Outcome != sm.AlreadyApplied || res.To != inA {
		t.Errorf("got %+v, %v", res, err)
	}
	_, err = create(1, 8)
	if e, ok := errors.AsType[*sm.ConflictError](err); !ok || e.Reason != sm.ReasonMatch || e.State != "t" {
		t.Errorf("got %v", err)
	}
	y.insert(2, inA) // not by Create
	_, err = create(2, 100)
	wantErr(t, err, sm.ErrConflict)
	wantText(t, err, "was not created so")
	for _, opt := range []sm.Option{sm.Dedup("d"), sm.Where("true"), sm.Lock(), sm.ExpectVersion(1), sm.Set("state", "t"), sm.Set("id", 1)} {
		_, err := create(3, 1, opt)
		wantErr(t, err, sm.ErrInvalid)
	}
	_, err = y.items.Create(t.Context(), 3, inT)
	wantErr(t, err, sm.ErrInvalid)

	tx := y.tx(pg.ReadCommitted)
	res, err = y.items.CreateTx(t.Context(), tx.Handle(), 3, inA)
	if err != nil || !res.Applied() {
		t.Errorf("got %+v, %v", res, err)
	}
	_, err = y.items.CreateTx(t.Context(), tx.Handle(), 2, inA)
	wantErr(t, err, sm.ErrConflict)
	noErr(t, tx.Commit(t.Context()))
	y.wantHistory(3, "(create):>a")

	y.sql(`ALTER TABLE item ADD CONSTRAINT one_note UNIQUE (note)`)
	_, err = create(4, 1)
	wantErr(t, err, sm.ErrDiverted)
	wantText(t, err, "unique constraint")
	wantInt(t, "row 4", y.int(`SELECT count(*) FROM item WHERE id = 4`), 0)
}

// A table that is older than its machine: rows get the beginning of a history once, those in unknown states are named.
func machineAdopt[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	y.sql(`INSERT INTO item (id, state) SELECT g, (ARRAY['a', 'b', 't'])[1 + g % 3] FROM generate_series(1, 1203) g`)
	y.insert(5000, "newer")
	y.want(1, goEvent, sm.Applied, inB, inT)
	wantInt(t, "breaks before", y.breaks(), 802) // neither in a nor with a history: 802 in b and t, less row 1, and row 5000
	n, err := y.items.Adopt(t.Context(), "import")
	wantErr(t, err, sm.ErrUnknownState)
	wantText(t, err, "5000")
	wantInt(t, "adopted", n, 1202)
	wantInt(t, "history", y.int(`SELECT count(*) FROM pgonce.transition WHERE event = '(adopt)' AND actor = 'import' AND from_state = ''`), 1202)
	wantInt(t, "breaks after", y.breaks(), 1)
	y.sql(`DELETE FROM item WHERE id = 5000`)
	n, err = y.items.Adopt(t.Context(), "")
	noErr(t, err)
	wantInt(t, "adopted again", n, 0)
	y.want(2, archive, sm.Applied, inT, inL)
	y.wantHistory(2, "(adopt):>t", "archive:t>late")
}

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
	_, err := y.fire(1, goEvent, sm.LockTimeout(20*time.Millisecond))
	wantErr(t, err, sm.ErrBusy)
	if !sm.IsRetryable(err) {
		t.Errorf("%v may be tried again", err)
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
	_, err = y.items.FireTx(t.Context(), tx.Handle(), 1, goEvent, sm.LockTimeout(20*time.Millisecond))
	wantErr(t, err, sm.ErrBusy)
	tx.Rollback(t.Context())
	noErr(t, other.Rollback(t.Context()))
	for _, d := range []time.Duration{0, -1, time.Microsecond, 1 << 62} {
		_, err = y.fire(1, goEvent, sm.LockTimeout(d))
		wantErr(t, err, sm.ErrInvalid)
	}
}

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
