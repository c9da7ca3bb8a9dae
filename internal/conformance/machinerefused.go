//go:build unix

package conformance

import (
	"errors"
	"testing"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

// A trigger of the user's swallows the move, or makes another one of it. Then there is neither a move nor a history.
func machineDiverted[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	plain := bind(t, y.d, sm.MustNew("plain", sm.Initial(inA), sm.Final(inT), sm.From(inA).On(goEvent).To(inT)), sm.Table{Name: "item", NoHistory: true})
	y.insert(1, inA)
	for _, body := range []string{`RETURN NULL;`, `NEW.state := 'x'; RETURN NEW;`, `NEW.state := NULL; RETURN NEW;`} {
		y.sql(`CREATE OR REPLACE FUNCTION divert() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN ` + body + ` END $$`)
		y.sql(`CREATE OR REPLACE TRIGGER divert BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION divert()`)
		for _, opts := range [][]sm.Option{nil, {sm.Dedup("d")}} {
			_, err := y.fire(1, goEvent, opts...)
			wantErr(t, err, sm.ErrDiverted)
		}
		_, err := plain.Fire(t.Context(), 1, goEvent)
		wantErr(t, err, sm.ErrDiverted)
		tx := y.tx(pg.ReadCommitted)
		_, err = y.items.FireTx(t.Context(), tx.Handle(), 1, goEvent)
		wantErr(t, err, sm.ErrDiverted)
		tx.Rollback(t.Context())
		y.wantState(1, inA)
		y.wantHistory(1)
	}
	y.sql(`DROP TRIGGER divert ON item`)
	_, err := y.fire(1, goEvent, sm.SetExpr("refunded", "1 / (amount - 100)"))
	if errors.Is(err, sm.ErrDiverted) || pg.Code(err) != "22012" {
		t.Errorf("an error of the caller's expression: got %v", err)
	}
	y.wantHistory(1)
}

// A constraint of the user's table has the last word; its error comes as it is, and with it goes the history.
func machineConstraint[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 1)
	y.insert(1, inA)
	y.sql(`ALTER TABLE item ADD CONSTRAINT paid_needs_at CHECK (state <> 't' OR at IS NOT NULL)`)
	_, err := y.fire(1, goEvent, sm.Dedup("d"))
	if e, ok := errors.AsType[*pg.Error](err); !ok || e.Code != "23514" || e.Constraint != "paid_needs_at" {
		t.Errorf("got %v", err)
	}
	y.wantHistory(1)
	y.want(1, goEvent, sm.Applied, inA, inT, sm.Dedup("d"), sm.Set("at", time.Now()))
}

// Without a history no table of the library is touched. What cannot be known without one is refused.
func machineNoHistory[TX any](t *testing.T, c Client[TX]) {
	y := newYardOf(t, c, 2, sm.MustNew("plain", sm.Initial(inA), sm.Final(inX, inL), sm.From(inA).On(prepare).To(inB), sm.From(inA, inB).On(goEvent).To(inT),
		sm.From(inA).On(away).To(inX), sm.From(inT).On(archive).To(inL), sm.From(inL).Ignore(goEvent)), sm.Table{Name: "item", NoHistory: true, Version: "version"})
	y.sql(`DROP SCHEMA pgonce CASCADE`)
	y.insert(1, inB)
	res := y.want(1, goEvent, sm.Applied, inB, inT, sm.Where("ok"), sm.Match("amount = $1", 100), sm.Set("note", "n"))
	if res.Seq != 0 || !res.At.IsZero() || res.Version != 1 {
		t.Errorf("got %+v", res)
	}
	for _, opts := range [][]sm.Option{nil, {sm.Lock()}} {
		y.want(1, goEvent, sm.AlreadyApplied, inT, inT, opts...)
		_, err := y.fire(1, away, opts...)
		wantErr(t, err, sm.ErrConflict)
	}
	y.want(1, archive, sm.Applied, inT, inL, sm.ExpectVersion(1))
	y.want(1, goEvent, sm.Superseded, inL, inL)
	y.want(1, goEvent, sm.Superseded, inL, inL, sm.Lock())
	for _, opt := range []sm.Option{sm.Dedup("d"), sm.Actor("a"), sm.Meta(1)} {
		_, err := y.fire(1, archive, opt)
		wantErr(t, err, sm.ErrInvalid)
		wantText(t, err, "NoHistory")
	}
	for _, m := range []*sm.Machine[itemState]{closing, cycle} {
		_, err := sm.Bind[int64](m, y.d, sm.Table{Name: "item", NoHistory: true})
		wantErr(t, err, sm.ErrInvalid)
		wantText(t, err, "unset NoHistory")
	}
	_, err := bind(t, y.d, flow, sm.Table{Name: "item"}).Fire(t.Context(), 1, goEvent)
	wantErr(t, err, sm.ErrSchema)
	wantText(t, err, "migrations.Up")
}

