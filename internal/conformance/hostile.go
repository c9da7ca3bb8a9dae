//go:build unix

package conformance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/fault"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

const manyRows = `SELECT g, repeat('x', 1000) FROM generate_series(1, 10000) g`

// A handler's error says what our own errors say. It is not taken for one of ours.
func idemHandlerQuotes[TX any](t *testing.T, c Client[TX]) {
	for _, wait := range []time.Duration{0, 2 * time.Second} {
		for name, quote := range map[string]error{"in flight": idem.ErrInFlight, "refused": idem.ErrRefused, "unavailable": idem.ErrUnavailable} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				b := setup(t, c, 2)
				runs := int64(0)
				call := func(id string, fn func(ctx context.Context, tx TX)) error {
					op := idem.Op{Name: refund.Name, MaxHandler: 200 * time.Millisecond, Wait: wait}
					_, err := idem.Do(t.Context(), b.keys, op.Key("m1", id), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
						runs++
						fn(ctx, tx)
						return "", fmt.Errorf("of another key: %w", quote)
					})
					return err
				}
				wantErr(t, call("returned", func(context.Context, TX) {}), quote)
				wantErr(t, call("late", func(ctx context.Context, _ TX) { <-ctx.Done() }), idem.ErrHandlerTimeout)
				wantErr(t, call("ended", func(_ context.Context, tx TX) { b.exec(tx, `COMMIT`) }), idem.ErrTxEnded)
				wantInt(t, "runs", runs, 3)
			})
		}
	}
}

// What a handler of DoTx leaves behind keeps the savepoint from being rolled back to. The caller cannot
// commit half an effect.
func txHandlerLeavesOpen[TX any](t *testing.T, c Client[TX]) {
	for name, end := range map[string]func() (string, error){
		"error": func() (string, error) { return "", errRefused }, "nil": func() (string, error) { return "", nil },
		"Final": func() (string, error) { return "", idem.Final(errRefused) }, "panic": func() (string, error) { panic("boom") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, c, 2)
			tx := b.open("")
			func() {
				defer func() { _ = recover() }()
				_, err := idem.DoTx(t.Context(), b.keys, tx, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
					b.exec(tx, `INSERT INTO effect VALUES ('half')`)
					_ = b.LeaveOpen(ctx, tx, manyRows)
					return end()
				})
				if err == nil {
					t.Error("no error")
				}
			}()
			if err := b.Commit(t.Context(), tx); err == nil {
				t.Error("the caller could commit")
			}
			b.effects(0)
			b.records(0)
		})
	}
}

// The handler of DoTx commits, and then hides it: its effect is durable, so the key is blocked. The
// pool has no second connection where that need not be.
func txHandlerHidesEnd[TX any](t *testing.T, c Client[TX]) {
	for name, tc := range map[string]struct {
		conns int
		hide  func(b *bench[TX], ctx context.Context, tx TX) error
	}{
		"lost connection": {2, func(b *bench[TX], ctx context.Context, tx TX) error {
			b.exec(tx, `COMMIT`)
			_ = b.Exec(ctx, tx, `SELECT pg_terminate_backend(pg_backend_pid())`)
			return nil
		}},
		"rows left open": {2, func(b *bench[TX], ctx context.Context, tx TX) error {
			b.exec(tx, `COMMIT AND CHAIN`)
			return b.LeaveOpen(ctx, tx, manyRows)
		}},
		"pool of one":        {1, func(b *bench[TX], _ context.Context, tx TX) error { b.exec(tx, `COMMIT`); return nil }},
		"pool of one, error": {1, func(b *bench[TX], _ context.Context, tx TX) error { b.exec(tx, `COMMIT`); return errRefused }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, c, tc.conns)
			other := b.other(1)
			tx := b.open("")
			_, err := idem.DoTx(t.Context(), b.keys, tx, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
				b.exec(tx, `INSERT INTO effect VALUES ('r1')`)
				return "", tc.hide(b, ctx, tx)
			})
			wantErr(t, err, idem.ErrTxEnded)
			_ = b.Rollback(t.Context(), tx)
			_, err = other.do(t.Context(), "r1")
			wantErr(t, err, idem.ErrUnknownOutcome)
			b.effects(1)
			wantInt(t, "blocked for ever", b.db.Int(t, `SELECT count(*) FROM pgonce.idem_record WHERE remember_until = 'infinity'`), 1)
		})
	}
}

