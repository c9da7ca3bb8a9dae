//go:build unix

package conformance

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/internal/pg"
)

// The end of ctx races with the grant. Either the lock is held or nothing is, and no request to
// cancel comes so late that it hits the caller's next statement.
func lockTxCancelRaces[TX any](t *testing.T, c Client[TX]) {
	d := newDesk(t, c, 2)
	rounds := 60
	if _, ok := d.pool.Tx(d.open("")).(pg.Canceler); !ok {
		rounds = 3 // each waits for the end of a slice
	}
	d = newDesk(t, c, 2)
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	outcomes := map[bool]int{}
	for range rounds {
		holder, tx := d.open(""), d.open("")
		noErr(t, d.locks.LockTx(t.Context(), holder, txKey, nil))
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() { result <- d.locks.LockTx(ctx, tx, txKey, nil) }()
		d.waiters(1)
		steps := []func(){cancel, func() { noErr(t, d.Commit(t.Context(), holder)) }}
		if random.IntN(2) == 0 {
			slices.Reverse(steps)
		}
		var wg sync.WaitGroup
		for _, step := range steps {
			wg.Go(step)
		}
		wg.Wait()
		err := <-result
		outcomes[err == nil]++
		wantLocked(t, "race", err, err == nil)
		d.exec(tx, `SELECT pg_sleep(0.01)`) // what a late request would hit
		if n := d.held(tx); (n != "0") != (err == nil) {
			t.Fatalf("%s locks are held, after %v (seed %d)", n, err, seed)
		}
		noErr(t, d.Commit(t.Context(), tx))
		cancel()
	}
	t.Logf("seed %d, locked or not: %v", seed, outcomes)
}