// A column that is taken for an id and names several rows: none of them is moved.
func machineNotUnique[TX any](t *testing.T, c Client[TX]) {
	y := newYardOf(t, c, 1, flow, sm.Table{Name: "item", ID: "amount"})
	y.insert(1, inA)
	y.insert(2, inA)
	for _, opts := range [][]sm.Option{nil, {sm.Dedup("d")}} {
		_, err := y.fire(100, goEvent, opts...)
		wantErr(t, err, sm.ErrSchema)
		wantText(t, err, `column "amount" is not unique`)
	}
	y.sql(`INSERT INTO item (id, amount, state) VALUES (5, 50, 'a'), (6, 50, 't'), (7, 50, 'x')`) // one of them could be moved
	for _, ev := range []sm.Event[itemState]{prepare, goEvent} {
		_, err := y.fire(50, ev)
		wantErr(t, err, sm.ErrSchema)
	}
	y.wantState(5, inA)
	y.sql(`DELETE FROM item WHERE amount = 50; INSERT INTO item (id, amount) VALUES (3, 7), (4, 8)`)
	plain := bind(t, y.d, sm.MustNew("plain", sm.Initial(inA), sm.Final(inT), sm.From(inA).On(goEvent).To(inT)), sm.Table{Name: "item", ID: "amount", NoHistory: true})
	for id, b := range map[int64]*sm.Binding[int64, itemState, TX]{7: y.items, 8: plain} {
		rows, err := b.FireMany(t.Context(), []int64{100, id}, goEvent)
		noErr(t, err)
		if len(rows) != 2 || !rows[1].Applied() {
			t.Errorf("got %+v", rows)
		}
		wantErr(t, rows[0].Err, sm.ErrSchema)
	}
	y.sql(`DELETE FROM item WHERE id > 2; DELETE FROM pgonce.transition`)
	y.wantState(1, inA)
	y.wantState(2, inA)
	wantInt(t, "rows of history", y.int(`SELECT count(*) FROM pgonce.transition`), 0)
}

// A migration of the user's changes the table while the program runs.
func machineTableChanges[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 1)
	for id := range int64(6) {
		y.insert(id, inA)
	}
	y.want(0, goEvent, sm.Applied, inA, inT)
	for i, change := range []string{
		`ALTER TABLE item ALTER COLUMN state TYPE varchar(20)`,
		`CREATE TYPE phase AS ENUM ('a', 'b', 't', 'x', 'late'); ALTER TABLE item ALTER COLUMN state DROP DEFAULT, ALTER COLUMN state TYPE phase USING state::phase`,
		`ALTER TABLE item ALTER COLUMN id TYPE int`,
		`ALTER TABLE item ADD COLUMN extra text`,
		`ALTER TABLE pgonce.transition ADD COLUMN later int`,
	} {
		y.db.Exec(t, change)
		opts := []sm.Option{sm.Dedup("d")}
		if i >= 3 {
			opts = append(opts, sm.Set("extra", "e"))
		}
		if _, err := y.fire(int64(i+1), goEvent, opts...); err != nil {
			t.Errorf("%s: %v", change, err)
		}
	}
	wantInt(t, "moves", y.int(`SELECT count(*) FROM pgonce.transition WHERE outcome = 0`), 6)
}

// What a role may not do is said in words; a row that it may not see is not there.
func machineForbidden[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, items+`; INSERT INTO item VALUES (1), (2), (3); ALTER TABLE item ENABLE ROW LEVEL SECURITY;
		CREATE POLICY seen ON item FOR SELECT USING (id <> 2); CREATE POLICY kept ON item FOR UPDATE USING (id <> 3)`)
	role := db.Role(t)
	via := db.Via(db.As(t, role))
	b := bind(t, c.Open(t, via, 1), flow, sm.Table{Name: "item"})
	fire := func(id int64) error {
		_, err := b.Fire(t.Context(), id, goEvent)
		return err
	}
	err := fire(1)
	wantErr(t, err, sm.ErrSchema)
	wantText(t, err, "GRANT USAGE")
	db.GrantDML(t, role)
	err = fire(1)
	wantErr(t, err, sm.ErrSchema)
	wantText(t, err, "lacks a right")
	db.Exec(t, `GRANT SELECT, UPDATE (state) ON item TO "`+role+`"`)
	noErr(t, fire(1))
	wantErr(t, fire(2), sm.ErrNotFound)
	wantErr(t, fire(3), sm.ErrNotFound)
}
