//go:build unix

package conformance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// quick is a purge in small steps.
var quick = &idem.Config{PurgePause: time.Microsecond, PurgePages: 1}

// age makes the records of an operation older.
func (b *bench[TX]) age(op, interval string) {
	b.t.Helper()
	b.db.Exec(b.t, `UPDATE pgonce.idem_record SET created_at = created_at - interval '`+interval+`',
		replay_until = replay_until - interval '`+interval+`', remember_until = remember_until - interval '`+interval+`' WHERE op = '`+op+`'`)
}

// fill makes records of one operation, a few pages of them, that are as old as is said.
func (b *bench[TX]) fill(op string, n int, result, age string) {
	b.t.Helper()
	b.db.Exec(b.t, fmt.Sprintf(`INSERT INTO pgonce.idem_record
		SELECT i, now() - interval '%[4]s', now() - interval '%[4]s' + interval '1 h', now() - interval '%[4]s' + interval '2 h',
		       1, 0, 'm1', sha256(('%[1]s' || i)::bytea), '%[1]s', 'id' || i, NULL, '%[3]s' FROM generate_series(1, %[2]d) i`, op, n, result, age))
}

// What the purge does to each kind of record, and to those whose time has not come by a minute.
func idemPurge[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects)
	b := at(t, c, db, c.Open(t, db, 2), quick)
	ops := map[string]idem.Op{
		"fresh": {Name: "fresh", ReplayFor: time.Hour, RememberFor: 2 * time.Hour}, "replayed": {Name: "replayed", ReplayFor: time.Hour, RememberFor: 2 * time.Hour},
		"expired": {Name: "expired", ReplayFor: time.Hour, RememberFor: 2 * time.Hour}, "remembered": {Name: "remembered", ReplayFor: time.Hour, RememberFor: 2 * time.Hour},
		"forgotten": {Name: "forgotten", ReplayFor: time.Hour, RememberFor: 2 * time.Hour}, "forever": {Name: "forever", ReplayFor: idem.Forever, RememberFor: idem.Forever},
		"once": {Name: "once", ReplayFor: time.Hour, RememberFor: idem.Forever}, "unknown": {Name: "unknown"}, "refused": {Name: "refused", ReplayFor: time.Hour},
	}
	do := func(name string) error {
		_, err := idem.Do(t.Context(), b.keys, ops[name].Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
			if name == "refused" {
				return "", idem.Final(errRefused)
			}
			return b.effect(name)(ctx, tx)
		})
		return err
	}
	for name := range ops {
		if err := do(name); err != nil && name != "refused" {
			t.Fatal(err)
		}
	}
	for op, age := range map[string]string{
		"replayed": "59 minutes", "expired": "61 minutes", "remembered": "119 minutes", "forgotten": "121 minutes",
		"forever": "1000 years", "once": "1000 years", "refused": "61 minutes", "unknown": "1000 years",
	} {
		b.age(op, age)
	}
	db.Exec(t, `UPDATE pgonce.idem_record SET state = 3 WHERE op = 'unknown'`)
	wantErr(t, do("forgotten"), idem.ErrExpired) // RememberFor is a minimum
	stats, err := b.keys.PurgeOnce(t.Context())
	noErr(t, err)
	if stats.Scanned < int64(len(ops)) || stats.Cleared != 4 || stats.Deleted != 1 || stats.Skipped != 0 || stats.Batches < 1 {
		t.Errorf("got %+v", stats)
	}
	for name, want := range map[string]error{
		"fresh": nil, "replayed": nil, "expired": idem.ErrExpired, "remembered": idem.ErrExpired, "forever": nil, "once": idem.ErrExpired,
		"unknown": idem.ErrUnknownOutcome, "refused": idem.ErrExpired,
	} {
		if err := do(name); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
	}
	wantInt(t, "results kept", db.Int(t, `SELECT count(*) FROM pgonce.idem_record WHERE result IS NOT NULL`), 4)
	b.effects(8)
	noErr(t, do("forgotten")) // it is a new key now
	b.effects(9)
	wantInt(t, "totals", db.Int(t, `SELECT count(*) FROM pgonce.idem_purge
		WHERE cleared = 4 AND deleted = 1 AND block = 0 AND pass = 1 AND worker = 0 AND finished_at >= began_at`), 1)
	if stats, err = b.keys.PurgeOnce(t.Context()); err != nil || stats.Cleared+stats.Deleted != 0 {
		t.Errorf("a second purge: %+v, %v", stats, err)
	}
}

