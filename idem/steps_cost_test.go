//go:build unix

package idem_test

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/sqldriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

func answer(context.Context, string) (string, error) { return "serial", nil }

func sure(context.Context, string) (string, idem.Outcome, error) { return "serial", idem.Happened, nil }

// stepsOf are functions by their kind, for any transaction.
func stepsOf[TX any]() map[string]func(context.Context, *idem.Run[TX], int) (string, error) {
	return map[string]func(context.Context, *idem.Run[TX], int) (string, error){
		"none": func(context.Context, *idem.Run[TX], int) (string, error) { return "", nil },
		"one": func(ctx context.Context, run *idem.Run[TX], _ int) (string, error) {
			return idem.Step(ctx, run, "a", answer)
		},
		"two": func(ctx context.Context, run *idem.Run[TX], _ int) (string, error) {
			_, err := idem.Step(ctx, run, "a", answer)
			if err != nil {
				return "", err
			}
			return idem.Step(ctx, run, "b", answer)
		},
		"at most once": func(ctx context.Context, run *idem.Run[TX], _ int) (string, error) {
			return idem.Step(ctx, run, "a", answer, idem.AtMostOnce(sure))
		},
		"tx": func(ctx context.Context, run *idem.Run[TX], _ int) (string, error) {
			return idem.StepTx(ctx, run, "a", func(context.Context, TX) (string, error) { return "local", nil })
		},
	}
}

// The round trips of a key alone.
func TestRoundTripsOfSteps(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool, wire := wired(t, db, pgx.QueryExecModeExec)
	keys := newStore(t, pool, nil)
	run := func(kind, id string) {
		if _, err := idem.RunSteps(t.Context(), keys, remit.Key("m1", id), idem.NoFingerprint(), 1, stepsOf[pgx.Tx]()[kind]); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		settle(t, pool)
	}
	run("one", "warm-up") // checks the schema, makes the worker
	for kind, want := range map[string]int64{"none": 3, "one": 4, "two": 5, "at most once": 5, "tx": 5} {
		if got := trips(wire, func() { run(kind, kind) }); got != want {
			t.Errorf("%s: %d trips, want %d", kind, got, want)
		}
		if got := trips(wire, func() { run(kind, kind) }); got != 2 {
			t.Errorf("repeat of %s: %d trips, want 2 with its ROLLBACK", kind, got)
		}
	}
}

// The same on database/sql.
func TestRoundTripsOfStepsOnDatabaseSQL(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	wire := pgtest.NewWire()
	cfg := db.Config(t).ConnConfig
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	cfg.DialFunc = wire.Dial(cfg.DialFunc)
	std := db.SQLConfig(t, cfg)
	std.SetMaxOpenConns(1)
	keys, err := idem.New(sqldriver.New(std), nil)
	if err != nil {
		t.Fatal(err)
	}
	run := func(kind, id string) {
		if _, err := idem.RunSteps(t.Context(), keys, remit.Key("m1", id), idem.NoFingerprint(), 1, stepsOf[*sql.Tx]()[kind]); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		pgtest.Eventually(t, "the connection is back", func() bool { return std.Stats().InUse == 0 })
	}
	run("one", "warm-up")
	for kind, want := range map[string]int64{"none": 6, "one": 7, "at most once": 8, "tx": 12} {
		if got := trips(wire, func() { run(kind, kind) }); got != want {
			t.Errorf("%s: %d trips, want %d", kind, got, want)
		}
		if got := trips(wire, func() { run(kind, kind) }); got != 1 {
			t.Errorf("repeat of %s: %d trips, want 1", kind, got)
		}
	}
}

