//go:build unix

package conformance

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// refuse is a handler that writes, and then refuses for good.
func (b *bench[TX]) refuse(ctx context.Context, tx TX) (string, error) {
	if err := b.Exec(ctx, tx, `INSERT INTO effect VALUES ('half')`); err != nil {
		return "", err
	}
	return "account closed", idem.Final(errRefused)
}

func (b *bench[TX]) wantRefused(res idem.Result[string], err error, replayed bool) {
	b.t.Helper()
	wantErr(b.t, err, idem.ErrRefused)
	e, ok := errors.AsType[*idem.RefusedError](err)
	if !ok || e.Reason != errRefused.Error() || !e.FirstAt.Equal(res.FirstAt) {
		b.t.Errorf("got %#v", err)
	}
	if errors.Is(err, errRefused) {
		b.t.Error("the first caller can tell by the handler's own error what a repeat cannot")
	}
	if res.Value != "account closed" || res.Replayed != replayed || res.FirstAt.IsZero() {
		b.t.Errorf("got %+v", res)
	}
}

// A refusal is stored without what the handler wrote, and every caller gets the same.
func idemFinal[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 1)
	key := refund.Key("m1", "r1")
	runs := 0
	call := func() (idem.Result[string], error) {
		return idem.Do(t.Context(), b.keys, key, idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
			runs++
			return b.refuse(ctx, tx)
		})
	}
	first, err := call()
	b.wantRefused(first, err, false)
	for range 2 {
		again, err := call()
		b.wantRefused(again, err, true)
		if !again.FirstAt.Equal(first.FirstAt) {
			t.Errorf("first at %v, repeat says %v", first.FirstAt, again.FirstAt)
		}
	}
	found, ok, err := idem.Lookup[string](t.Context(), b.keys, key, idem.NoFingerprint())
	b.wantRefused(found, err, true)
	if !ok {
		t.Error("lookup: not found")
	}
	wantInt(t, "runs", int64(runs), 1)
	b.effects(0)
	b.records(1)
	if err := idem.Final(nil); err != nil {
		t.Errorf("Final(nil) is %v", err)
	}
}

// What says nothing about the request is not stored, whatever it is wrapped in.
func idemNotFinal[TX any](t *testing.T, c Client[TX]) {
	for name, cause := range map[string]error{
		"serialization failure": sqlStateError(pg.CodeSerialization), "end of ctx": context.DeadlineExceeded,
		"lost connection": sqlStateError(pg.CodeAdminShutdown), "transaction to be repeated": idem.ErrRetryTx,
		"another key in flight": idem.ErrInFlight, "unavailable": idem.ErrUnavailable, "unknown outcome": idem.ErrUnknownOutcome,
		"lease lost": idem.ErrLeaseLost, "steps changed": idem.ErrStepsChanged,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, c, 1)
			_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
				noErr(t, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('half')`))
				return "", idem.Final(fmt.Errorf("refused: %w", cause))
			})
			wantErr(t, err, cause)
			if errors.Is(err, idem.ErrRefused) {
				t.Errorf("got %v", err)
			}
			b.effects(0)
			b.records(0)
		})
	}
}

// A handler refuses after a statement of it failed (stored), after it lost its connection (run
// again), and after it ended its transaction (blocked).
func idemFinalAfter[TX any](t *testing.T, c Client[TX]) {
	t.Run("failed statement", func(t *testing.T) {
		t.Parallel()
		b := setup(t, c, 1)
		for _, replayed := range []bool{false, true} {
			res, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
				if err := b.Exec(ctx, tx, `SELECT 1/0`); err == nil {
					t.Error("no error")
				}
				return "account closed", idem.Final(errRefused)
			})
			b.wantRefused(res, err, replayed)
		}
	})
	t.Run("lost connection", func(t *testing.T) {
		t.Parallel()
		b := setup(t, c, 1)
		runs := 0
		res, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
			if runs++; runs == 1 {
				_ = b.Exec(ctx, tx, `SELECT pg_terminate_backend(pg_backend_pid())`)
				return "", idem.Final(errors.New("looked like a refusal"))
			}
			return b.effect("r1")(ctx, tx)
		})
		noErr(t, err)
		if res.Value != "receipt r1" || runs != 2 {
			t.Errorf("%d runs, got %+v", runs, res)
		}
		b.effects(1)
	})
	t.Run("COMMIT", func(t *testing.T) {
		t.Parallel()
		b := setup(t, c, 2)
		_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
			noErr(t, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('r1')`))
			noErr(t, b.Exec(ctx, tx, `COMMIT`))
			return "", idem.Final(errRefused)
		})
		wantErr(t, err, idem.ErrTxEnded)
		_, err = b.do(t.Context(), "r1")
		wantErr(t, err, idem.ErrUnknownOutcome)
		b.effects(1)
	})
}

// holdRefusals keeps the INSERT of a refusal waiting until let go.
func (b *bench[TX]) holdRefusals() (letGo func()) {
	b.t.Helper()
	b.db.Exec(b.t, `CREATE TABLE gate (); CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN LOCK TABLE gate IN SHARE MODE; RETURN NEW; END $$;
		CREATE TRIGGER gate BEFORE INSERT ON pgonce.idem_record FOR EACH ROW WHEN (NEW.state = 2) EXECUTE FUNCTION wait_at_gate()`)
	pool := b.Open(b.t, b.db, 1)
	tx := begin(b.t, pool.Driver, "", pg.Stmt{SQL: `LOCK TABLE gate IN EXCLUSIVE MODE`})
	return func() { tx.Rollback(context.Background()) }
}

func (b *bench[TX]) atTheGate() {
	b.t.Helper()
	pgtest.Eventually(b.t, "the refusal is about to be stored", func() bool {
		return b.db.Int(b.t, `SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'gate'::regclass`) == 1
	})
}

// Between the rollback of a handler that refused and the record of that, the key is free. Whoever
// decides it then is right.
func idemFinalRaces[TX any](t *testing.T, c Client[TX]) {
	type answer struct {
		res idem.Result[string]
		err error
	}
	refusing := func(b *bench[TX]) <-chan answer {
		done := make(chan answer, 1)
		go func() {
			res, err := idem.Do(b.t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), b.refuse)
			done <- answer{res, err}
		}()
		b.atTheGate()
		return done
	}
	t.Run("another caller commits first", func(t *testing.T) {
		t.Parallel()
		b := setup(t, c, 2)
		letGo := b.holdRefusals()
		done := refusing(b)
		first, err := b.other(1).do(t.Context(), "r1")
		noErr(t, err)
		letGo()
		got := <-done
		noErr(t, got.err)
		if !got.res.Replayed || got.res.Value != first.Value || !got.res.FirstAt.Equal(first.FirstAt) {
			t.Errorf("got %+v, want the answer %+v", got.res, first)
		}
		b.effects(1)
		b.records(1)
	})
	t.Run("the refusal lands while another handler is at work", func(t *testing.T) {
		t.Parallel()
		b := setup(t, c, 2)
		letGo := b.holdRefusals()
		done := refusing(b)
		other, runs := b.other(1), 0
		res, err := idem.Do(t.Context(), other.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
			runs++
			letGo()
			got := <-done
			b.wantRefused(got.res, got.err, false)
			return b.effect("r1")(ctx, tx)
		})
		b.wantRefused(res, err, true)
		wantInt(t, "runs", int64(runs), 1)
		b.effects(0)
		b.records(1)
	})
}
