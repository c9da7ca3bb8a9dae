//go:build unix

package idem_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/driver/sqldriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/migrations"
)

// fill makes n keys with results of a size, as the library writes them.
func fill(t *testing.T, pool *pgxpool.Pool, n, size int, clear bool) {
	t.Helper()
	_, err := pool.Exec(t.Context(), `INSERT INTO pgonce.idem_record
		SELECT i * 7919, now(), now() + interval '1 h', now() + interval '2 h', 1, 1, 'merchant-1', substr(sha256(($1 || i)::bytea), 1, 16), $1,
		       CASE WHEN $4 THEN md5(i::text)::uuid::text END, substr(sha256(i::text::bytea), 1, 16), convert_to(repeat('x', $3), 'UTF8')
		FROM generate_series(1, $2::int) i ORDER BY md5(i::text)`, refund.Name, n, size, clear)
	if err != nil {
		t.Fatal(err)
	}
}

func passTime(t *testing.T, pool *pgxpool.Pool, interval string) {
	t.Helper()
	// Written anew, so that the pages are as full as inserts leave them.
	for _, sql := range []string{
		`CREATE TABLE aside AS SELECT attempt, created_at - interval '` + interval + `' AS c, replay_until - interval '` + interval + `' AS u,
			remember_until - interval '` + interval + `' AS m, state, fp_ver, scope, digest, op, id, fp, result FROM pgonce.idem_record`,
		`TRUNCATE pgonce.idem_record`,
		`INSERT INTO pgonce.idem_record SELECT * FROM aside`,
		`DROP TABLE aside`,
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
}

// What the purge writes: dropping a result is a HOT update whatever the result's size, so no index grows and
// no VACUUM is needed for the old versions; forgetting a key is one delete.
func TestPurgeCost(t *testing.T) {
	t.Parallel()
	for _, size := range []int{2, 30, 512, 2000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Quiet(t)
			keys := newStore(t, pool, &idem.Config{PurgePause: time.Microsecond})
			fill(t, pool, n, size, true)
			passTime(t, pool, "61 minutes")
			purge := func() (stats idem.PurgeStats, wal int64) {
				const lsn = `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint`
				settle(t, pool)
				before := pgtest.Number(t, pool, lsn)
				stats, err := keys.PurgeOnce(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return stats, pgtest.Number(t, pool, lsn) - before
			}
			index, heap := `SELECT pg_relation_size('pgonce.idem_record_pkey')`, `SELECT pg_relation_size('pgonce.idem_record')`
			indexBefore, heapBefore := pgtest.Number(t, pool, index), pgtest.Number(t, pool, heap)
			cleared, wal := purge()
			t.Logf("result of %d bytes: %+v, %d bytes of WAL a row", size, cleared, wal/n)
			if cleared.Cleared != n || cleared.Deleted != 0 || wal/n > 100 {
				t.Errorf("cleared: %+v with %d bytes of WAL a row, want at most 100", cleared, wal/n)
			}
			if i, h := pgtest.Number(t, pool, index), pgtest.Number(t, pool, heap); i != indexBefore || h != heapBefore {
				t.Errorf("index %d -> %d, heap %d -> %d", indexBefore, i, heapBefore, h)
			}
			pool.Reset() // a backend reports its last figures when it ends
			pgtest.Eventually(t, "the statistics are in", func() bool {
				return pgtest.Number(t, pool, `SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'idem_record'`) >= n
			})
			if cold := pgtest.Number(t, pool, `SELECT n_tup_upd - n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'idem_record'`); cold != 0 {
				t.Errorf("%d of %d updates were not HOT", cold, n)
			}
			purge() // cleans up what the one before has left
			if again, wal := purge(); again.Cleared != 0 || wal > 500*again.Batches {
				t.Errorf("a pass with nothing to do: %+v, %d bytes of WAL", again, wal)
			}
			if _, err := pool.Exec(t.Context(), `UPDATE pgonce.idem_record SET remember_until = replay_until`); err != nil {
				t.Fatal(err)
			}
			deleted, wal := purge()
			t.Logf("forgotten: %+v, %d bytes of WAL a row", deleted, wal/n)
			if deleted.Deleted != n || deleted.Cleared != 0 || wal/n > 75 {
				t.Errorf("deleted: %+v with %d bytes of WAL a row, want at most 75", deleted, wal/n)
			}
		})
	}
}