// Two goroutines use one transaction. The second is refused, so neither undoes the other's effect; and so is
// a call inside a handler that does not say so by its ctx.
func txOneAtATime[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	tx := b.open("")
	var wg sync.WaitGroup
	res, err := idem.DoTx(t.Context(), b.keys, tx, refund.Key("m1", "a"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		wg.Go(func() {
			_, err := b.doTx(tx, "b")
			wantErr(t, err, idem.ErrTxUnusable)
			_, err = b.keys.SeenTx(t.Context(), tx, refund.Key("m1", "c"))
			wantErr(t, err, idem.ErrTxUnusable)
		})
		wg.Wait()
		_, err := idem.DoTx(ctx, b.keys, tx, refund.Key("m1", "d"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
			_, err := idem.DoTx(ctx, b.keys, tx, refund.Key("m1", "a"), idem.NoFingerprint(), b.effect("a"))
			wantErr(t, err, idem.ErrReentrant) // two handlers up
			return b.effect("d")(ctx, tx)
		})
		noErr(t, err)
		return b.effect("a")(ctx, tx)
	})
	noErr(t, err)
	if res.Value != "receipt a" {
		t.Errorf("got %+v", res)
	}
	_, err = b.doTx(tx, "e") // the handlers are over
	noErr(t, err)
	b.commit(tx)
	b.effects(3)
	b.records(3)
}

// A handler executes its own key, in whichever way and at whichever level.
func idemReentrant[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	key := refund.Key("m1", "r1")
	tx := b.open("")
	_, err := idem.DoTx(t.Context(), b.keys, tx, key, idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		_, err := b.keys.SeenTx(ctx, tx, key)
		return "", err
	})
	wantErr(t, err, idem.ErrReentrant)
	b.rollback(tx)
	for level, runs := range map[idem.Isolation]int{idem.ReadCommitted: 0, idem.RepeatableRead: 0, idem.Serializable: 0} {
		op := idem.Op{Name: refund.Name, Isolation: level}
		_, err := idem.Do(t.Context(), b.keys, op.Key("m1", "r1"), idem.NoFingerprint(), func(_ context.Context, tx TX) (string, error) {
			runs++
			_, err := b.doTx(tx, "r1") // a ctx that knows nothing of the handler
			return "", err
		})
		wantErr(t, err, idem.ErrReentrant)
		wantInt(t, string(level)+": runs", int64(runs), 2)
	}
	b.effects(0)
	b.records(0)
}

// A migration comes while a caller waits, whose statements were prepared before it.
func idemStaleWait[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	other := b.other(1)
	ask := func(id string) <-chan error {
		answer := make(chan error, 1)
		go func() { _, err := other.ask(t.Context(), patient, id, idem.NoFingerprint()); answer <- err }()
		pgtest.Eventually(t, "it waits", func() bool { return b.waiting() == 1 })
		return answer
	}
	for _, id := range []string{"w1", "w2"} {
		letGo, done := b.hold(id, nil)
		answer := ask(id)
		letGo()
		noErr(t, <-done)
		noErr(t, <-answer)
	}
	lock := begin(t, b.pool.Driver, "", pg.Stmt{SQL: `SELECT pg_advisory_xact_lock($1)`, Args: []any{lockOf("m1", refund.Name, "r1")}})
	answer := ask("r1")
	b.db.Exec(t, `ALTER TABLE pgonce.idem_record ALTER COLUMN state TYPE int`)
	lock.Rollback(t.Context())
	noErr(t, <-answer)
	b.effects(3)
}

