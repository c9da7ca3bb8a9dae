//go:build unix

package idem_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/driver/sqldriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

var refund = idem.Op{Name: "refund.create"}

func insertEffect(ctx context.Context, tx pgx.Tx) (string, error) {
	_, err := tx.Exec(ctx, `INSERT INTO effect VALUES ('r1')`)
	return "receipt", err
}

// n is how often something is done whose cost is measured.
const n = 2000

const effects = `CREATE TABLE effect (name text NOT NULL)`

// wired is a pool of one connection whose trips are counted.
func wired(t *testing.T, db *pgtest.DB, mode pgx.QueryExecMode) (*pgxpool.Pool, *pgtest.Wire) {
	t.Helper()
	wire := pgtest.NewWire()
	cfg := db.Config(t)
	cfg.MaxConns = 1
	cfg.ConnConfig.DefaultQueryExecMode = mode
	cfg.ConnConfig.DialFunc = wire.Dial(cfg.ConnConfig.DialFunc)
	cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	return db.Open(t, cfg), wire
}

// The round trips of Do and Lookup, counted on the wire: a new key costs as many as the
// bare transaction.
func TestRoundTripsOnPgx(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			db.Exec(t, effects)
			pool, wire := wired(t, db, mode)
			keys := newStore(t, pool, nil)
			do := func(id string) idem.Result[string] {
				res, err := idem.Do(t.Context(), keys, refund.Key("m1", id), idem.NoFingerprint(), insertEffect)
				if err != nil {
					t.Fatal(err)
				}
				return res
			}
			bare := func() { bareTransaction(t, pool) }
			do("warm-up") // checks the schema, prepares the statements
			do("warm-up")
			bare()

			if got := trips(wire, bare); got != 3 {
				t.Errorf("the bare transaction took %d trips", got)
			}
			if got := trips(wire, func() { do("new") }); got != 3 {
				t.Errorf("a new key took %d trips, want 3", got)
			}
			if got := trips(wire, func() { do("new"); settle(t, pool) }); got != 2 {
				t.Errorf("a repeat took %d trips, want 2 with its ROLLBACK", got)
			}
			if got := trips(wire, func() {
				if _, ok, err := idem.Lookup[string](t.Context(), keys, refund.Key("m1", "new"), idem.NoFingerprint()); !ok || err != nil {
					t.Errorf("lookup: %v, %v", ok, err)
				}
			}); got != 1 && mode != pgx.QueryExecModeCacheStatement || got > 2 {
				t.Errorf("a lookup took %d trips, want 1", got)
			}
		})
	}
}

