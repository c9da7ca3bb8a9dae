//go:build unix

package idem_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// accounts are what handlers book on: the effect of a key is one more booking on its account.
const accounts = `CREATE TABLE account (id text PRIMARY KEY, bookings int NOT NULL DEFAULT 0);
	INSERT INTO account (id) VALUES ('x'), ('y'), ('z')`

func book(account string) func(context.Context, pgx.Tx) (string, error) {
	return func(ctx context.Context, tx pgx.Tx) (string, error) {
		_, err := tx.Exec(ctx, `UPDATE account SET bookings = bookings + 1 WHERE id = $1`, account)
		return "booked on " + account, err
	}
}

// process is one that has its own store and pool.
type process struct {
	t    *testing.T
	pool *pgxpool.Pool
	keys *idem.Store[pgx.Tx]
}

func newProcesses(t *testing.T) (db *pgtest.DB, one, two process) {
	t.Helper()
	db = pgtest.New(t)
	db.Exec(t, accounts)
	for _, p := range []*process{&one, &two} {
		*p = process{t: t, pool: db.Pool(t)}
		p.keys = newStore(t, p.pool, nil)
	}
	return db, one, two
}

func (p process) begin() pgx.Tx {
	p.t.Helper()
	tx, err := p.pool.Begin(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

func (p process) doTx(tx pgx.Tx, id, account string) error {
	_, err := idem.DoTx(p.t.Context(), p.keys, tx, refund.Key("m1", id), idem.NoFingerprint(), book(account))
	return err
}

// booked checks that an account has a booking for each record, so that there is no effect without one and none beside it.
func booked(t *testing.T, db *pgtest.DB, records int64, accounts map[string]int64) {
	t.Helper()
	if got := db.Int(t, `SELECT count(*) FROM pgonce.idem_record`); got != records {
		t.Errorf("%d records, want %d", got, records)
	}
	for id, want := range accounts {
		if got := db.Int(t, `SELECT bookings FROM account WHERE id = '`+id+`'`); got != want {
			t.Errorf("account %s: %d bookings, want %d", id, got, want)
		}
	}
}

func isDeadlock(err error) bool {
	var state interface{ SQLState() string }
	return errors.As(err, &state) && state.SQLState() == pg.CodeDeadlock
}

// Two processes take two keys in opposite orders, each in one transaction. Nobody waits for a key, so it is no deadlock: each is
// refused at once. What they have done until then is whole, and goes by their own commit.
func TestKeysInOppositeOrders(t *testing.T) {
	t.Parallel()
	db, one, two := newProcesses(t)
	first, second := one.begin(), two.begin()
	for _, err := range []error{one.doTx(first, "a", "x"), two.doTx(second, "b", "y")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, one.doTx(first, "b", "y"), idem.ErrInFlight, "")
	wantErr(t, two.doTx(second, "a", "x"), idem.ErrInFlight, "")
	if err := errors.Join(first.Commit(t.Context()), second.Rollback(t.Context())); err != nil {
		t.Fatal(err)
	}
	booked(t, db, 1, map[string]int64{"x": 1, "y": 0})
	again := two.begin()
	if err := errors.Join(two.doTx(again, "a", "x"), two.doTx(again, "b", "y"), again.Commit(t.Context())); err != nil {
		t.Error(err)
	}
	booked(t, db, 2, map[string]int64{"x": 1, "y": 1})
}

// The handlers of two transactions lock rows in opposite orders. The server ends one of them with 40P01, which comes back as the handler's
// error. Its call is undone, and the one before it is whole: even a caller that commits what is left commits no half of an effect.
// To repeat the transaction is enough.
func TestDeadlockOfSeveralKeys(t *testing.T) {
	t.Parallel()
	db, one, two := newProcesses(t)
	txs := []pgx.Tx{one.begin(), two.begin()}
	if err := errors.Join(one.doTx(txs[0], "a", "x"), two.doTx(txs[1], "b", "y")); err != nil {
		t.Fatal(err)
	}
	second := []func(tx pgx.Tx) error{
		func(tx pgx.Tx) error { return one.doTx(tx, "c", "y") },
		func(tx pgx.Tx) error { return two.doTx(tx, "d", "x") },
	}
	errs := make([]error, 2)
	var wg sync.WaitGroup
	for i, tx := range txs {
		wg.Go(func() {
			errs[i] = second[i](tx)
			if err := tx.Commit(t.Context()); err != nil { // whatever it was told; it also lets the other one go on
				t.Errorf("commit: %v", err)
			}
		})
	}
	wg.Wait()
	victim := slices.IndexFunc(errs, isDeadlock)
	if victim < 0 || errs[1-victim] != nil {
		t.Fatalf("got %v", errs)
	}
	account := []string{"y", "x"}[victim] // of the call that was undone
	booked(t, db, 3, map[string]int64{account: 1, []string{"x", "y"}[victim]: 2})
	again := []process{one, two}[victim].begin()
	if err := errors.Join(second[victim](again), again.Commit(t.Context())); err != nil {
		t.Error(err)
	}
	booked(t, db, 4, map[string]int64{"x": 2, "y": 2})
}

// The same in handlers of Do, which repeats the transaction by itself.
func TestDeadlockInDo(t *testing.T) {
	t.Parallel()
	db, one, two := newProcesses(t)
	var both sync.WaitGroup
	both.Add(2)
	do := func(p process, id string, order ...string) error {
		meet := sync.OnceFunc(func() { both.Done(); both.Wait() }) // in its first run
		_, err := idem.Do(t.Context(), p.keys, refund.Key("m1", id), idem.NoFingerprint(), func(ctx context.Context, tx pgx.Tx) (string, error) {
			for _, account := range order {
				if _, err := idem.DoTx(ctx, p.keys, tx, refund.Key("m1", id+account), idem.NoFingerprint(), book(account)); err != nil {
					return "", err
				}
				meet()
			}
			return "", nil
		})
		return err
	}
	errs := make(chan error, 2)
	go func() { errs <- do(one, "a", "x", "y") }()
	go func() { errs <- do(two, "b", "y", "x") }()
	if err := errors.Join(<-errs, <-errs); err != nil {
		t.Error(err)
	}
	booked(t, db, 6, map[string]int64{"x": 2, "y": 2})
}

// Sorted, several keys are refused at the first of them or not at all, so one of the callers always gets on; and handlers that lock what
// their keys name do so in one order.
func TestKeysInOneOrder(t *testing.T) {
	t.Parallel()
	db, one, two := newProcesses(t)
	const batches, callers = 6, 3
	var wg sync.WaitGroup
	for c := range 2 * callers {
		p := []process{one, two}[c%2]
		wg.Go(func() {
			for n := range batches {
				keys := []idem.Key{}
				for _, account := range []string{"x", "y", "z"} {
					keys = append(keys, refund.Key(account, fmt.Sprint(n)))
				}
				if c%3 > 0 { // as it comes from outside
					slices.Reverse(keys)
				}
				slices.SortFunc(keys, idem.Key.Compare)
				for p.batch(keys) { // refused: try again
				}
			}
		})
	}
	wg.Wait()
	booked(t, db, 3*batches, map[string]int64{"x": batches, "y": batches, "z": batches})
}

// batch executes keys in one transaction, and says whether another one was at it.
func (p process) batch(keys []idem.Key) (refused bool) {
	err := pgx.BeginFunc(p.t.Context(), p.pool, func(tx pgx.Tx) error {
		for i, key := range keys {
			_, err := idem.DoTx(p.t.Context(), p.keys, tx, key, idem.NoFingerprint(), book(key.Scope()))
			if refused = i == 0 && errors.Is(err, idem.ErrInFlight); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && !refused {
		p.t.Errorf("a caller that has its first key: %v", err)
	}
	return refused
}
