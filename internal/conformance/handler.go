//go:build unix

package conformance

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pg"
)

var errRefused = errors.New("card is stolen")

func idemHandlerFails[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 1)
	for range 2 {
		_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
			noErr(t, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('r1')`))
			return "half", errRefused
		})
		if err != errRefused { //nolint:errorlint // the handler's error must come back as it is
			t.Errorf("got %v, want the handler's own error", err)
		}
	}
	b.effects(0)
	b.records(0)
	_, err := b.do(t.Context(), "r1")
	noErr(t, err)
	b.effects(1)
}

func idemHandlerPanics[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 1)
	call := func(blow func()) {
		_, _ = idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
			noErr(t, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('r1')`))
			blow()
			return "", nil
		})
	}
	func() {
		defer func() {
			if r := recover(); r != "boom" {
				t.Errorf("recovered %v, want the handler's panic", r)
			}
		}()
		call(func() { panic("boom") })
	}()
	var wg sync.WaitGroup
	wg.Go(func() { call(runtime.Goexit) })
	wg.Wait()
	b.effects(0)
	b.records(0)
	_, err := b.do(t.Context(), "r1")
	noErr(t, err)
	b.effects(1)
}

// A handler that ends its transaction by SQL is found out, whether it then returns an error
// or not. An effect that may be durable blocks its key.
func idemHandlerEnds[TX any](t *testing.T, c Client[TX]) {
	for name, tc := range map[string]struct {
		sql     []string
		durable bool
	}{
		"COMMIT":             {[]string{`COMMIT`}, true},
		"COMMIT, BEGIN":      {[]string{`COMMIT`, `BEGIN`}, true},
		"COMMIT AND CHAIN":   {[]string{`COMMIT AND CHAIN`}, true},
		"ROLLBACK AND CHAIN": {[]string{`ROLLBACK AND CHAIN`}, false},
	} {
		for _, result := range []error{nil, errRefused, sqlStateError(pg.CodeSerialization)} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				b := setup(t, c, 2)
				runs := 0
				_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
					runs++
					noErr(t, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('r1')`))
					for _, sql := range tc.sql {
						noErr(t, b.Exec(ctx, tx, sql))
					}
					return "", result
				})
				if result != nil {
					wantErr(t, err, result)
				}
				wantInt(t, "runs", int64(runs), 1)
				wantErr(t, err, idem.ErrTxEnded)
				_, err = b.do(t.Context(), "r1")
				wantErr(t, err, idem.ErrUnknownOutcome)
				_, _, err = idem.Lookup[string](t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint())
				wantErr(t, err, idem.ErrUnknownOutcome)
				b.records(1)
				if tc.durable {
					b.effects(1)
				}
			})
		}
	}
}

// The verbs Commit and Rollback are refused where that can be, and found out elsewhere.
func idemHandlerEndsByVerb[TX any](t *testing.T, c Client[TX]) {
	for name, tc := range map[string]struct {
		end     func(context.Context, TX) error
		result  error
		effects int64
		want    error // on a driver that cannot refuse
	}{
		"Commit":              {c.Commit, nil, 1, idem.ErrTxEnded},
		"Commit, then fail":   {c.Commit, errRefused, 1, idem.ErrTxEnded},
		"Rollback":            {c.Rollback, nil, 0, idem.ErrTxEnded},
		"Rollback, then fail": {c.Rollback, errRefused, 0, errRefused},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, c, 2)
			_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
				noErr(t, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('r1')`))
				if err := tc.end(ctx, tx); (err != nil) != c.Guarded {
					t.Errorf("ending it: %v", err)
				}
				return "receipt r1", tc.result
			})
			if c.Guarded {
				wantErr(t, err, tc.result)
				return
			}
			wantErr(t, err, tc.want)
			b.effects(tc.effects)
			_, err = b.do(t.Context(), "r1")
			if tc.effects == 0 {
				noErr(t, err) // a rollback did no harm: the key is free
			} else {
				wantErr(t, err, idem.ErrUnknownOutcome)
			}
			b.effects(1)
		})
	}
}

// A handler that says all is well over a transaction that cannot commit.
func idemHandlerSpoils[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 1)
	_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		noErr(t, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('r1')`))
		_ = b.Exec(ctx, tx, `SELECT 1/0`) // swallowed
		return "fine", nil
	})
	wantErr(t, err, idem.ErrTxUnusable)
	b.effects(0)

	_, err = idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		noErr(t, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('r1')`))
		return "fine", b.LeaveOpen(ctx, tx, `SELECT g, repeat('x', 1000) FROM generate_series(1, 10000) g`)
	})
	wantErr(t, err, idem.ErrTxUnusable)
	b.effects(0)

	b.quiet()
	var leaked TX
	_, err = idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(_ context.Context, tx TX) (string, error) {
		leaked = tx
		return "fine", nil
	})
	noErr(t, err)
	if err := b.Exec(t.Context(), leaked, `INSERT INTO effect VALUES ('late')`); err == nil {
		t.Error("a leaked transaction still works")
	}
	b.effects(0)
}

// A serialization failure or a deadlock in the handler is worth another attempt.
func idemHandlerRetried[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 1)
	b.db.Exec(t, `CREATE SEQUENCE runs; CREATE FUNCTION fail_twice() RETURNS void LANGUAGE plpgsql AS $$
		BEGIN IF nextval('runs') < 3 THEN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END IF; END $$`)
	runs := 0
	res, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		runs++
		if err := b.Exec(ctx, tx, `INSERT INTO effect VALUES ('r1')`); err != nil {
			return "", err
		}
		return "fine", b.Exec(ctx, tx, `SELECT fail_twice()`)
	})
	noErr(t, err)
	if res.Replayed || runs != 3 {
		t.Errorf("%d runs, %+v", runs, res)
	}
	b.effects(1)

	_, err = idem.Do(t.Context(), b.keys, refund.Key("m1", "r2"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		return "", b.Exec(ctx, tx, `DO $$ BEGIN RAISE EXCEPTION 'always' USING ERRCODE = '40P01'; END $$`)
	})
	var state interface{ SQLState() string }
	if !errors.As(err, &state) || state.SQLState() != pg.CodeDeadlock {
		t.Errorf("after the last attempt: got %v, want the handler's error", err)
	}
	b.effects(1)
}

// A unique violation of the handler's own tables is an error of the handler, not a lost race.
func idemUserConstraint[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	b.db.Exec(t, `CREATE SCHEMA mine; CREATE TABLE mine.idem_record (id int CONSTRAINT idem_record_pk2 PRIMARY KEY); INSERT INTO mine.idem_record VALUES (1)`)
	runs := 0
	_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		runs++
		return "", b.Exec(ctx, tx, `INSERT INTO mine.idem_record VALUES (1)`)
	})
	var state interface{ SQLState() string }
	if !errors.As(err, &state) || state.SQLState() != pg.CodeUnique || runs != 1 {
		t.Errorf("got %v after %d runs", err, runs)
	}
	b.records(0)

	// The same when the violation waits for COMMIT, under the very name of our constraint.
	b.db.Exec(t, `CREATE TABLE mine.later (id int, CONSTRAINT idem_record_pkey UNIQUE (id) DEFERRABLE INITIALLY DEFERRED);
		INSERT INTO mine.later VALUES (1)`)
	runs = 0
	_, err = idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		runs++
		return "", b.Exec(ctx, tx, `INSERT INTO mine.later VALUES (1)`)
	})
	if !errors.As(err, &state) || state.SQLState() != pg.CodeUnique || runs != 1 {
		t.Errorf("deferred: got %v after %d runs", err, runs)
	}
	b.records(0)
}