// Purgers share the work: each row is purged by one of them, and each of them returns when all are.
func idemPurgeShared[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	b := at(t, c, db, c.Open(t, db, 6), quick)
	b.fill("old", 200, strings.Repeat("x", 500), "3 hours")
	b.fill("middle", 200, strings.Repeat("x", 500), "90 minutes")
	b.fill("new", 200, strings.Repeat("x", 500), "1 minute")
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		total idem.PurgeStats
	)
	for range 3 {
		wg.Go(func() {
			stats, err := b.keys.PurgeOnce(t.Context())
			if err != nil {
				t.Error(err)
			}
			if n := db.Int(t, `SELECT count(*) FROM pgonce.idem_record WHERE op = 'old' OR op = 'middle' AND result IS NOT NULL`); n != 0 {
				t.Errorf("one returned while %d rows were left", n)
			}
			mu.Lock()
			defer mu.Unlock()
			total.Cleared += stats.Cleared
			total.Deleted += stats.Deleted
		})
	}
	wg.Wait()
	wantInt(t, "cleared", total.Cleared, 200)
	wantInt(t, "deleted", total.Deleted, 200)
	b.records(400)
}

// While one purger has a batch open, another one does nothing, and waits for no lock either.
func idemPurgeExcludes[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	b := at(t, c, db, c.Open(t, db, 2), quick)
	b.fill("old", 100, strings.Repeat("x", 500), "3 hours")
	holder, err := db.Pool(t).Begin(t.Context())
	noErr(t, err)
	_, err = holder.Exec(t.Context(), `SELECT FROM pgonce.idem_purge FOR UPDATE`)
	noErr(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	done := make(chan idem.PurgeStats)
	go func() {
		stats, err := b.keys.PurgeOnce(ctx)
		if err == nil {
			t.Error("it returned as if all was done")
		}
		done <- stats
	}()
	for waiting := true; waiting; {
		select {
		case stats := <-done:
			waiting = false
			wantInt(t, "batches", stats.Batches, 0)
		default:
			wantInt(t, "waiting for a lock", db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`), 0)
		}
	}
	b.records(100)
	noErr(t, holder.Rollback(t.Context()))
	_, err = b.keys.PurgeOnce(t.Context())
	noErr(t, err)
	b.records(0)
}

// A row that somebody holds is left for later, and keeps nothing else from being purged.
func idemPurgeSkips[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	b := at(t, c, db, c.Open(t, db, 2), quick)
	b.fill("old", 100, strings.Repeat("x", 500), "3 hours")
	holder, err := db.Pool(t).Begin(t.Context())
	noErr(t, err)
	_, err = holder.Exec(t.Context(), `SELECT FROM pgonce.idem_record WHERE id = 'id1' FOR UPDATE`)
	noErr(t, err)
	stats, err := b.keys.PurgeOnce(t.Context())
	noErr(t, err)
	if stats.Skipped != 1 || stats.Deleted == 0 {
		t.Errorf("got %+v", stats)
	}
	left := b.db.Int(t, `SELECT count(*) FROM pgonce.idem_record`)
	if left == 0 || left > 20 {
		t.Errorf("%d rows are left, want those of a page", left)
	}
	noErr(t, holder.Rollback(t.Context()))
	again, err := b.keys.PurgeOnce(t.Context())
	noErr(t, err)
	wantInt(t, "deleted", stats.Deleted+again.Deleted, 100)
	b.records(0)
}

// A purger whose backend is killed in the middle of a batch leaves the batch undone and the ones before it done; the next one goes
// on from there.
func idemPurgeKilled[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	b := at(t, c, db, c.Open(t, db, 2), quick)
	b.fill("old", 100, strings.Repeat("x", 500), "3 hours")
	holder, err := db.Pool(t).Begin(t.Context())
	noErr(t, err)
	_, err = holder.Exec(t.Context(), `SELECT FROM pgonce.idem_record WHERE id = 'id50' FOR UPDATE`)
	noErr(t, err)
	type answer struct {
		stats idem.PurgeStats
		err   error
	}
	done := make(chan answer)
	go func() {
		stats, err := b.keys.PurgeOnce(t.Context())
		done <- answer{stats, err}
	}()
	pgtest.Eventually(t, "the purge waits and is killed", func() bool {
		return db.Int(t, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%DELETE FROM%'`) > 0
	})
	killed := <-done
	wantErr(t, killed.err, idem.ErrUnavailable)
	noErr(t, holder.Rollback(t.Context()))
	wantInt(t, "rows", db.Int(t, `SELECT count(*) FROM pgonce.idem_record`), 100-killed.stats.Deleted)
	if at := db.Int(t, `SELECT block FROM pgonce.idem_purge`); at == 0 || killed.stats.Deleted == 0 {
		t.Errorf("at page %d after %+v", at, killed.stats)
	}
	stats, err := b.keys.PurgeOnce(t.Context())
	noErr(t, err)
	wantInt(t, "deleted", killed.stats.Deleted+stats.Deleted, 100)
	b.records(0)
}

// The cursor may be anywhere: behind the end of a table that has shrunk, as after a restore.
func idemPurgeAnywhere[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	b := at(t, c, db, c.Open(t, db, 1), quick)
	for _, block := range []string{"0", "1", "1000000", "4294967295"} {
		b.fill("old", 50, strings.Repeat("x", 500), "3 hours")
		db.Exec(t, `UPDATE pgonce.idem_purge SET block = `+block)
		stats, err := b.keys.PurgeOnce(t.Context())
		noErr(t, err)
		wantInt(t, "deleted from "+block, stats.Deleted, 50)
	}
	db.Exec(t, `TRUNCATE pgonce.idem_record`)
	if _, err := b.keys.PurgeOnce(t.Context()); err != nil {
		t.Errorf("an empty table: %v", err)
	}
	db.Exec(t, `DELETE FROM pgonce.idem_purge`)
	_, err := b.keys.PurgeOnce(t.Context())
	wantErr(t, err, idem.ErrSchema)
	wantText(t, err, "INSERT INTO")
}

// Maintain works until its ctx ends. Of several at once, one does.
func idemMaintain[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	b := at(t, c, db, c.Open(t, db, 4), quick)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := b.keys.Maintain(ctx); err != nil {
				t.Errorf("Maintain ended with %v", err)
			}
		})
	}
	pgtest.Eventually(t, "there is a worker", func() bool {
		return db.Int(t, `SELECT count(*) FROM pgonce.idem_purge WHERE worker <> 0 AND pass > 0`) == 1
	})
	worker := db.Int(t, `SELECT worker FROM pgonce.idem_purge`)
	for range 3 {
		b.fill("old", 30, strings.Repeat("x", 500), "3 hours")
		db.Exec(t, `UPDATE pgonce.idem_purge SET next_at = now()`) // the rest between passes is over; the worker looks within a minute
		_, err := b.keys.PurgeOnce(t.Context())                    // which shares the work, and does not take the turn
		noErr(t, err)
		b.records(0)
		wantInt(t, "worker", db.Int(t, `SELECT worker FROM pgonce.idem_purge`), worker)
	}
	cancel()
	wg.Wait()
	wantInt(t, "worker afterwards", db.Int(t, `SELECT worker FROM pgonce.idem_purge`), 0)

	b.fill("old", 30, strings.Repeat("x", 500), "3 hours")
	db.Exec(t, `UPDATE pgonce.idem_purge SET next_at = now()`)
	ctx, cancel = context.WithCancel(t.Context())
	wg.Go(func() { _ = b.keys.Maintain(ctx) })
	pgtest.Eventually(t, "the next one has purged", func() bool { return db.Int(t, `SELECT count(*) FROM pgonce.idem_record`) == 0 })
	cancel()
	wg.Wait()
}
