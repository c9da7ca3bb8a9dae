//go:build unix

package statemachine_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/driver/sqldriver"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

// lamps is a table of lights.
const lamps = `CREATE TABLE lamp (id bigint PRIMARY KEY, state text NOT NULL DEFAULT 'a', watts bigint NOT NULL DEFAULT 10)`

// In this machine the state tells that on was applied, and does not tell which of off and fail it was.
var lights = sm.MustNew("lights", sm.Initial[light]("a"), sm.Final[light]("z"), from("a").On(on).To("b"),
	from("b").On(off).To("c"), from("b").On(fail).To("c"), from("c").On(dim).To("z"), from("z").Ignore(on))

func bindLamps[TX any](t *testing.T, db pg.Driver[TX], table sm.Table) *sm.Binding[int64, light, TX] {
	t.Helper()
	table.Name = "lamp"
	m := lights
	if table.NoHistory {
		m = sm.MustNew("lights", sm.Initial[light]("a"), sm.Final[light]("z"), from("a").On(on).To("b"), from("b").On(off).To("c"), from("c").On(dim).To("z"), from("z").Ignore(on))
	}
	b, err := sm.Bind[int64](m, db, table)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// costs are calls in the order in which they can be made, with the trips that each takes.
var costs = []struct {
	what    string
	ev      sm.Event[light]
	opts    []sm.Option
	outcome sm.Outcome // 0 is a conflict
	trips   int64
}{
	{"a move", on, []sm.Option{sm.Where("watts > $1", 1), sm.Set("watts", 11)}, sm.Applied, 1},
	{"its repeat", on, nil, sm.AlreadyApplied, 1},
	{"its repeat, locked", on, []sm.Option{sm.Lock()}, sm.AlreadyApplied, 1},
	{"a conflict", dim, nil, 0, 2},
	{"a conflict with conditions", dim, []sm.Option{sm.Where("watts > $1", 1)}, 0, 1},
	{"a move with an id", off, []sm.Option{sm.Dedup("1")}, sm.Applied, 1},
	{"its repeat by id", off, []sm.Option{sm.Dedup("1")}, sm.AlreadyApplied, 1},
	{"its repeat by history", off, nil, sm.AlreadyApplied, 1},
	{"a new id that finds it done", off, []sm.Option{sm.Dedup("2")}, sm.AlreadyApplied, 4},
	{"a conflict that only the history shows", fail, nil, 0, 5},
	{"a conflict with an id", on, []sm.Option{sm.Dedup("3")}, 0, 4},
	{"another move", dim, nil, sm.Applied, 1},
	{"a superseded event", on, nil, sm.Superseded, 1},
	{"a superseded event with an id", on, []sm.Option{sm.Dedup("4")}, sm.Superseded, 1},
}

// The round trips of Fire, counted on the wire. What takes four is confirmed in a transaction: the
// statement, BEGIN with the statement, the statement, COMMIT or ROLLBACK. Two is a call that is simple enough for the statement that knows
// no conflict, and is one; so is the first of five.
func TestRoundTripsOnPgx(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			db.Exec(t, lamps+`; INSERT INTO lamp VALUES (1), (2), (3)`)
			wire := pgtest.NewWire()
			cfg := db.Config(t)
			cfg.MaxConns = 1
			cfg.ConnConfig.DefaultQueryExecMode = mode
			cfg.ConnConfig.DialFunc = wire.Dial(cfg.ConnConfig.DialFunc)
			cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
			pool := db.Open(t, cfg)
			b := bindLamps(t, pgxdriver.New(pool), sm.Table{})
			countTrips(t, wire, func(id int64, ev sm.Event[light], opts []sm.Option) (sm.Result[light], error) {
				return b.Fire(t.Context(), id, ev, opts...)
			}, func(trips int64) int64 { return trips })

			// In a transaction what is confirmed takes two trips less, and nothing is ended.
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(t.Context()) }()
			_, _ = tx.Exec(t.Context(), `DELETE FROM pgonce.transition; UPDATE lamp SET state = 'a'`, pgx.QueryExecModeSimpleProtocol)
			countTrips(t, wire, func(id int64, ev sm.Event[light], opts []sm.Option) (sm.Result[light], error) {
				return b.FireTx(t.Context(), tx, id, ev, opts...)
			}, func(trips int64) int64 {
				if trips >= 4 {
					trips -= 2
				}
				return trips
			})
		})
	}
}

