//go:build unix

package idem_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// inFlight is what a refused caller is told, which has to be about the key.
func inFlight(t *testing.T, key idem.Key, err error) time.Duration {
	t.Helper()
	e, ok := errors.AsType[*idem.InFlightError](err)
	if !ok || !errors.Is(err, idem.ErrInFlight) {
		t.Fatalf("got %v, want an *InFlightError", err)
	}
	if e.Key.Compare(key) != 0 || e.RetryAfter < time.Second || e.RetryAfter%time.Second != 0 {
		t.Errorf("got %+v of %v", e, key)
	}
	return e.RetryAfter
}

// left is a key of RunSteps whose owner is gone; owned gives it to somebody else.
func left(t *testing.T, db *pgtest.DB, keys *idem.Store[pgx.Tx], key idem.Key) (owned func(begun, lease string)) {
	t.Helper()
	errBank := errors.New("the bank does not answer")
	_, err := idem.RunSteps(t.Context(), keys, key, idem.NoFingerprint(), 1, func(ctx context.Context, run *idem.Run[pgx.Tx], _ int) (string, error) {
		_, err := idem.Step(ctx, run, "a", answer)
		return "", errors.Join(err, errBank)
	})
	wantErr(t, err, errBank, "")
	db.Exec(t, `INSERT INTO pgonce.idem_worker (id, alive_until) VALUES (7, '-infinity') ON CONFLICT DO NOTHING`)
	return func(begun, lease string) {
		db.Exec(t, `UPDATE pgonce.idem_lease SET worker = 7, created_at = statement_timestamp() + interval '`+begun+`'`)
		db.Exec(t, `UPDATE pgonce.idem_worker SET alive_until = statement_timestamp() + interval '`+lease+`' WHERE id = 7`)
	}
}

// While another process executes a key under a lease, callers are told when to ask again: when it has taken as long again, and not
// after the lease, by the database's clock.
func TestInFlightUnderALease(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool, wire := wired(t, db, pgx.QueryExecModeExec)
	keys := newStore(t, pool, &idem.Config{Lease: time.Hour}) // without heartbeats meanwhile
	key := remit.Key("m1", "r1")
	owned := left(t, db, keys, key)
	repeat := func() error {
		_, err := idem.RunSteps(t.Context(), keys, key, idem.NoFingerprint(), 1, stepsOf[pgx.Tx]()["one"])
		return err
	}
	for _, tc := range []struct {
		begun, lease string
		want         time.Duration
	}{
		{"1 hour", "1 hour", time.Second}, // as just now, on a machine of any speed
		{"-1 hour", "1 hour", 10 * time.Second},
	} {
		owned(tc.begun, tc.lease)
		var err error
		if got := trips(wire, func() { err = repeat() }); got != 3 {
			t.Errorf("it took %d trips to be refused, want 3 with the claim's ROLLBACK", got)
		}
		if got := inFlight(t, key, err); got != tc.want {
			t.Errorf("begun %s, lease %s: got %v, want %v", tc.begun, tc.lease, got, tc.want)
		}
	}
	// The owner has missed its heartbeats. Whoever asks then when he is told to comes when the key is free.
	owned("-1 hour", "3 seconds")
	err := repeat()
	for n := 2; err == nil; n++ { // the machine is so slow that the lease was over before anybody looked
		key = remit.Key("m1", fmt.Sprint("r", n))
		left(t, db, keys, key)("-1 hour", "3 seconds")
		err = repeat()
	}
	if got := inFlight(t, key, err); got > 3*time.Second {
		t.Errorf("got %v, the lease ends before", got)
	}
	pgtest.Eventually(t, "the lease is over", func() bool { return repeat() == nil })
}

// Who is refused, or may not decide, does not touch the lease of the owner, nor its steps.
func TestRefusalsLeaveTheLeaseAlone(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	keys := newStore(t, db.Pool(t), nil)
	key := remit.Key("m1", "r1")
	left(t, db, keys, key)("-1 minute", "1 hour")
	untouched := func() int64 { // a row lock leaves its transaction in xmax, a write in xmin
		return db.Int(t, `SELECT count(*) FROM pgonce.idem_lease l, pgonce.idem_step s WHERE l.worker = 7 AND l.xmax::text = '0' AND s.xmax::text = '0'`)
	}
	was := db.Int(t, `SELECT xmin::text::bigint FROM pgonce.idem_lease`)
	for _, tc := range []struct {
		want error
		call func() error
	}{
		{idem.ErrInFlight, func() error {
			_, err := idem.RunSteps(t.Context(), keys, key, idem.NoFingerprint(), 1, stepsOf[pgx.Tx]()["one"])
			return err
		}},
		{idem.ErrInFlight, func() error {
			patient := key.Op()
			patient.Wait = 200 * time.Millisecond
			_, err := idem.RunSteps(t.Context(), keys, patient.Key("m1", "r1"), idem.NoFingerprint(), 1, stepsOf[pgx.Tx]()["one"])
			return err
		}},
		{idem.ErrInFlight, func() error { return keys.Forget(t.Context(), key, "too early") }},
	} {
		wantErr(t, tc.call(), tc.want, "")
		if now := db.Int(t, `SELECT xmin::text::bigint FROM pgonce.idem_lease`); untouched() != 1 || now != was {
			t.Errorf("the lease was touched: it is of transaction %d, and was of %d", now, was)
		}
	}
}

