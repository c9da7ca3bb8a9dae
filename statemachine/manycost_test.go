//go:build unix

package statemachine_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

// The round trips of the verbs beside Fire, counted on the wire, each made twice before to warm up.
func TestRoundTripsOfTheOtherVerbs(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps+`; ALTER TABLE lamp ADD COLUMN since timestamptz DEFAULT now() - interval '1 day'; INSERT INTO lamp SELECT generate_series(1, 5000)`)
	wire := pgtest.NewWire()
	cfg := db.Config(t)
	cfg.MaxConns = 1
	cfg.ConnConfig.DialFunc = wire.Dial(cfg.ConnConfig.DialFunc)
	cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	m := sm.MustNew("lights", sm.Initial[light]("a"), sm.Final[light]("z"), from("a").On(on).To("b"), from("b").On(off).To("c"), from("b").On(fail).To("c"),
		from("c").After(time.Hour).On(dim).To("z"))
	b, err := sm.Bind[int64](m, pgxdriver.New(db.Open(t, cfg)), sm.Table{Name: "lamp", Since: "since"})
	if err != nil {
		t.Fatal(err)
	}
	next := int64(0)
	ids := func(n int) []int64 {
		out := make([]int64, n)
		for i := range out {
			next++
			out[i] = next
		}
		return out
	}
	guard := func(context.Context, pgx.Tx, light) error { return nil }
	some := ids(3)
	ctx := t.Context()
	for _, c := range []struct {
		what  string
		trips int64
		do    func() error
	}{
		{"FireMany of 100", 1, func() error { _, err := b.FireMany(ctx, ids(100), on); return err }},
		{"FireMany of 1001", 2, func() error { _, err := b.FireMany(ctx, ids(1001), on); return err }},
		{"FireMany of repeats", 1, func() error { _, err := b.FireMany(ctx, some, on); return err }},
		{"FireMany with an id", 1, func() error { _, err := b.FireMany(ctx, some, on, sm.Dedup("d")); return err }},
		{"FireFunc", 4, func() error { _, err := b.FireFunc(ctx, ids(1)[0], on, guard); return err }},
		{"Create", 1, func() error { next++; _, err := b.Create(ctx, next+100000, "a"); return err }},
		{"Create again", 3, func() error { _, err := b.Create(ctx, next+100000, "a"); return err }},
		{"State", 1, func() error { _, err := b.State(ctx, 1); return err }},
		{"Sweep that finds nothing", 3, func() error { _, err := b.Sweep(ctx, nil, nil); return err }},
	} {
		for n := range 3 {
			before := wire.Trips()
			if err := c.do(); err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
			if got := wire.Trips() - before; n == 2 && got != c.trips {
				t.Errorf("%s took %d trips, want %d", c.what, got, c.trips)
			}
		}
	}
}
