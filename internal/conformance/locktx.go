//go:build unix

package conformance

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

func lockTxSuites[TX any]() suites[TX] {
	return suites[TX]{
		"lock/TxExcludes":     lockTxExcludes[TX],
		"lock/TxAndAcquire":   lockTxAndAcquire[TX],
		"lock/TxShared":       lockTxShared[TX],
		"lock/TxIntact":       lockTxIntact[TX],
		"lock/TxRoleLimits":   lockTxRoleLimits[TX],
		"lock/TxEnds":         lockTxEnds[TX],
		"lock/TxCancelRaces":  lockTxCancelRaces[TX],
		"lock/TxTimeoutRaces": lockTxTimeoutRaces[TX],
		"lock/TxDeadlock":     lockTxDeadlock[TX],
		"lock/TxSavepoints":   lockTxSavepoints[TX],
		"lock/TxOldSnapshot":  lockTxOldSnapshot[TX],
		"lock/TxReadOnly":     lockTxReadOnly[TX],
		"lock/TxFailed":       lockTxFailed[TX],
		"lock/TxKilled":       lockTxKilled[TX],
		"lock/TxCanceled":     lockTxCanceled[TX],
		"lock/TxMisuse":       lockTxMisuse[TX],
	}
}

// desk is a client of locks on a database with the effect table.
type desk[TX any] struct {
	Client[TX]
	t     *testing.T
	db    *pgtest.DB
	pool  Pool[TX]
	locks *dblock.Client[TX]
}

func newDesk[TX any](t *testing.T, c Client[TX], conns int) *desk[TX] {
	t.Helper()
	db := pgtest.New(t)
	db.Exec(t, effects)
	return deskOn(t, c, db, c.Open(t, db, conns+4)) // on database/sql the clients' own connections come out of it
}

// peer stands for another process. It shares the pool, and has sessions of its own.
func (d *desk[TX]) peer() *desk[TX] { return deskOn(d.t, d.Client, d.db, d.pool) }