// A batch is 3 round trips on pgx and 7 on database/sql, whatever it has to do.
func TestPurgeRoundTrips(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool, wire := wired(t, db, pgx.QueryExecModeExec)
	db.Exec(t, `ALTER TABLE pgonce.idem_record SET (autovacuum_enabled = off)`) // which would cut the table short meanwhile
	keys := newStore(t, pool, &idem.Config{PurgePause: time.Microsecond, PurgePages: 4})
	fill(t, pool, n, 512, true)
	passTime(t, pool, "3 hours")
	if err := keys.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, deleted := range []int64{n, 0} {
		var stats idem.PurgeStats
		got := trips(wire, func() {
			var err error
			if stats, err = keys.PurgeOnce(t.Context()); err != nil {
				t.Fatal(err)
			}
			settle(t, pool)
		})
		if got != 3*stats.Batches || stats.Deleted != deleted || stats.Batches < 10 {
			t.Errorf("%d trips for %+v, want 3 a batch", got, stats)
		}
	}
	key := refund.Key("m1", "r1")
	if _, err := idem.Do(t.Context(), keys, key, idem.NoFingerprint(), noEffect); err != nil {
		t.Fatal(err)
	}
	settle(t, pool)
	for name, tc := range map[string]struct {
		call func() error
		want int64
	}{
		"Inspect": {func() error { _, err := keys.Inspect(t.Context(), key); return err }, 2},
		"List": {func() error {
			for _, err := range keys.List(t.Context(), "m1", nil) {
				return err
			}
			return errors.New("nothing listed")
		}, 1},
	} {
		if got := trips(wire, func() {
			if err := tc.call(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}); got != tc.want {
			t.Errorf("%s took %d trips, want %d", name, got, tc.want)
		}
	}
	if got := trips(wire, func() {
		if err := keys.Forget(t.Context(), key, "test"); err != nil {
			t.Error(err)
		}
	}); got != 2 {
		t.Errorf("Forget took %d trips, want 2", got)
	}

	wire = pgtest.NewWire()
	cfg := db.Config(t).ConnConfig
	cfg.DialFunc = wire.Dial(cfg.DialFunc)
	std := db.SQLConfig(t, cfg)
	std.SetMaxOpenConns(1)
	onSQL, err := idem.New(sqldriver.New(std), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the first prepares the statements
		if _, err := onSQL.PurgeOnce(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = pool.Exec(t.Context(), `TRUNCATE pgonce.idem_record`)
	fill(t, pool, 10, 512, true)
	if got := trips(wire, func() {
		if stats, err := onSQL.PurgeOnce(t.Context()); err != nil || stats.Batches != 1 || stats.Scanned != 10 {
			t.Errorf("%+v, %v", stats, err)
		}
	}); got != 7 {
		t.Errorf("a batch took %d trips on database/sql, want 7", got)
	}
}

// A range of pages is read by itself, by a plan made for any range, on a table that nobody has analysed.
func TestPurgeReadsItsPagesOnly(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	conn, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	fill(t, db.Pool(t), n, 512, true)
	for name, sql := range map[string]string{"del": idem.SQLPurgeDelete, "look": idem.SQLPurgeLook, "clear": idem.SQLPurgeClear} {
		args, types := `'(1,0)', '(2,0)'`, `text, text`
		if name == "clear" {
			args, types = args+`, 1500`, types+`, bigint`
		}
		if _, err := conn.Exec(t.Context(), `SET plan_cache_mode = force_generic_plan; PREPARE `+name+`(`+types+`) AS `+sql); err != nil {
			t.Fatal(err)
		}
		rows, err := conn.Query(t.Context(), `EXPLAIN EXECUTE `+name+`(`+args+`)`)
		if err != nil {
			t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		if plan := strings.Join(lines, "\n"); !strings.Contains(plan, "Tid Range Scan on idem_record") || strings.Contains(plan, "Seq Scan") {
			t.Errorf("%s:\n%s", name, plan)
		}
	}
}

// How many bytes a remembered key takes, heap and index, when its rows came in the order of no key: the figures of
// docs/operations.md.
func TestBytesPerKey(t *testing.T) {
	t.Parallel()
	pool := pgtest.Quiet(t)
	const keys = 20_000
	for _, tc := range []struct {
		name   string
		size   int
		clear  bool
		atMost int64
	}{
		{"id hidden, result dropped", -1, false, 225},
		{"id in clear, result dropped", -1, true, 280},
		{"id in clear, result of 30 bytes", 30, true, 320},
		{"id in clear, result of 512 bytes", 512, true, 985},
	} {
		if _, err := pool.Exec(t.Context(), `TRUNCATE pgonce.idem_record`); err != nil {
			t.Fatal(err)
		}
		fill(t, pool, keys, max(tc.size, 0), tc.clear)
		if tc.size < 0 { // as it is when it was purged and rewritten
			if _, err := pool.Exec(t.Context(), `UPDATE pgonce.idem_record SET result = NULL`); err != nil {
				t.Fatal(err)
			}
			if _, err := pool.Exec(t.Context(), `VACUUM FULL pgonce.idem_record`); err != nil {
				t.Fatal(err)
			}
		}
		heap := pgtest.Number(t, pool, `SELECT pg_relation_size('pgonce.idem_record')`) / keys
		index := pgtest.Number(t, pool, `SELECT pg_relation_size('pgonce.idem_record_pkey')`) / keys
		t.Logf("%s: %d bytes a key (heap %d, index %d)", tc.name, heap+index, heap, index)
		if heap+index > tc.atMost {
			t.Errorf("%s: %d bytes a key, want at most %d", tc.name, heap+index, tc.atMost)
		}
	}
}

// On a database that takes no writes nothing is purged and nothing is forgotten, and both say why.
func TestPurgeReadOnly(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `ALTER DATABASE "`+db.Name+`" SET default_transaction_read_only = on`)
	keys := newStore(t, db.Pool(t), nil)
	_, err := keys.PurgeOnce(t.Context())
	wantErr(t, err, idem.ErrReadOnly, "purge")
	wantErr(t, keys.Forget(t.Context(), refund.Key("m1", "r1"), "test"), idem.ErrReadOnly, "forget")
}

// A purge ends with its ctx, in the middle of its rest too, and says how far it came.
func TestPurgeEndsWithContext(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool := db.Pool(t)
	fill(t, pool, n, 512, true)
	keys := newStore(t, pool, &idem.Config{PurgePages: 1, PurgePause: time.Hour})
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	go func() {
		pgtest.Eventually(t, "a batch is done", func() bool { return db.Int(t, `SELECT block FROM pgonce.idem_purge`) == 1 })
		cancel(enough)
	}()
	stats, err := keys.PurgeOnce(ctx)
	if !errors.Is(err, enough) || errors.Is(err, idem.ErrUnavailable) || stats.Batches != 1 || stats.Scanned == 0 {
		t.Errorf("%+v, %v", stats, err)
	}
	if err := keys.Maintain(ctx); err != nil {
		t.Errorf("Maintain under a ctx that has ended: %v", err)
	}
}

// Two schemas are two memories: what is done in one leaves the other alone.
func TestMemoryInAnotherSchema(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool := db.Pool(t)
	if _, err := migrations.UpPool(t.Context(), pool, &migrations.Config{Schema: "billing_once"}); err != nil {
		t.Fatal(err)
	}
	key := refund.Key("m1", "r1")
	here, there := newStore(t, pool, nil), newStore(t, pool, &idem.Config{Schema: "billing_once"})
	for _, keys := range []*idem.Store[pgx.Tx]{here, there} {
		if _, err := idem.Do(t.Context(), keys, key, idem.NoFingerprint(), noEffect); err != nil {
			t.Fatal(err)
		}
	}
	db.Exec(t, `UPDATE billing_once.idem_record SET replay_until = now(); UPDATE pgonce.idem_record SET replay_until = now()`)
	if stats, err := there.PurgeOnce(t.Context()); err != nil || stats.Cleared != 1 {
		t.Errorf("%+v, %v", stats, err)
	}
	for keys, want := range map[*idem.Store[pgx.Tx]]int64{here: int64(len(`"receipt"`)), there: -1} {
		if rec, err := keys.Inspect(t.Context(), key); err != nil || rec.ResultBytes != want {
			t.Errorf("%+v, %v", rec, err)
		}
	}
	if err := there.Forget(t.Context(), key, "test"); err != nil {
		t.Error(err)
	}
	left := map[*idem.Store[pgx.Tx]]int{}
	for keys := range map[*idem.Store[pgx.Tx]]bool{here: true, there: true} {
		for _, err := range keys.List(t.Context(), "m1", nil) {
			if err != nil {
				t.Error(err)
			}
			left[keys]++
		}
	}
	if left[here] != 1 || left[there] != 0 || db.Int(t, `SELECT count(*) FROM billing_once.idem_forgotten`) != 1 {
		t.Errorf("%d records here, %d there", left[here], left[there])
	}
}

func TestPurgeConfig(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t).Pool(t)
	for _, cfg := range []idem.Config{{PurgeEvery: -1}, {PurgePause: -1}, {PurgePages: -1}, {PurgePages: 1 << 20}} {
		if _, err := idem.New(pgxdriver.New(pool), &cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}
