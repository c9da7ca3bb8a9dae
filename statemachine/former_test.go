//go:build unix

package statemachine_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
	"github.com/pgonce/pgonce/statemachine/smtest"
)

// A state gets another name in four releases, while programs of two releases run at a time. No move is lost or made twice, the database
// holds all of it to the machine of the day, and the history has no break.
func TestAStateIsRenamed(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps+`; INSERT INTO lamp SELECT generate_series(1, 6)`)
	pool := db.Pool(t)
	rename := sm.NewEvent[light]("rename")
	release := func(rules ...sm.Rule[light]) *sm.Binding[int64, light, pgx.Tx] {
		t.Helper()
		b, err := sm.Bind[int64](sm.MustNew("lights", append(rules, sm.Initial[light]("a"), sm.Final[light]("z"))...), pgxdriver.New(pool), sm.Table{Name: "lamp"})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	fire := func(b *sm.Binding[int64, light, pgx.Tx], id int64, ev sm.Event[light], want sm.Outcome) {
		t.Helper()
		if res, err := b.Fire(t.Context(), id, ev, sm.Dedup(ev.Name())); err != nil || res.Outcome != want {
			t.Errorf("row %d, %q: got %+v, %v", id, ev.Name(), res, err)
		}
	}
	one := release(from("a").On(on).To("old"), from("old").On(off).To("z"))
	two := release(from("a").On(on).To("old"), from("old", "new").On(off).To("z"), from("old").On(rename).To("new"))
	three := release(sm.Former[light]("old"), from("a").On(on).To("new"), from("old", "new").On(off).To("z"), from("old").On(rename).To("new"))
	four := release(from("a").On(on).To("new"), from("new").On(off).To("z"))

	db.Exec(t, one.TriggerSQL(nil))
	fire(one, 1, on, sm.Applied)
	db.Exec(t, two.TriggerSQL(nil))
	fire(one, 2, on, sm.Applied)
	fire(two, 2, on, sm.AlreadyApplied)

	// The third needs an edge that the second does not have; both run while the union of them is there.
	if err := exec(t, db, body(three, nil)); err == nil || !strings.Contains(err.Error(), "a -> old") {
		t.Errorf("an edge that the second release uses was taken away: %v", err)
	}
	union := release(from("a").On(on).To("old"), from("a").On(dim).To("new"), from("old", "new").On(off).To("z"), from("old").On(rename).To("new"))
	db.Exec(t, union.TriggerSQL(nil))
	fire(three, 3, on, sm.Applied)
	fire(two, 4, on, sm.Applied)
	fire(two, 3, on, sm.AlreadyApplied)
	fire(three, 4, on, sm.AlreadyApplied)
	fire(two, 3, off, sm.Applied)
	fire(three, 1, off, sm.Applied)

	db.Exec(t, three.TriggerSQL(&sm.TriggerConfig{Contract: true}))
	if err := three.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := two.Fire(t.Context(), 5, on); !errors.Is(err, sm.ErrTriggerRefused) {
		t.Errorf("nothing leads to a former state: got %v", err)
	}
	if err := exec(t, db, body(four, &sm.TriggerConfig{Contract: true})); err == nil || !strings.Contains(err.Error(), "rows are in states that this takes away: old") {
		t.Errorf("a state that rows are in was taken away: %v", err)
	}
	if found := found(t, four.Verify(t.Context())); len(found) == 0 {
		t.Error("Verify of the fourth release finds nothing while rows are in the former state")
	}
	rows, err := three.FireMany(t.Context(), []int64{2, 4}, rename)
	for _, r := range rows {
		if r.Err != nil || !r.Applied() || r.From != "old" || r.To != "new" {
			t.Errorf("got %+v", r)
		}
	}
	if err != nil || len(rows) != 2 {
		t.Errorf("got %v, %v", rows, err)
	}
	fire(three, 2, on, sm.AlreadyApplied)
	db.Exec(t, four.TriggerSQL(&sm.TriggerConfig{Contract: true}))
	fire(four, 2, on, sm.AlreadyApplied)
	fire(four, 2, off, sm.Applied)
	if err := four.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	for br, err := range four.VerifyHistory(t.Context()) {
		t.Errorf("%v, %v", br, err)
	}
}

// body is the migration without its transactions.
func body(b *sm.Binding[int64, light, pgx.Tx], cfg *sm.TriggerConfig) string {
	return strings.NewReplacer("BEGIN;", "", "COMMIT;", "").Replace(b.TriggerSQL(cfg))
}

// Run asks for rows in former states too.
func TestRunTriesFormerStates(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE lamp (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, state text NOT NULL)`)
	pool := db.Pool(t)
	b, err := sm.Bind[int64](sm.MustNew("lights", sm.Initial[light]("a"), sm.Final[light]("z"), sm.Former[light]("old"), from("a", "old").On(on).To("z")), pgxdriver.New(pool), sm.Table{Name: "lamp"})
	if err != nil {
		t.Fatal(err)
	}
	db.Exec(t, b.TriggerSQL(nil))
	asked := map[light]int{}
	smtest.Run(t, pgxdriver.New(pool), b, func(ctx context.Context, state light) (id int64, err error) {
		asked[state]++
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `SELECT set_config('pgonce.adopt', 'lights', true)`)
			if err != nil {
				return err
			}
			return tx.QueryRow(ctx, `INSERT INTO lamp (state) VALUES ($1) RETURNING id`, string(state)).Scan(&id)
		})
		return id, err
	}, nil)
	if asked["old"] == 0 {
		t.Errorf("asked for %v", asked)
	}
}