func deskOn[TX any](t *testing.T, c Client[TX], db *pgtest.DB, pool Pool[TX]) *desk[TX] {
	t.Helper()
	locks, err := dblock.New(t.Context(), pool.Driver, nil)
	noErr(t, err)
	t.Cleanup(func() {
		if err := locks.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return &desk[TX]{c, t, db, pool, locks}
}

// open begins a transaction as a user's code would, and rolls it back at the end of the test.
func (d *desk[TX]) open(level pg.Isolation) TX {
	d.t.Helper()
	tx, err := d.pool.BeginTx(context.WithoutCancel(d.t.Context()), level)
	noErr(d.t, err)
	d.t.Cleanup(func() { _ = d.Rollback(context.Background(), tx) })
	return tx
}

func (d *desk[TX]) exec(tx TX, sql string) {
	d.t.Helper()
	noErr(d.t, d.Exec(d.t.Context(), tx, sql))
}

// text is the one value that a query returns in the transaction.
func (d *desk[TX]) text(tx TX, sql string) (s string) {
	d.t.Helper()
	noErr(d.t, d.pool.Tx(tx).Run(d.t.Context(), pg.Stmt{SQL: sql, Dest: []any{&s}}))
	return s
}

// waiters waits until n backends wait for a lock.
func (d *desk[TX]) waiters(n int64) {
	d.t.Helper()
	pgtest.Eventually(d.t, fmt.Sprintf("%d backends wait", n), func() bool {
		return d.db.Int(d.t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == n
	})
}

// held is how many advisory locks the transaction holds.
func (d *desk[TX]) held(tx TX) string {
	d.t.Helper()
	return d.text(tx, `SELECT count(*)::text FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()`)
}

var txKey = dblock.Key{Space: "order", ID: "1"}

func wantLocked(t *testing.T, what string, err error, want bool) {
	t.Helper()
	if want && err != nil || !want && !errors.Is(err, dblock.ErrNotAcquired) {
		t.Errorf("%s: got %v, want it locked: %t", what, err, want)
	}
}

// Whoever does not get the lock is told at once, or waits, and the transaction goes on.
func lockTxExcludes[TX any](t *testing.T, c Client[TX]) {
	d := newDesk(t, c, 4)
	other := d.peer()
	first, second := d.open(""), other.open("")
	noErr(t, d.locks.LockTx(t.Context(), first, txKey, nil))
	noErr(t, d.locks.LockTx(t.Context(), first, txKey, nil)) // again, in the same transaction
	noErr(t, d.locks.TryLockTx(t.Context(), first, txKey, nil))

	wantLocked(t, "try", other.locks.TryLockTx(t.Context(), second, txKey, nil), false)
	wantLocked(t, "try shared", other.locks.TryLockTx(t.Context(), second, txKey, &dblock.TxConfig{Shared: true}), false)
	for _, key := range []dblock.Key{{Space: "order", ID: "2"}, {Space: "orde", ID: "r1"}} {
		wantLocked(t, "another key", other.locks.TryLockTx(t.Context(), second, key, nil), true)
	}
	for _, end := range []func(){func() { noErr(t, d.Commit(t.Context(), first)) }, func() { noErr(t, d.Rollback(t.Context(), first)) }} {
		result := make(chan error, 1)
		go func() { result <- other.locks.LockTx(t.Context(), second, txKey, nil) }()
		d.waiters(1)
		end()
		noErr(t, <-result)
		other.exec(second, `INSERT INTO effect VALUES ('second')`)
		noErr(t, other.Commit(t.Context(), second))
		first, second = d.open(""), other.open("")
		noErr(t, d.locks.LockTx(t.Context(), first, txKey, nil))
	}
	noErr(t, d.Rollback(t.Context(), first))
	wantInt(t, "effects", d.db.Int(t, `SELECT count(*) FROM effect`), 2)
}

// A key that is held by Acquire is not to be had by LockTx, and the other way round, in one process and in
// another. Who holds it himself is told so.
func lockTxAndAcquire[TX any](t *testing.T, c Client[TX]) {
	d := newDesk(t, c, 6)
	other := d.peer()
	for name, second := range map[string]*desk[TX]{"same process": d, "another process": other} {
		tx := second.open("")
		held, err := d.locks.Acquire(t.Context(), txKey, nil)
		noErr(t, err)
		wantLocked(t, name, second.locks.TryLockTx(t.Context(), tx, txKey, nil), false)
		if name == "same process" {
			wantErr(t, second.locks.LockTx(held.Context(), tx, txKey, nil), dblock.ErrReentrant)
		}
		result := make(chan error, 1)
		go func() { result <- second.locks.LockTx(t.Context(), tx, txKey, nil) }()
		d.waiters(1)
		noErr(t, held.Release(t.Context()))
		noErr(t, <-result)
		_, err = d.locks.TryAcquire(t.Context(), txKey, nil)
		wantLocked(t, name, err, false)
		go func() {
			lock, err := d.locks.Acquire(t.Context(), txKey, nil)
			if err == nil {
				err = lock.Release(t.Context())
			}
			result <- err
		}()
		d.waiters(1)
		noErr(t, d.Commit(t.Context(), tx))
		noErr(t, <-result)
	}

	// A fenced transaction keeps LockTx waiting, and not only the holder of the lock.
	fenced, tx := d.open(""), other.open("")
	held, err := d.locks.Acquire(t.Context(), txKey, nil)
	noErr(t, err)
	noErr(t, held.FenceTx(t.Context(), fenced))
	noErr(t, held.Release(t.Context()))
	wantLocked(t, "fenced", other.locks.TryLockTx(t.Context(), tx, txKey, nil), false)
	noErr(t, d.Commit(t.Context(), fenced))
	noErr(t, other.locks.LockTx(t.Context(), tx, txKey, nil))

	noErr(t, d.locks.Close(t.Context()))
	wantErr(t, d.locks.LockTx(t.Context(), d.open(""), txKey, nil), dblock.ErrClosed)
}

// Shared locks are had together, and keep exclusive ones away, which wait for all of them.
func lockTxShared[TX any](t *testing.T, c Client[TX]) {
	d := newDesk(t, c, 4)
	shared := &dblock.TxConfig{Shared: true}
	a, b, w := d.open(""), d.open(""), d.open("")
	noErr(t, d.locks.LockTx(t.Context(), a, txKey, shared))
	noErr(t, d.locks.TryLockTx(t.Context(), b, txKey, shared))
	wantLocked(t, "exclusive", d.locks.TryLockTx(t.Context(), w, txKey, nil), false)
	result := make(chan error, 1)
	go func() { result <- d.locks.LockTx(t.Context(), w, txKey, nil) }()
	d.waiters(1)
	noErr(t, d.Commit(t.Context(), a))
	d.waiters(1)
	noErr(t, d.Commit(t.Context(), b))
	noErr(t, <-result)

	r := d.open("")
	wantLocked(t, "shared", d.locks.TryLockTx(t.Context(), r, txKey, shared), false)
	go func() { result <- d.locks.LockTx(t.Context(), r, txKey, shared) }()
	d.waiters(1)
	noErr(t, d.Commit(t.Context(), w))
	noErr(t, <-result)
	if n := d.held(r); n != "1" {
		t.Errorf("a shared lock holds %s numbers", n)
	}
}

// Whatever becomes of a wait, the caller's settings, savepoints and writes are as they were, and
// nothing is held that was not granted.
func lockTxIntact[TX any](t *testing.T, c Client[TX]) {
	for outcome, tc := range map[string]struct {
		ctx  func(ctx context.Context) (context.Context, context.CancelFunc)
		free bool // when the wait begins
		ends func(cancel context.CancelFunc, free func())
		want error
	}{
		"free":  {free: true},
		"waits": {ends: func(_ context.CancelFunc, free func()) { free() }},
		"times out": {
			ctx: func(ctx context.Context) (context.Context, context.CancelFunc) {
				return context.WithTimeout(ctx, 50*time.Millisecond)
			},
			want: context.DeadlineExceeded,
		},
		"canceled": {ends: func(cancel context.CancelFunc, _ func()) { cancel() }, want: context.Canceled},
	} {
		for _, shared := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, shared %t", outcome, shared), func(t *testing.T) {
				t.Parallel()
				d := newDesk(t, c, 2)
				holder, tx := d.open(""), d.open("")
				if !tc.free {
					noErr(t, d.locks.LockTx(t.Context(), holder, txKey, nil))
				}
				// One setting of the session's, one of the transaction's.
				d.exec(tx, `SELECT set_config('lock_timeout', '7s', false), set_config('statement_timeout', '90s', true)`)
				d.exec(tx, `INSERT INTO effect VALUES ('before')`)
				d.exec(tx, `SAVEPOINT mine`)
				const settings = `SELECT string_agg(name || ' ' || setting, ', ' ORDER BY name) FROM pg_settings
					WHERE name IN ('lock_timeout', 'statement_timeout', 'client_connection_check_interval', 'transaction_isolation', 'search_path', 'deadlock_timeout', 'role')`
				before := d.text(tx, settings)

				ctx, cancel := context.WithCancel(t.Context())
				if tc.ctx != nil {
					ctx, cancel = tc.ctx(t.Context())
				}
				defer cancel()
				result := make(chan error, 1)
				go func() { result <- d.locks.LockTx(ctx, tx, txKey, &dblock.TxConfig{Shared: shared}) }()
				if tc.ends != nil {
					d.waiters(1)
					tc.ends(cancel, func() { noErr(t, d.Commit(t.Context(), holder)) })
				}
				err := <-result
				if tc.want != nil {
					wantErr(t, err, dblock.ErrNotAcquired)
				}
				wantErr(t, err, tc.want)
				if after := d.text(tx, settings); after != before {
					t.Errorf("settings were %s and are %s", before, after)
				}
				if n := d.held(tx); (n == "0") != (tc.want != nil) {
					t.Errorf("%s locks are held, after %v", n, err)
				}
				d.exec(tx, `INSERT INTO effect VALUES ('undone')`)
				d.exec(tx, `ROLLBACK TO SAVEPOINT mine`)
				d.exec(tx, `RELEASE SAVEPOINT mine`)
				d.exec(tx, `INSERT INTO effect VALUES ('after')`)
				noErr(t, d.Commit(t.Context(), tx))
				wantInt(t, "effects", d.db.Int(t, `SELECT count(*) FROM effect WHERE name <> 'undone'`), 2)
				wantInt(t, "undone effects", d.db.Int(t, `SELECT count(*) FROM effect WHERE name = 'undone'`), 0)
			})
		}
	}
}