// A key that is executed by this very process is refused in memory, and says the same.
func TestInFlightInThisProcess(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool, wire := wired(t, db, pgx.QueryExecModeExec)
	keys := newStore(t, pool, &idem.Config{Lease: time.Hour}) // without heartbeats meanwhile
	key := remit.Key("m1", "r1")
	run := func(fn func(context.Context, string) (string, error)) error {
		_, err := idem.RunSteps(t.Context(), keys, key, idem.NoFingerprint(), 1, func(ctx context.Context, run *idem.Run[pgx.Tx], _ int) (string, error) {
			return idem.Step(ctx, run, "a", fn)
		})
		return err
	}
	err := run(func(context.Context, string) (string, error) {
		var err error
		if got := trips(wire, func() { err = run(answer) }); got != 0 {
			t.Errorf("it took %d trips to be refused in memory", got)
		}
		if got := inFlight(t, key, err); got > 10*time.Second {
			t.Errorf("got %v", got)
		}
		return "serial", nil
	})
	if err != nil {
		t.Error(err)
	}
}

// Of a transaction that is open nobody can say when it ends: a second, in this process and in another, in a transaction of one's own and
// in the caller's.
func TestInFlightInATransaction(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, effects)
	pool, other := db.Pool(t), db.Pool(t)
	keys, theirs := newStore(t, pool, nil), newStore(t, other, nil)
	key := refund.Key("m1", "r1")
	waits := idem.Op{Name: refund.Name, Wait: 200 * time.Millisecond}.Key("m1", "r1")
	told := func(ways map[string]func() error) {
		for how, refused := range ways {
			if got := inFlight(t, key, refused()); got != time.Second {
				t.Errorf("%s: got %v, want a second", how, got)
			}
		}
	}
	do := func(keys *idem.Store[pgx.Tx], key idem.Key) func() error {
		return func() error {
			_, err := idem.Do(t.Context(), keys, key, idem.NoFingerprint(), insertEffect)
			return err
		}
	}
	_, err := idem.Do(t.Context(), keys, key, idem.NoFingerprint(), func(ctx context.Context, tx pgx.Tx) (string, error) {
		told(map[string]func() error{
			"in memory": do(keys, key), "after a wait in memory": do(keys, waits),
			"on the server": do(theirs, key), "after a wait on the server": do(theirs, waits),
			"in the caller's transaction": func() error {
				return pgx.BeginFunc(t.Context(), other, func(tx pgx.Tx) error {
					_, err := idem.DoTx(t.Context(), theirs, tx, key, idem.NoFingerprint(), insertEffect)
					return err
				})
			},
			"by SeenTx": func() error {
				return pgx.BeginFunc(t.Context(), other, func(tx pgx.Tx) error {
					_, err := theirs.SeenTx(t.Context(), tx, key)
					return err
				})
			},
		})
		return insertEffect(ctx, tx)
	})
	if err != nil {
		t.Error(err)
	}
}

// A caller that is told when to come again, as a handler of net/http would tell its client.
func ExampleInFlightError() {
	pgtest.Example(remittanceTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		key := Remit.Key("queue", "m-1")
		_, err = idem.RunSteps(ctx, keys, key, idem.NoFingerprint(), Order{1250}, func(ctx context.Context, _ *idem.Run[pgx.Tx], o Order) (string, error) {
			_, err := idem.RunSteps(context.Background(), keys, key, idem.NoFingerprint(), o, remitAt(&theBank{})) // somebody else, meanwhile
			if e, ok := errors.AsType[*idem.InFlightError](err); ok {
				fmt.Println("409, Retry-After:", e.RetryAfter.Seconds())
			}
			return "", nil
		})
		return err
	})
	// Output: 409, Retry-After: 1
}