// Commits and WAL of a key in steps, on a server that writes no WAL but ours.
func TestWALOfSteps(t *testing.T) {
	t.Parallel()
	pool := pgtest.Quiet(t)
	keys := newStore(t, pool, nil)
	fns := stepsOf[pgx.Tx]()
	do := func(kind string) func(i int) {
		return func(i int) {
			if _, err := idem.RunSteps(t.Context(), keys, remit.Key(kind, uuidText(i)), idem.NoFingerprint(), i, fns[kind]); err != nil {
				t.Fatal(err)
			}
		}
	}
	do("one")(-1)
	const n = 300
	xids := func() int64 { return pgtest.XIDs(t, pool) }
	wal := map[string]int64{}
	for kind, commits := range map[string]int64{"none": 2, "one": 3, "two": 4, "at most once": 4, "tx": 3} {
		before := xids()
		wal[kind] = walPerOp(t, pool, n, do(kind))
		if got := xids() - before; got < commits*n || got > commits*n+n/10 { // heartbeats
			t.Errorf("%s: %d commits of %d keys, want %d each", kind, got, n, commits)
		}
	}
	before := xids()
	repeat := walPerOp(t, pool, n, do("one"))
	t.Logf("WAL bytes: %v, a repeat %d", wal, repeat)
	for what, tc := range map[string]struct{ got, most int64 }{
		"a key without steps":  {wal["none"], 1000},
		"a step":               {wal["two"] - wal["one"], 500},
		"a mark":               {wal["at most once"] - wal["one"], 500},
		"a step in the tables": {wal["one"] - wal["none"], 500},
		"a repeat":             {repeat, 0},
		"xids of repeats":      {xids() - before, n / 10},
	} {
		if tc.got > tc.most || tc.got < 0 {
			t.Errorf("%s: %d bytes, want at most %d", what, tc.got, tc.most)
		}
	}
	for _, table := range []string{"idem_lease", "idem_step"} {
		if left := pgtest.Number(t, pool, `SELECT count(*) FROM pgonce.`+table); left != 0 {
			t.Errorf("%d rows left in %s", left, table)
		}
	}
	if workers := pgtest.Number(t, pool, `SELECT count(*) FROM pgonce.idem_worker`); workers != 1 {
		t.Errorf("%d workers, want one for the process", workers)
	}
}

// Keys that are written at the same time share commits.
func TestStepsShareCommits(t *testing.T) {
	t.Parallel()
	pool := pgtest.Quiet(t)
	keys := newStore(t, pool, nil)
	if err := keys.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	const crowd = 64
	before := pgtest.Number(t, pool, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint`)
	errs := make(chan error, crowd)
	for i := range crowd {
		go func() {
			_, err := idem.RunSteps(t.Context(), keys, remit.Key("m1", fmt.Sprint(i)), idem.NoFingerprint(), i, stepsOf[pgx.Tx]()["one"])
			errs <- err
		}()
	}
	for range crowd {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	commits := pgtest.Number(t, pool, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint`) - before
	t.Logf("%d commits for %d keys", commits, crowd)
	if commits > 3*crowd/2 {
		t.Errorf("%d commits for %d keys of three writes each: they do not share", commits, crowd)
	}
}

// The tables of leases and steps are empty at times. Statements that are planned then still find their rows by index.
func TestPlansOfEmptyTables(t *testing.T) {
	t.Parallel()
	pool := pgtest.Quiet(t)
	keys := newStore(t, pool, nil)
	run := func(round int) {
		var wg sync.WaitGroup
		for w := range 64 {
			wg.Go(func() {
				for i := range 10 {
					id := fmt.Sprintf("%d-%d-%d", round, w, i)
					if _, err := idem.RunSteps(t.Context(), keys, remit.Key("m1", id), idem.NoFingerprint(), i, stepsOf[pgx.Tx]()["one"]); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		pool.Reset() // new sessions plan anew; the old ones report what they did
	}
	scans := func() int64 {
		return pgtest.Number(t, pool, `SELECT sum(seq_scan)::bigint FROM pg_stat_user_tables WHERE relname IN ('idem_lease', 'idem_step')`)
	}
	all := func() int64 {
		return pgtest.Number(t, pool, `SELECT sum(seq_scan + coalesce(idx_scan, 0))::bigint FROM pg_stat_user_tables WHERE relname IN ('idem_lease', 'idem_step')`)
	}
	run(1)
	for _, table := range []string{"idem_lease", "idem_step"} {
		if _, err := pool.Exec(t.Context(), `VACUUM pgonce.`+table); err != nil {
			t.Fatal(err)
		}
	}
	pool.Reset()
	pgtest.Eventually(t, "the sessions have ended, and so reported", func() bool {
		return pgtest.Number(t, pool, `SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'`) == 1
	})
	scanned, before := scans(), all()
	run(2)
	pgtest.Eventually(t, "the sessions have reported", func() bool { return all() >= before+4*640 })
	if n := scans() - scanned; n != 0 {
		t.Errorf("%d of the statements scanned a whole table", n)
	}
}
