//go:build unix

package idem_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/fault"
	"github.com/pgonce/pgonce/internal/pgtest"
)

type takeStep func(ctx context.Context, run *idem.Run[pgx.Tx], name string) (string, error)

// placeSteps are steps by their kind, whose value is their name and whose call counts.
func placeSteps(called map[string]int) map[string]takeStep {
	call := func(name string) func(context.Context, string) (string, error) {
		return func(context.Context, string) (string, error) {
			called[name]++
			return name, nil
		}
	}
	return map[string]takeStep{
		"Step": func(ctx context.Context, run *idem.Run[pgx.Tx], name string) (string, error) {
			return idem.Step(ctx, run, name, call(name))
		},
		"AtMostOnce": func(ctx context.Context, run *idem.Run[pgx.Tx], name string) (string, error) {
			return idem.Step(ctx, run, name, call(name), idem.AtMostOnce(func(context.Context, string) (string, idem.Outcome, error) {
				return "", idem.NeverHappened, nil
			}))
		},
		"StepTx": func(ctx context.Context, run *idem.Run[pgx.Tx], name string) (string, error) {
			return idem.StepTx(ctx, run, name, func(ctx context.Context, tx pgx.Tx) (string, error) {
				called[name]++
				_, err := tx.Exec(ctx, `INSERT INTO effect VALUES ($1)`, name)
				return name, err
			})
		},
	}
}

// The store of a step lands, its answer is lost, and whoever asks again is refused: nobody knows. The function goes on as if nothing
// had been done. No step begins then, that one neither, and the next attempt finds what was stored under the name that it was stored for.
func TestNoStepAfterOneOfUnknownOutcome(t *testing.T) {
	t.Parallel()
	for kind := range placeSteps(nil) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			called := map[string]int{}
			take := placeSteps(called)[kind]
			db := pgtest.New(t)
			db.Exec(t, effects)
			cut := &storeCutter{t: t, db: db, proxy: fault.New(t, db.URL)}
			cfg := db.Via(cut.proxy.URL()).Config(t)
			cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
			cfg.ConnConfig.Tracer = cut
			keys := newStore(t, db.Open(t, cfg), nil)
			run := func(fn func(ctx context.Context, run *idem.Run[pgx.Tx], _ int) (string, error)) (idem.Result[string], error) {
				return idem.RunSteps(t.Context(), keys, remit.Key("m1", "r1"), idem.NoFingerprint(), 1, fn)
			}
			_, err := run(func(ctx context.Context, run *idem.Run[pgx.Tx], _ int) (string, error) {
				_, err := take(ctx, run, "a")
				if !errors.Is(err, idem.ErrUnknownOutcome) {
					t.Errorf("a: got %v", err)
				}
				cut.mend()
				for _, name := range []string{"a", "b"} {
					if v, err := take(ctx, run, name); !errors.Is(err, idem.ErrUnknownOutcome) {
						t.Errorf("%s after it: got %q, %v", name, v, err)
					}
				}
				return "swallowed", nil
			})
			if !errors.Is(err, idem.ErrUnknownOutcome) {
				t.Errorf("got %v", err)
			}
			if n := db.Int(t, `SELECT count(*) FROM pgonce.idem_step WHERE name = 'a' AND ord = 0`); n != 1 || called["b"] > 0 {
				t.Errorf("%d rows, called %v", n, called)
			}
			res, err := run(func(ctx context.Context, run *idem.Run[pgx.Tx], _ int) (string, error) {
				a, errA := take(ctx, run, "a")
				b, errB := take(ctx, run, "b")
				return a + b, errors.Join(errA, errB)
			})
			if err != nil || res.Value != "ab" || called["a"] != 1 || called["b"] != 1 {
				t.Errorf("a repeat: got %+v, %v, called %v", res, err, called)
			}
			if n := db.Int(t, `SELECT count(*) - count(DISTINCT name) FROM effect`); n != 0 {
				t.Errorf("%d effects too many", n)
			}
		})
	}
}

// storeCutter loses the answer to the first store of a step. While whoever has lost it asks again, the table's column is
// gone, so that the server refuses.
type storeCutter struct {
	t      *testing.T
	db     *pgtest.DB
	proxy  *fault.Proxy
	stores atomic.Int32
	hidden atomic.Bool
}

func (c *storeCutter) see(conn *pgx.Conn, sql string, lose fault.Kind) {
	stores, asks := strings.Contains(sql, `INSERT INTO "pgonce"."idem_step"`), strings.Contains(sql, `SELECT state FROM "pgonce"."idem_step"`)
	switch {
	case stores && c.stores.Add(1) == 1:
		c.proxy.Arm(int64(conn.PgConn().PID()), lose)
	case (asks || stores && c.stores.Load() == 2) && c.hidden.CompareAndSwap(false, true):
		c.db.Exec(c.t, `ALTER TABLE pgonce.idem_step RENAME COLUMN state TO hidden`)
	}
}

func (c *storeCutter) mend() {
	if !c.hidden.Load() {
		c.t.Error("nobody has asked again")
		return
	}
	c.db.Exec(c.t, `ALTER TABLE pgonce.idem_step RENAME COLUMN hidden TO state`)
}

func (c *storeCutter) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	c.see(conn, data.SQL, fault.CutAnswer)
	return ctx
}

func (*storeCutter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (c *storeCutter) TraceBatchStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	for _, q := range data.Batch.QueuedQueries {
		c.see(conn, q.SQL, fault.CutAfterCommit)
	}
	return ctx
}

