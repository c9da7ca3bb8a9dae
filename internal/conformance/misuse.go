//go:build unix

package conformance

import (
	"context"
	"errors"
	"testing"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pg"
)

// A handler that commits behind a new BEGIN and then breaks that one, so that it cannot be
// asked any more. On pgx the COMMIT was seen going by, elsewhere the transaction's fate is asked for.
func idemHandlerHidesEnd[TX any](t *testing.T, c Client[TX]) {
	for name, hide := range map[string]func(ctx context.Context, tx TX) error{
		"failed statement":      func(ctx context.Context, tx TX) error { _ = c.Exec(ctx, tx, `SELECT 1/0`); return nil },
		"failed statement, err": func(ctx context.Context, tx TX) error { return c.Exec(ctx, tx, `SELECT 1/0`) },
		"rows left open": func(ctx context.Context, tx TX) error {
			return c.LeaveOpen(ctx, tx, `SELECT g, repeat('x', 1000) FROM generate_series(1, 10000) g`)
		},
		"lost backend": func(ctx context.Context, tx TX) error {
			_ = c.Exec(ctx, tx, `SELECT pg_terminate_backend(pg_backend_pid())`)
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, c, 2)
			runs := int64(0)
			_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
				runs++
				noErr(t, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('r1')`))
				noErr(t, b.Exec(ctx, tx, `COMMIT AND CHAIN`))
				return "", hide(ctx, tx)
			})
			wantErr(t, err, idem.ErrTxEnded)
			wantInt(t, "runs", runs, 1)
			_, err = b.do(t.Context(), "r1")
			wantErr(t, err, idem.ErrUnknownOutcome)
			b.effects(1)
		})
	}
}

// The key of a handler that ended its transaction cannot be blocked. It is said so, and the
// handler is not run again, whatever the reason looks like.
func idemBlockingFails[TX any](t *testing.T, c Client[TX]) {
	for _, code := range []string{pg.CodeSerialization, pg.CodeUnique, "57P01"} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			b := setup(t, c, 2)
			b.db.Exec(t, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
				BEGIN RAISE EXCEPTION 'cannot be stored' USING ERRCODE = '`+code+`'; END $$;
				CREATE TRIGGER refuse BEFORE INSERT ON pgonce.idem_record FOR EACH ROW WHEN (NEW.state = 3) EXECUTE FUNCTION refuse()`)
			runs := int64(0)
			_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
				runs++
				noErr(t, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('r1')`))
				return "", errors.Join(b.Exec(ctx, tx, `COMMIT`), sqlStateError(pg.CodeDeadlock))
			})
			wantErr(t, err, idem.ErrTxEnded)
			wantText(t, err, "could not be blocked")
			if errors.Is(err, idem.ErrUnavailable) {
				t.Errorf("an effect that may be durable was reported as nothing done: %v", err)
			}
			wantInt(t, "runs", runs, 1)
			b.effects(1)
		})
	}
}

// A handler that leaves the transaction under a role which may not write records.
func idemHandlerLeavesRole[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	role := b.db.Role(t)
	_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		noErr(t, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('r1')`))
		return "", b.Exec(ctx, tx, `SET LOCAL ROLE "`+role+`"`)
	})
	var state interface{ SQLState() string }
	if !errors.As(err, &state) || state.SQLState() != pg.CodeNoPrivilege || errors.Is(err, idem.ErrSchema) {
		t.Errorf("got %v, want the server's refusal as it is", err)
	}
	b.effects(0)
}

// The first caller's value is the one of the run that was committed, with nothing of a run before.
func idemFreshValue[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	b.db.Exec(t, `CREATE SEQUENCE runs; CREATE FUNCTION fail_once() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN IF nextval('runs') = 1 THEN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END IF; RETURN NULL; END $$;
		CREATE CONSTRAINT TRIGGER once AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail_once()`)
	runs := 0
	call := func() idem.Result[map[int]bool] {
		res, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (map[int]bool, error) {
			runs++
			return map[int]bool{runs: true}, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('r1')`)
		})
		noErr(t, err)
		return res
	}
	for range 2 {
		if res := call(); len(res.Value) != 1 || !res.Value[2] {
			t.Errorf("got %+v, want the value of run 2 alone", res)
		}
	}
	b.effects(1)
}