// Time-outs race with grants, many at once: a wait that has timed out holds nothing.
func lockTxTimeoutRaces[TX any](t *testing.T, c Client[TX]) {
	const callers, rounds = 4, 40
	d := newDesk(t, c, callers)
	var wg sync.WaitGroup
	var mu sync.Mutex
	outcomes := map[bool]int{}
	for range callers {
		wg.Go(func() {
			for range rounds {
				tx, err := d.pool.BeginTx(t.Context(), "")
				if err != nil {
					t.Error(err)
					return
				}
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Millisecond)
				err = d.locks.LockTx(ctx, tx, txKey, nil)
				cancel()
				mu.Lock()
				outcomes[err == nil]++
				mu.Unlock()
				wantLocked(t, "time-out", err, err == nil)
				var held int64
				count := pg.Stmt{SQL: `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()`, Dest: []any{&held}}
				if broken := d.pool.Tx(tx).Run(t.Context(), count); broken != nil || (held > 0) != (err == nil) {
					t.Errorf("%d locks are held (%v), after %v", held, broken, err)
				}
				if err := d.Commit(t.Context(), tx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("locked or not: %v", outcomes)
}

// Two transactions that take two keys crosswise: the server finds it out, also where waits are cut into
// slices. The loser has to roll back, the other one goes on.
func lockTxDeadlock[TX any](t *testing.T, c Client[TX]) {
	d := newDesk(t, c, 2)
	keys := []dblock.Key{{Space: "order", ID: "1"}, {Space: "order", ID: "2"}}
	type outcome struct {
		tx  TX
		err error
	}
	results := make(chan outcome, 2)
	var txs []TX
	for i := range keys {
		txs = append(txs, d.open(""))
		noErr(t, d.locks.LockTx(t.Context(), txs[i], keys[i], nil))
	}
	for i := range keys {
		go func() { results <- outcome{txs[i], d.locks.LockTx(t.Context(), txs[i], keys[1-i], nil)} }()
	}
	loser := <-results
	for _, want := range []error{dblock.ErrDeadlock, dblock.ErrRetryTx} {
		wantErr(t, loser.err, want)
	}
	d.exec(loser.tx, `INSERT INTO effect VALUES ('it can go on, but should not')`)
	noErr(t, d.Rollback(t.Context(), loser.tx))
	winner := <-results
	noErr(t, winner.err)
}

// A savepoint that is rolled back takes the locks with it that came after it, and no other ones.
func lockTxSavepoints[TX any](t *testing.T, c Client[TX]) {
	d := newDesk(t, c, 3)
	later := dblock.Key{Space: "order", ID: "2"}
	tx, holder, other := d.open(""), d.open(""), d.open("")
	noErr(t, d.locks.LockTx(t.Context(), holder, txKey, nil))
	result := make(chan error, 1)
	go func() { result <- d.locks.LockTx(t.Context(), tx, txKey, nil) }() // waits, so it has had a savepoint of its own
	d.waiters(1)
	noErr(t, d.Commit(t.Context(), holder))
	noErr(t, <-result)
	d.exec(tx, `SAVEPOINT mine`)
	noErr(t, d.locks.LockTx(t.Context(), tx, later, nil))
	d.exec(tx, `ROLLBACK TO SAVEPOINT mine`)
	wantLocked(t, "from before the savepoint", d.locks.TryLockTx(t.Context(), other, txKey, nil), false)
	wantLocked(t, "from after the savepoint", d.locks.TryLockTx(t.Context(), other, later, nil), true)
}

// The lock does not make a snapshot newer: above READ COMMITTED a transaction reads what was
// committed before its first statement, and so before the wait.
func lockTxOldSnapshot[TX any](t *testing.T, c Client[TX]) {
	for level, want := range map[pg.Isolation]string{pg.ReadCommitted: "1", pg.RepeatableRead: "0", pg.Serializable: "0"} {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, c, 2)
			holder, tx := d.open(""), d.open(level)
			noErr(t, d.locks.LockTx(t.Context(), holder, txKey, nil))
			d.exec(holder, `INSERT INTO effect VALUES ('holder')`)
			result := make(chan error, 1)
			go func() { result <- d.locks.LockTx(t.Context(), tx, txKey, nil) }()
			d.waiters(1)
			noErr(t, d.Commit(t.Context(), holder))
			noErr(t, <-result)
			if n := d.text(tx, `SELECT count(*)::text FROM effect`); n != want {
				t.Errorf("reads %s effects, want %s", n, want)
			}
		})
	}
}

// A READ ONLY transaction may lock a key, with a wait too, but no row.
func lockTxReadOnly[TX any](t *testing.T, c Client[TX]) {
	d := newDesk(t, c, 2)
	d.db.Exec(t, `INSERT INTO effect VALUES ('row')`)
	holder, tx := d.open(""), d.open("")
	d.exec(tx, `SET TRANSACTION READ ONLY`)
	noErr(t, d.locks.LockTx(t.Context(), holder, txKey, nil))
	result := make(chan error, 1)
	go func() { result <- d.locks.LockTx(t.Context(), tx, txKey, nil) }()
	d.waiters(1)
	noErr(t, d.Commit(t.Context(), holder))
	noErr(t, <-result)
	_, err := dblock.LockRowsTx(t.Context(), d.locks, tx, dblock.Table{Name: "effect", ID: "name"}, []string{"row"}, nil)
	wantErr(t, err, dblock.ErrReadOnlyTx)
	if n := d.held(tx); n == "0" {
		t.Error("the lock is gone")
	}
}

// In a transaction in which a statement has failed, or that is over, nothing is done.
func lockTxFailed[TX any](t *testing.T, c Client[TX]) {
	d := newDesk(t, c, 2)
	calls := map[string]func(tx TX) error{
		"LockTx":    func(tx TX) error { return d.locks.LockTx(t.Context(), tx, txKey, nil) },
		"TryLockTx": func(tx TX) error { return d.locks.TryLockTx(t.Context(), tx, txKey, nil) },
		"shared": func(tx TX) error {
			return d.locks.TryLockTx(t.Context(), tx, txKey, &dblock.TxConfig{Shared: true})
		},
		"LockRowsTx": func(tx TX) error {
			_, err := dblock.LockRowsTx(t.Context(), d.locks, tx, dblock.Table{Name: "effect", ID: "name"}, []string{"a"}, nil)
			return err
		},
	}
	for name, call := range calls {
		tx := d.open("")
		d.exec(tx, `SAVEPOINT pgonce_lock`) // of the caller's, by our name
		d.exec(tx, `INSERT INTO effect VALUES ('caller')`)
		_ = d.Exec(t.Context(), tx, `SELECT 1/0`)
		if err := call(tx); !errors.Is(err, dblock.ErrTxUnusable) {
			t.Errorf("%s: got %v", name, err)
		}
		if err := d.Exec(t.Context(), tx, `SELECT 1`); err == nil {
			t.Errorf("%s has mended the transaction", name)
		}
		noErr(t, d.Rollback(t.Context(), tx))
		if err := call(tx); err == nil || errors.Is(err, dblock.ErrNotAcquired) {
			t.Errorf("%s after the end: got %v", name, err)
		}
	}
	wantInt(t, "effects", d.db.Int(t, `SELECT count(*) FROM effect`), 0)
}

// The server ends the session that waits.
func lockTxKilled[TX any](t *testing.T, c Client[TX]) {
	d := newDesk(t, c, 2)
	holder, tx := d.open(""), d.open("")
	noErr(t, d.locks.LockTx(t.Context(), holder, txKey, nil))
	result := make(chan error, 1)
	go func() { result <- d.locks.LockTx(t.Context(), tx, txKey, nil) }()
	d.waiters(1)
	d.db.Exec(t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`)
	err := <-result
	wantErr(t, err, dblock.ErrUnavailable)
	if errors.Is(err, dblock.ErrNotAcquired) {
		t.Errorf("taken for a lock that is not free: %v", err)
	}
}

// Somebody cancels the wait, who is not the caller: his transaction is as it was, and the error is not taken for a
// lock that is not free.
func lockTxCanceled[TX any](t *testing.T, c Client[TX]) {
	d := newDesk(t, c, 2)
	holder, tx := d.open(""), d.open("")
	noErr(t, d.locks.LockTx(t.Context(), holder, txKey, nil))
	d.exec(tx, `INSERT INTO effect VALUES ('before')`)
	result := make(chan error, 1)
	go func() { result <- d.locks.LockTx(t.Context(), tx, txKey, nil) }()
	d.waiters(1)
	d.db.Exec(t, `SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`)
	err := <-result
	if pg.Code(err) != pg.CodeQueryCanceled || errors.Is(err, dblock.ErrNotAcquired) || errors.Is(err, dblock.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	noErr(t, d.Commit(t.Context(), tx))
	wantInt(t, "effects", d.db.Int(t, `SELECT count(*) FROM effect`), 1)
}

func lockTxMisuse[TX any](t *testing.T, c Client[TX]) {
	d := newDesk(t, c, 1)
	var none TX
	tx := d.open("")
	for name, err := range map[string]error{
		"nil transaction": d.locks.LockTx(t.Context(), none, txKey, nil),
		"space is empty":  d.locks.LockTx(t.Context(), tx, dblock.Key{ID: "1"}, nil),
		"id has 300":      d.locks.TryLockTx(t.Context(), tx, dblock.Key{Space: "s", ID: strings.Repeat("x", 300)}, nil),
	} {
		wantText(t, err, name)
	}
	d.exec(tx, `INSERT INTO effect VALUES ('fine')`)
}
