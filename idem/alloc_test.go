//go:build unix

package idem_test

import (
	"context"
	"errors"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// counted skips a test of allocations where the race detector makes its own. "make test" runs them without it, too.
func counted(t *testing.T) {
	t.Helper()
	info, ok := debug.ReadBuildInfo()
	if ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		t.Skip("the race detector allocates by itself")
	}
}

// What Do and Lookup allocate, beside pgx alone. Most of what a new key costs is the bookkeeping of pgx's pipeline, which somebody who
// writes the same two batches by hand pays as well.
//
//nolint:paralleltest // others would be counted
func TestAllocations(t *testing.T) {
	counted(t)
	db := pgtest.New(t)
	db.Exec(t, effects)
	pool, _ := wired(t, db, pgx.QueryExecModeCacheStatement)
	keys := newStore(t, pool, nil)
	i := 0
	count := func(op func() error) float64 {
		return testing.AllocsPerRun(300, func() {
			i++
			if err := op(); err != nil {
				t.Fatal(err)
			}
		})
	}
	do := func() error {
		_, err := idem.Do(t.Context(), keys, refund.Key("m1", uuidText(i)), idem.NoFingerprint(), insertEffect)
		return err
	}
	first := uuidText(1)
	repeat := func() error {
		_, err := idem.Do(t.Context(), keys, refund.Key("m1", first), idem.NoFingerprint(), insertEffect)
		return err
	}
	lookup := func() error {
		_, _, err := idem.Lookup[string](t.Context(), keys, refund.Key("m1", first), idem.NoFingerprint())
		return err
	}
	var digest []byte
	byHand := func() error {
		digest = []byte(uuidText(i))
		return doByHand(t.Context(), pool, digest)
	}
	bare := func() error { bareTransaction(t, pool); return nil }
	row := func() error { return resultByHand(t.Context(), pool, digest) }
	for _, op := range []func() error{do, repeat, lookup, byHand, bare} {
		count(op) // prepares the statements
	}
	count(row)
	newKey, again, exchange, transaction, found, plain := count(do), count(repeat), count(byHand), count(bare), count(lookup), count(row)
	t.Logf("Do %v, the same exchange by hand %v, bare transaction %v; repeat by Do %v, Lookup %v, bare SELECT %v", newKey, exchange, transaction, again, found, plain)
	if over := newKey - exchange; over > 18 {
		t.Errorf("a new key makes %v allocations more than its statements by hand, want at most 18", over)
	}
	if over := again - plain; over > 70 {
		t.Errorf("a repeat makes %v allocations more than a bare SELECT, want at most 70 with its BEGIN and ROLLBACK", over)
	}
	if over := found - plain; over > 10 {
		t.Errorf("a lookup makes %v allocations more than a bare SELECT, want at most 10", over)
	}
}

// doByHand is what Do has to exchange with the server for a new key, written with pgx alone.
func doByHand(ctx context.Context, pool *pgxpool.Pool, digest []byte) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	var (
		first, last pgx.Batch
		readOnly    bool
		start       time.Time
		pid, idle   int64
	)
	first.BeginTx(pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	first.Queue(idem.SQLGuard, int64(1000), "31000", "500").QueryRow(func(row pgx.Row) error {
		return row.Scan(&pid, &start, &readOnly, &idle)
	})
	first.Queue(idem.SQLLookup, "m1", digest)
	br := conn.SendBatch(ctx, &first)
	if err := br.Close(); err != nil {
		return err
	}
	if _, err := br.Tx().Exec(ctx, `INSERT INTO effect VALUES ('r1')`); err != nil {
		return errors.Join(err, br.Tx().Rollback(ctx))
	}
	last.Queue(idem.SQLInsert, pid|1<<40, start, 86400.0, 86400.0, int64(1), int64(1), "m1", digest, "refund.create", uuidText(1), nil, []byte(`"receipt"`))
	last.Queue("commit")
	return conn.SendBatch(ctx, &last).Close()
}

// resultByHand is a repeat's answer without anything around it.
func resultByHand(ctx context.Context, pool *pgxpool.Pool, digest []byte) error {
	var result []byte
	return pool.QueryRow(ctx, `SELECT result FROM pgonce.idem_record WHERE scope = $1 AND digest = $2`, "m1", digest).Scan(&result)
}