// What the other verbs cost on pgx.
func TestRoundTripsOfTheOtherVerbs(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, effects)
	pool, wire := wired(t, db, pgx.QueryExecModeExec)
	keys := newStore(t, pool, nil)
	if err := keys.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	likely := func(id string) func(pgx.Tx) error {
		return func(pgx.Tx) error {
			_, err := idem.Do(t.Context(), keys, refund.Key("m1", id).LikelyReplay(), idem.NoFingerprint(), noEffect)
			settle(t, pool)
			return err
		}
	}
	inTx := func(id string, result error) func(pgx.Tx) error {
		return func(tx pgx.Tx) error {
			_, err := idem.DoTx(t.Context(), keys, tx, refund.Key("m1", id), idem.NoFingerprint(), func(context.Context, pgx.Tx) (string, error) {
				return "receipt", result
			})
			if result != nil && errors.Is(err, result) {
				return nil
			}
			return err
		}
	}
	seen := func(tx pgx.Tx) error {
		_, err := keys.SeenTx(t.Context(), tx, refund.Key("queue", "m1"))
		return err
	}
	for _, tc := range []struct {
		name string
		call func(pgx.Tx) error
		want int64
	}{
		{"likely replay, wrongly so", likely("a"), 1 + 2},
		{"likely replay", likely("a"), 1},
		{"DoTx, new", inTx("b", nil), 2},
		{"DoTx, repeat", inTx("b", nil), 2},
		{"DoTx, handler fails", inTx("c", errors.New("no")), 3},
		{"SeenTx, new", seen, 1},
		{"SeenTx, seen", seen, 1},
	} {
		var tx pgx.Tx
		if !strings.HasPrefix(tc.name, "likely") {
			var err error
			if tx, err = pool.Begin(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		got := trips(wire, func() {
			if err := tc.call(tx); err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
		})
		if tx != nil {
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got != tc.want {
			t.Errorf("%s took %d trips, want %d", tc.name, got, tc.want)
		}
	}
}

func noEffect(context.Context, pgx.Tx) (string, error) { return "receipt", nil }

// A crowd in one process asks for one key: one of them goes to the server.
func TestFollowersCostNoTrip(t *testing.T) {
	t.Parallel()
	pool, wire := wired(t, pgtest.New(t), pgx.QueryExecModeExec)
	keys := newStore(t, pool, nil)
	if err := keys.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	op := idem.Op{Name: "storm", Wait: time.Hour}
	const crowd = 100
	var arrived, done sync.WaitGroup
	arrived.Add(crowd)
	executed := atomic.Int64{}
	got := trips(wire, func() {
		for range crowd {
			done.Go(func() {
				arrived.Done()
				res, err := idem.Do(t.Context(), keys, op.Key("m1", "r1"), idem.NoFingerprint(), func(context.Context, pgx.Tx) (string, error) {
					arrived.Wait()
					pgtest.Eventually(t, "the crowd is in line", func() bool { return idem.Followers(keys) == crowd-1 })
					return "receipt", nil
				})
				if err != nil || res.Value != "receipt" {
					t.Errorf("got %+v, %v", res, err)
				}
				if !res.Replayed {
					executed.Add(1)
				}
			})
		}
		done.Wait()
	})
	if got != 2 || executed.Load() != 1 {
		t.Errorf("%d trips, %d executions; want 2 and 1", got, executed.Load())
	}
}

// A repeat has its answer after one trip: the answer to its ROLLBACK is withheld here.
func TestRepeatIsAnsweredAfterOneTrip(t *testing.T) {
	t.Parallel()
	pool, wire := wired(t, pgtest.New(t), pgx.QueryExecModeCacheStatement)
	keys := newStore(t, pool, nil)
	do := func() idem.Result[string] {
		res, err := idem.Do(t.Context(), keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(context.Context, pgx.Tx) (string, error) {
			return "receipt", nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	do()
	do()
	settle(t, pool)
	wire.HoldAfter(1)
	if res := do(); !res.Replayed { // returns, though nothing but the first answer has come through
		t.Errorf("got %+v", res)
	}
	if n := pool.Stat().AcquiredConns(); n != 1 {
		t.Errorf("%d connections in use, want the one that awaits its ROLLBACK", n)
	}
	wire.Release()
	settle(t, pool)
}

func TestRoundTripsOnDatabaseSQL(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	wire := pgtest.NewWire()
	cfg := db.Config(t).ConnConfig
	cfg.DialFunc = wire.Dial(cfg.DialFunc)
	std := db.SQLConfig(t, cfg)
	std.SetMaxOpenConns(1)
	keys, err := idem.New(sqldriver.New(std), nil)
	if err != nil {
		t.Fatal(err)
	}
	do := func(id string) {
		_, err := idem.Do(t.Context(), keys, refund.Key("m1", id), idem.NoFingerprint(), emptySQL)
		if err != nil {
			t.Fatal(err)
		}
		pgtest.Eventually(t, "the connection is back", func() bool { return std.Stats().InUse == 0 })
	}
	do("warm-up")
	do("warm-up")
	if got := trips(wire, func() { do("new") }); got != 7 {
		t.Errorf("a new key took %d trips, want 7", got)
	}
	if got := trips(wire, func() { do("new") }); got != 1 {
		t.Errorf("a repeat took %d trips, want 1", got)
	}
}

// What keys leave behind, on a server that writes no WAL but ours.
func TestWALAndGarbage(t *testing.T) {
	t.Parallel()
	pool := pgtest.Quiet(t)
	if _, err := pool.Exec(t.Context(), effects); err != nil {
		t.Fatal(err)
	}
	result := strings.Repeat("x", 510) // 512 bytes as JSON
	do := func(keys *idem.Store[pgx.Tx], op idem.Op) func(i int) {
		return func(i int) {
			_, err := idem.Do(t.Context(), keys, op.Key("merchant-1", uuidText(i)), idem.Bytes([]byte{byte(i)}),
				func(ctx context.Context, tx pgx.Tx) (string, error) {
					_, err := insertEffect(ctx, tx)
					return result, err
				})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	hidden, clear := newStore(t, pool, &idem.Config{HideIDs: true}), newStore(t, pool, nil)
	do(hidden, idem.Op{Name: "warm-up"})(0)

	bare := walPerOp(t, pool, n, func(int) { bareTransaction(t, pool) })
	newHidden := walPerOp(t, pool, n, do(hidden, idem.Op{Name: "refund.hidden"})) - bare
	newClear := walPerOp(t, pool, n, do(clear, idem.Op{Name: "refund.create"})) - bare
	xids := pgtest.XIDs(t, pool)
	repeat := walPerOp(t, pool, n, do(clear, idem.Op{Name: "refund.create"}))
	lookup := walPerOp(t, pool, n, func(i int) {
		_, ok, err := idem.Lookup[string](t.Context(), clear, idem.Op{Name: "refund.create"}.Key("merchant-1", uuidText(i)), idem.Bytes([]byte{byte(i)}))
		if !ok || err != nil {
			t.Fatal(ok, err)
		}
	})
	xids = pgtest.XIDs(t, pool) - xids
	t.Logf("WAL bytes: bare %d, new key +%d with the id hidden, +%d in clear, repeat %d, lookup %d; xids of %d repeats: %d",
		bare, newHidden, newClear, repeat, lookup, 2*n, xids)
	if newHidden > 796 || newClear > 828 {
		t.Errorf("a new key writes %d (hidden) and %d (clear) bytes of WAL, want at most 796 and 828", newHidden, newClear)
	}
	if repeat != 0 || lookup != 0 || xids != 0 {
		t.Errorf("repeats wrote WAL (%d, %d) or took xids (%d)", repeat, lookup, xids)
	}
	garbage(t, pool, 2*n)
}

// bareTransaction makes the effect without idempotency: what Do is measured against.
func bareTransaction(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err == nil {
		_, err = insertEffect(t.Context(), tx)
	}
	if err == nil {
		err = tx.Commit(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// garbage checks that the table was only ever inserted into.
func garbage(t *testing.T, pool *pgxpool.Pool, rows int64) {
	t.Helper()
	pool.Reset() // a backend reports its last figures when it ends
	pgtest.Eventually(t, "the statistics are in", func() bool {
		return pgtest.Number(t, pool, `SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'idem_record'`) >= rows
	})
	if n := pgtest.Number(t, pool, `SELECT n_tup_upd + n_tup_del + n_dead_tup FROM pg_stat_user_tables WHERE relname = 'idem_record'`); n != 0 {
		t.Errorf("%d updates, deletes or dead tuples, want none", n)
	}
}

func walPerOp(t *testing.T, pool *pgxpool.Pool, n int, op func(i int)) int64 {
	t.Helper()
	settle(t, pool)
	before := pgtest.WAL(t, pool)
	for i := range n {
		op(i)
	}
	settle(t, pool)
	return (pgtest.WAL(t, pool) - before) / int64(n)
}

// settle waits until every connection is back in the pool.
func settle(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	pgtest.Eventually(t, "the connections are back", func() bool { return pool.Stat().AcquiredConns() == 0 })
}

func trips(wire *pgtest.Wire, fn func()) int64 {
	before := wire.Trips()
	fn()
	return wire.Trips() - before
}

func newStore(t *testing.T, pool *pgxpool.Pool, cfg *idem.Config) *idem.Store[pgx.Tx] {
	t.Helper()
	keys, err := idem.New(pgxdriver.New(pool), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// uuidText is a text of a UUID's size, different for each i.
func uuidText(i int) string {
	return time.Unix(int64(i)*7919, 0).UTC().Format("20060102-1504-0005-8000-") + "0123456789ab"
}