func TestRoundTripsOnDatabaseSQL(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps+`; INSERT INTO lamp VALUES (1), (2), (3)`)
	wire := pgtest.NewWire()
	cfg := db.Config(t).ConnConfig
	cfg.DialFunc = wire.Dial(cfg.DialFunc)
	std := db.SQLConfig(t, cfg)
	std.SetMaxOpenConns(1)
	b := bindLamps(t, sqldriver.New(std), sm.Table{})
	countTrips(t, wire, func(id int64, ev sm.Event[light], opts []sm.Option) (sm.Result[light], error) {
		return b.Fire(t.Context(), id, ev, opts...)
	}, func(trips int64) int64 {
		if trips >= 4 {
			trips++ // BEGIN travels alone
		}
		return trips
	})
}

// countTrips makes the calls on two rows to warm up, and counts on the third.
func countTrips(t *testing.T, wire *pgtest.Wire, fire func(int64, sm.Event[light], []sm.Option) (sm.Result[light], error), want func(int64) int64) {
	t.Helper()
	for id := range int64(3) {
		for _, c := range costs {
			before := wire.Trips()
			res, err := fire(id+1, c.ev, c.opts)
			if res.Outcome != c.outcome || (c.outcome == 0) != errors.Is(err, sm.ErrConflict) {
				t.Errorf("%s: got %+v, %v", c.what, res, err)
			}
			if got := wire.Trips() - before; id == 2 && got != want(c.trips) {
				t.Errorf("%s took %d trips, want %d", c.what, got, want(c.trips))
			}
		}
	}
}

// What moves and repeats leave behind, on a server that writes no WAL but ours. A repeat leaves nothing: no WAL, no
// number of a transaction, no lock on the row.
func TestRepeatsWriteNothing(t *testing.T) {
	t.Parallel()
	const rows = 500
	pool := quiet(t, lamps+fmt.Sprintf(`; INSERT INTO lamp SELECT g FROM generate_series(1, %d) g`, rows))
	b, plain := bindLamps(t, pgxdriver.New(pool), sm.Table{}), bindLamps(t, pgxdriver.New(pool), sm.Table{NoHistory: true})
	all := func(b *sm.Binding[int64, light, pgx.Tx], ev sm.Event[light], want sm.Outcome, opts ...sm.Option) (wal, xids int64) {
		wal, xids = pgtest.WAL(t, pool), pgtest.XIDs(t, pool)
		for id := range int64(rows) {
			if res, err := b.Fire(t.Context(), id+1, ev, opts...); err != nil || res.Outcome != want {
				t.Fatalf("%s: got %+v, %v", ev.Name(), res, err)
			}
		}
		return (pgtest.WAL(t, pool) - wal) / rows, pgtest.XIDs(t, pool) - xids
	}
	moved, xids := all(b, on, sm.Applied)
	t.Logf("a move writes %d bytes of WAL, %d took %d xids", moved, rows, xids)
	if moved == 0 || xids < rows {
		t.Error("the measure does not work")
	}
	nothing := func(what string, wal, xids int64) {
		t.Helper()
		if wal != 0 || xids != 0 {
			t.Errorf("%s: %d bytes of WAL each, %d xids", what, wal, xids)
		}
	}
	repeat := func(what string, b *sm.Binding[int64, light, pgx.Tx], ev sm.Event[light], want sm.Outcome, opts ...sm.Option) {
		t.Helper()
		wal, xids := all(b, ev, want, opts...)
		nothing(what, wal, xids)
	}
	repeat("a repeat by state", b, on, sm.AlreadyApplied, sm.Match("watts = $1", 10))
	repeat("a repeat without a history", plain, on, sm.AlreadyApplied)
	withID, _ := all(b, off, sm.Applied, sm.Dedup("evt_1234567890123456789012"))
	t.Logf("a move with a dedup id of 26 bytes writes %d bytes of WAL", withID)
	repeat("a repeat by id", b, off, sm.AlreadyApplied, sm.Dedup("evt_1234567890123456789012"))
	repeat("a repeat by history", b, off, sm.AlreadyApplied)
	all(b, dim, sm.Applied)
	repeat("a superseded event", b, on, sm.Superseded)
	if n := pgtest.Number(t, pool, `SELECT count(*) FROM pgonce.transition`); n != 3*rows {
		t.Errorf("%d rows of history", n)
	}
}

// quiet is a server where nobody else writes, with what the test needs there.
func quiet(t *testing.T, setUp string) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Quiet(t)
	if _, err := pool.Exec(t.Context(), setUp); err != nil {
		t.Fatal(err)
	}
	return pool
}
