//go:build unix

package statemachine_test

import (
	"context"
	"fmt"
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

// What the other verbs write, on a server where nobody else does. A row of FireMany writes what a row of Fire does, less the commit; what finds
// nothing to do, and what only reads, writes nothing and takes no xid.
func TestWhatTheOtherVerbsWrite(t *testing.T) {
	t.Parallel()
	const rows = 1000
	pool := quiet(t, lamps+fmt.Sprintf(` WITH (fillfactor = 40); ALTER TABLE lamp ADD COLUMN since timestamptz DEFAULT now(); INSERT INTO lamp SELECT g FROM generate_series(1, %d) g`, 3*rows))
	m := sm.MustNew("lights", sm.Initial[light]("a"), sm.Final[light]("z"), from("a").On(on).To("b"), from("b").After(time.Hour).On(dim).To("z"))
	b, err := sm.Bind[int64](m, pgxdriver.New(pool), sm.Table{Name: "lamp", Since: "since"})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	ids := make([]int64, rows)
	for i := range ids {
		ids[i] = int64(i) + 1
	}
	cost := func(do func() error) (wal, xids int64) {
		t.Helper()
		wal, xids = pgtest.WAL(t, pool), pgtest.XIDs(t, pool)
		if err := do(); err != nil {
			t.Fatal(err)
		}
		return pgtest.WAL(t, pool) - wal, pgtest.XIDs(t, pool) - xids
	}
	many := func(want sm.Outcome, opts ...sm.Option) func() error {
		return func() error {
			res, err := b.FireMany(ctx, ids, on, opts...)
			for _, r := range res {
				if err == nil && (r.Outcome != want || r.Err != nil) {
					err = fmt.Errorf("got %+v", r)
				}
			}
			return err
		}
	}
	one, _ := cost(func() error {
		for id := range int64(rows) {
			if _, err := b.Fire(ctx, 2*rows+id+1, on); err != nil {
				return err
			}
		}
		return nil
	})
	wal, xids := cost(many(sm.Applied))
	t.Logf("a row of FireMany writes %d bytes of WAL, one of Fire %d", wal/rows, one/rows)
	if xids != 1 || wal >= one || wal < one/2 {
		t.Errorf("FireMany: %d bytes for a row, %d xids; Fire: %d bytes", wal/rows, xids, one/rows)
	}
	for _, table := range []string{"lamp", "pgonce.transition"} { // or the first to read a page would prune it
		if _, err := pool.Exec(ctx, `VACUUM `+table); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		what string
		do   func() error
	}{
		{"State", func() error { _, err := b.State(ctx, 1); return err }},
		{"History", func() error {
			n := 0
			for _, err := range b.History(ctx, 1) {
				if err != nil {
					return err
				}
				n++
			}
			if n != 1 {
				return fmt.Errorf("%d lines", n)
			}
			return nil
		}},
		{"VerifyHistory", func() error {
			for br, err := range b.VerifyHistory(ctx) {
				return fmt.Errorf("%v, %w", br, err)
			}
			return nil
		}},
		{"Sweep of nothing", func() error {
			res, err := b.Sweep(ctx, nil, nil)
			if len(res) > 0 {
				return fmt.Errorf("got %v", res)
			}
			return err
		}},
		{"FireMany of no such row", func() error { _, err := b.FireMany(ctx, []int64{-1, -2}, on); return err }},
		{"SQL", func() error { _, err := b.SQL(ctx); return err }},
	} {
		if wal, xids := cost(c.do); wal != 0 || xids != 0 {
			t.Errorf("%s: %d bytes of WAL, %d xids", c.what, wal, xids)
		}
	}
	// A repeat locks, which is a record for each row; it moves nothing and writes no history.
	wal, xids = cost(many(sm.AlreadyApplied))
	t.Logf("a repeat in FireMany writes %d bytes of WAL", wal/rows)
	if xids > 1 || wal/rows > 100 {
		t.Errorf("repeats: %d bytes for a row, %d xids", wal/rows, xids)
	}
	if n := pgtest.Number(t, pool, `SELECT count(*) FROM pgonce.transition`); n != 2*rows {
		t.Errorf("%d rows of history", n)
	}
}

// A table may call its columns as the history does: each statement knows which is meant.
func TestColumnsNamedAsTheHistorys(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"entity", "seq", "machine", "event", "outcome", "version", "at", "dedup"} {
		db := pgtest.New(t)
		state := "to_state"
		db.Exec(t, fmt.Sprintf(`CREATE TABLE lamp (%q bigint PRIMARY KEY, %q text NOT NULL, from_state timestamptz DEFAULT now() - interval '1 day', actor bigint DEFAULT 7);
			INSERT INTO lamp SELECT g, 'a' FROM generate_series(1, 9) g`, id, state))
		m := sm.MustNew("lights", sm.Initial[light]("a"), sm.Final[light]("z"), from("a").On(on).To("b"), from("b").On(off).To("a"), from("a").After(time.Hour).On(dim).To("z"))
		open, err := sm.Bind[int64](m, pgxdriver.New(db.Pool(t)), sm.Table{Name: "lamp", ID: id, State: state, Since: "from_state", Scope: "actor = $1"})
		if err != nil {
			t.Fatal(err)
		}
		b, ctx := open.In(7), t.Context()
		check := func(what string, got, want any, err error) {
			t.Helper()
			if err != nil || got != want {
				t.Errorf("id column %q: %s: got %v, %v, want %v", id, what, got, err, want)
			}
		}
		res, err := b.Fire(ctx, 1, on, sm.Dedup("d"))
		check("Fire", res.Outcome, sm.Applied, err)
		res, err = b.Fire(ctx, 1, on, sm.Dedup("d"))
		check("Fire again", res.Outcome, sm.AlreadyApplied, err)
		many, err := b.FireMany(ctx, []int64{1, 2}, on, sm.Dedup("d"))
		check("FireMany", fmt.Sprint(many[0].Outcome, many[1].Outcome), "AlreadyApplied Applied", err)
		res, err = b.Create(ctx, 10, "a", sm.Set("actor", 7))
		check("Create", res.Outcome, sm.Applied, err)
		res, err = b.Create(ctx, 10, "a", sm.Set("actor", 7))
		check("Create again", res.Outcome, sm.AlreadyApplied, err)
		n, err := b.Adopt(ctx, "")
		check("Adopt", n, int64(7), err)
		swept, err := b.Sweep(ctx, nil, nil)
		check("Sweep", len(swept), 7, err)
		s, err := b.State(ctx, 3)
		check("State", s, light("z"), err)
		lines := 0
		for _, e := range b.History(ctx, 3) {
			lines, err = lines+1, e
		}
		check("History", lines, 2, err)
		for br, err := range b.VerifyHistory(ctx) {
			t.Errorf("id column %q: %v, %v", id, br, err)
		}
		db.Exec(t, open.TriggerSQL(nil))
		if err := b.Verify(ctx); err != nil {
			t.Errorf("id column %q: %v", id, err)
		}
	}
}