func (*storeCutter) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (*storeCutter) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// Something is stored in the place of a step that this run does not know of. It stays as it is, and the step is
// not taken for done: one that is AtMostOnce is not called, and the transaction of one in this database is rolled back.
func TestStepFindsItsPlaceTaken(t *testing.T) {
	t.Parallel()
	for kind := range placeSteps(nil) {
		for _, name := range []string{"a", "b"} {
			if kind == "Step" && name == "a" {
				continue // its store is the same again
			}
			t.Run(kind+" "+name, func(t *testing.T) {
				t.Parallel()
				called := map[string]int{}
				take := placeSteps(called)[kind]
				db := pgtest.New(t)
				db.Exec(t, effects)
				keys := newStore(t, db.Pool(t), nil)
				run := func(fn func(ctx context.Context, run *idem.Run[pgx.Tx], _ int) (string, error)) (idem.Result[string], error) {
					return idem.RunSteps(t.Context(), keys, remit.Key("m1", "r1"), idem.NoFingerprint(), 1, fn)
				}
				_, err := run(func(ctx context.Context, run *idem.Run[pgx.Tx], _ int) (string, error) {
					db.Exec(t, `INSERT INTO pgonce.idem_step (at, ord, round, state, scope, digest, name, result)
						SELECT now(), 0, 0, 2, scope, digest, 'a', '"first"' FROM pgonce.idem_lease`)
					v, err := take(ctx, run, name)
					if !errors.Is(err, idem.ErrUnknownOutcome) || !strings.Contains(err.Error(), "step 0 is stored already") {
						t.Errorf("got %q, %v", v, err)
					}
					if v, err := take(ctx, run, "c"); !errors.Is(err, idem.ErrUnknownOutcome) || called["c"] > 0 {
						t.Errorf("c: got %q, %v", v, err)
					}
					return "swallowed", nil
				})
				if !errors.Is(err, idem.ErrUnknownOutcome) || kind == "AtMostOnce" && called[name] > 0 {
					t.Errorf("got %v, called %v", err, called)
				}
				res, err := run(func(ctx context.Context, run *idem.Run[pgx.Tx], _ int) (string, error) { return take(ctx, run, "a") })
				if err != nil || res.Value != "first" {
					t.Errorf("a repeat: got %+v, %v", res, err)
				}
				if n := db.Int(t, `SELECT count(*) FROM effect`); n != 0 {
					t.Errorf("%d effects", n)
				}
			})
		}
	}
}

// A statement whose answer was lost may reach the table later than one that was sent after it. What is stored of a step goes forward only.
func TestLateStoreTakesNothingBack(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `INSERT INTO pgonce.idem_lease (nonce, worker, created_at, not_before, attempts, state, fp_ver, scope, digest, op, id, fp, request)
		VALUES (1, 0, now(), now(), 0, 1, 1, 's', '\x00112233445566778899aabbccddeeff', 'o', 'i', '', '')`)
	pool := db.Pool(t)
	const started, done, cleared = 1, 2, 3
	for _, tc := range []struct {
		name                string
		state, round        int // that are there
		nextState, nextRnd  int
		lands, landsInTheTx bool
	}{
		{"a", started, 0, started, 0, true, false},
		{"a", started, 0, started, 1, true, false},
		{"a", started, 0, done, 0, true, false},
		{"a", done, 0, done, 0, true, false},
		{"a", cleared, 1, started, 1, true, true},
		{"a", cleared, 1, done, 1, true, true},
		{"a", done, 0, started, 0, false, false},
		{"a", done, 0, started, 1, false, false},
		{"a", started, 1, started, 0, false, false},
		{"a", cleared, 1, done, 0, false, false},
		{"b", started, 0, done, 0, false, false},
		{"b", cleared, 0, done, 0, false, false},
		{"b", done, 0, done, 0, false, false},
	} {
		put := func() {
			db.Exec(t, `TRUNCATE pgonce.idem_step`)
			if _, err := pool.Exec(t.Context(), `INSERT INTO pgonce.idem_step (at, ord, round, state, scope, digest, name)
				SELECT now(), 0, $1, $2, scope, digest, 'a' FROM pgonce.idem_lease`, tc.round, tc.state); err != nil {
				t.Fatal(err)
			}
		}
		digest := []byte("\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff")
		put()
		if _, err := pool.Exec(t.Context(), idem.SQLStore, "s", digest, 1, 0, tc.name, tc.nextState, tc.nextRnd, []byte("1")); (err == nil) != tc.lands {
			t.Errorf("%+v: got %v", tc, err)
		}
		if n := db.Int(t, `SELECT count(*) FROM pgonce.idem_step WHERE name = 'a'`); n != 1 {
			t.Errorf("%+v: %d rows", tc, n)
		}
		put()
		if tag, err := pool.Exec(t.Context(), idem.SQLStep, "s", digest, 0, tc.name); err != nil || (tag.RowsAffected() == 1) != (tc.name == "a") {
			t.Errorf("%+v: the look finds %s, %v", tc, tag, err)
		}
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), strings.ReplaceAll(idem.SQLStoreTx, "$6::timestamptz", "coalesce($6, now())"), "s", digest, 0, tc.name, tc.nextRnd, nil, []byte("1"))
			return err
		})
		if (err == nil) != tc.landsInTheTx {
			t.Errorf("%+v in the transaction: got %v", tc, err)
		}
	}
}