// unspeakable has no stored form for its zero value.
type unspeakable int

func (u unspeakable) MarshalText() ([]byte, error) {
	if u == 0 {
		return nil, errors.New("not a status")
	}
	return []byte{'0' + byte(u)}, nil
}

// A refusal is an answer, whatever becomes of the value beside it: one that cannot be stored, one
// that the next release reads as another type.
func idemFinalWithoutValue[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	runs := 0
	for range 2 {
		_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(context.Context, TX) (unspeakable, error) {
			runs++
			return 0, idem.Final(errRefused)
		})
		wantErr(t, err, idem.ErrRefused)
		wantText(t, err, errRefused.Error())
	}
	wantInt(t, "runs", int64(runs), 1)
	_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r2"), idem.NoFingerprint(), b.refuse)
	wantErr(t, err, idem.ErrRefused)
	res, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r2"), idem.NoFingerprint(), func(context.Context, TX) (int, error) { return 0, nil })
	wantErr(t, err, idem.ErrRefused)
	wantText(t, err, "decode result into int")
	if res.FirstAt.IsZero() || res.Value != 0 {
		t.Errorf("got %+v", res)
	}
}

// sharing is a codec for []byte that copies nothing.
type sharing struct{}

func (sharing) Encode(v any) ([]byte, error)       { return v.([]byte), nil }
func (sharing) Decode(data []byte, into any) error { *into.(*[]byte) = data; return nil }

// Callers that get one answer in memory can do with theirs what they like.
func idemOwnCopies[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	b := at(t, c, db, c.Open(t, db, 1), &idem.Config{Codec: sharing{}})
	inside, goOn := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	ask := func() {
		res, err := idem.Do(t.Context(), b.keys, patient.Key("m1", "r1"), idem.NoFingerprint(), func(context.Context, TX) ([]byte, error) {
			close(inside)
			<-goOn
			return []byte("receipt"), nil
		})
		if err != nil || string(res.Value) != "receipt" {
			t.Errorf("got %q, %v", res.Value, err)
		}
		copy(res.Value, "scribbled")
	}
	wg.Go(ask)
	<-inside
	for range 7 {
		wg.Go(ask)
	}
	close(goOn)
	wg.Wait()
}

// An inner call lost a race that a new transaction will not meet: Do makes one.
func idemInnerLostRace[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 1)
	other := b.other(1)
	op := idem.Op{Name: "outer", Isolation: idem.RepeatableRead}
	runs := 0
	_, err := idem.Do(t.Context(), b.keys, op.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		if runs++; runs == 1 {
			_, err := other.do(t.Context(), "inner")
			noErr(t, err)
		}
		res, err := idem.DoTx(ctx, b.keys, tx, refund.Key("m1", "inner"), idem.NoFingerprint(), b.effect("inner"))
		if err == nil && !res.Replayed {
			t.Error("the inner key was executed twice")
		}
		return "", err
	})
	noErr(t, err)
	wantInt(t, "runs", int64(runs), 2)
	b.effects(1)
}

// COMMIT succeeds, its answer is lost, and the server stays out of reach: the outcome is unknown, and is not said
// to be nothing. The call takes as long as Do looks for the outcome.
func idemServerGone[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects)
	proxy := fault.New(t, db.URL)
	b := at(t, c, db, c.Open(t, db.Via(proxy.URL()), 1), nil)
	noErr(t, b.keys.Validate(t.Context()))
	_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		err := b.Exec(ctx, tx, `INSERT INTO effect VALUES ('r1')`)
		proxy.Arm(db.Int(t, `SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
			AND backend_xid IS NOT NULL`), fault.CutAfterCommit)
		proxy.Refuse()
		return "receipt r1", err
	})
	wantErr(t, err, idem.ErrUnknownOutcome)
	if errors.Is(err, idem.ErrUnavailable) {
		t.Errorf("an effect that is there was reported as nothing done: %v", err)
	}
	b.effects(1)
}