// The role's own time-outs do not end a wait that ctx allows.
func lockTxRoleLimits[TX any](t *testing.T, c Client[TX]) {
	d := newDesk(t, c, 2)
	holder, tx := d.open(""), d.open("")
	noErr(t, d.locks.LockTx(t.Context(), holder, txKey, nil))
	d.exec(tx, `SELECT set_config('lock_timeout', '1ms', true), set_config('statement_timeout', '2s', true)`)
	result := make(chan error, 1)
	go func() { result <- d.locks.LockTx(context.WithoutCancel(t.Context()), tx, txKey, nil) }() // in one slice
	d.waiters(1)
	pgtest.Eventually(t, "the wait has outlasted the role's limits", func() bool {
		return d.db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
			AND clock_timestamp() - query_start > interval '2.5 s'`) == 1
	})
	noErr(t, d.Commit(t.Context(), holder))
	noErr(t, <-result)
	if got := d.text(tx, `SELECT current_setting('lock_timeout') || ' ' || current_setting('statement_timeout')`); got != "1ms 2s" {
		t.Errorf("the limits are %s", got)
	}
}

// A ctx that is over asks for nothing. One that ends with a cause of its own tells it.
func lockTxEnds[TX any](t *testing.T, c Client[TX]) {
	d := newDesk(t, c, 2)
	holder, tx := d.open(""), d.open("")
	cause := errors.New("shutting down")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	for _, verb := range []func(context.Context, TX, dblock.Key, *dblock.TxConfig) error{d.locks.LockTx, d.locks.TryLockTx} {
		err := verb(ctx, tx, txKey, nil)
		for _, want := range []error{dblock.ErrNotAcquired, context.Canceled, cause} {
			wantErr(t, err, want)
		}
	}
	if n := d.held(tx); n != "0" {
		t.Errorf("%s locks are held", n)
	}
	noErr(t, d.locks.LockTx(t.Context(), holder, txKey, nil))
	for _, wait := range []time.Duration{time.Nanosecond, time.Microsecond, time.Millisecond} { // never no limit at all
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		wantErr(t, d.locks.LockTx(ctx, tx, txKey, nil), context.DeadlineExceeded)
		cancel()
	}
	d.exec(tx, `INSERT INTO effect VALUES ('fine')`)
}