// A time-out of any length that New takes is one that every release of Postgres reads, to the microsecond.
func TestSweepTakesEveryTimeOut(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps+`; ALTER TABLE lamp ADD COLUMN since timestamptz DEFAULT '-infinity'`)
	d := pgxdriver.New(db.Pool(t))
	for i, after := range []time.Duration{time.Microsecond, time.Second + time.Microsecond, 36 * time.Minute, 59*time.Minute + 59*time.Second + 999999*time.Microsecond, 100 * 365 * 24 * time.Hour} {
		m := sm.MustNew(fmt.Sprint("lights ", i), sm.Initial[light]("a"), sm.Final[light]("z"), from("a").After(after).On(on).To("z"))
		b, err := sm.Bind[int64](m, d, sm.Table{Name: "lamp", Since: "since"})
		if err != nil {
			t.Fatal(err)
		}
		db.Exec(t, fmt.Sprintf(`TRUNCATE lamp; INSERT INTO lamp (id, since) VALUES (1, now() - interval '%d hours' - interval '%d seconds' - interval '%d microseconds'), (2, now() - interval '%d hours' + interval '1 hour')`,
			after/time.Hour, after%time.Hour/time.Second, after%time.Second/time.Microsecond, after/time.Hour))
		rows, err := b.Sweep(t.Context(), nil, nil)
		if err != nil || len(rows) != 1 || rows[0].ID != 1 {
			t.Errorf("%v: got %+v, %v", after, rows, err)
		}
	}
}
