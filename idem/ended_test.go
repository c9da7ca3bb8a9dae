//go:build unix

package idem_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// A handler commits by SQL, which lets go of the key, and goes on. Another process executes the key in between. Nothing can be blocked
// any more, and nobody is told that it was: there may be two effects.
func TestKeyIsExecutedAfterItsHandlerHasEnded(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	told := map[idem.EventKind]int{}
	keys := newStore(t, db.Pool(t), &idem.Config{Observe: func(e idem.Event) { told[e.Kind]++ }})
	other := newStore(t, db.Pool(t), nil)
	do := func(keys *idem.Store[pgx.Tx], fn func(context.Context, pgx.Tx) (string, error)) (idem.Result[string], error) {
		return idem.Do(t.Context(), keys, refund.Key("m1", "r1"), idem.NoFingerprint(), fn)
	}
	second := func(context.Context, pgx.Tx) (string, error) { return "second", nil }
	_, err := do(keys, func(ctx context.Context, tx pgx.Tx) (string, error) {
		if _, err := tx.Exec(ctx, "COMMIT"); err != nil {
			t.Error(err)
		}
		if _, err := do(other, second); err != nil {
			t.Error(err)
		}
		return "first", nil
	})
	if !errors.Is(err, idem.ErrTxEnded) || !strings.Contains(err.Error(), "another caller has executed the key since") {
		t.Errorf("got %v", err)
	}
	if told[idem.Blocked] != 0 || told[idem.Failed] != 1 {
		t.Errorf("told %v", told)
	}
	if res, err := do(keys, second); err != nil || !res.Replayed || res.Value != "second" {
		t.Errorf("a repeat: got %+v, %v", res, err)
	}
}

// The same in the caller's transaction, whose connection is the only one of its pool.
func TestKeyIsExecutedAfterTheCallersTransactionHasEnded(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := db.Config(t)
	cfg.MaxConns = 1
	pool := db.Open(t, cfg)
	told := map[idem.EventKind]int{}
	keys := newStore(t, pool, &idem.Config{Observe: func(e idem.Event) { told[e.Kind]++ }})
	other := newStore(t, db.Pool(t), nil)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	key := refund.Key("m1", "r1")
	second := func(context.Context, pgx.Tx) (string, error) { return "second", nil }
	_, err = idem.DoTx(t.Context(), keys, tx, key, idem.NoFingerprint(), func(ctx context.Context, tx pgx.Tx) (string, error) {
		if _, err := tx.Exec(ctx, "COMMIT"); err != nil {
			t.Error(err)
		}
		if _, err := idem.Do(t.Context(), other, key, idem.NoFingerprint(), second); err != nil {
			t.Error(err)
		}
		return "first", nil
	})
	if !errors.Is(err, idem.ErrTxEnded) || !strings.Contains(err.Error(), "another caller has executed the key since") || strings.Contains(err.Error(), "blocked") {
		t.Errorf("got %v", err)
	}
	if told[idem.Blocked] != 0 || told[idem.Failed] != 1 {
		t.Errorf("told %v", told)
	}
	if res, err := idem.Do(t.Context(), other, key, idem.NoFingerprint(), second); err != nil || !res.Replayed || res.Value != "second" {
		t.Errorf("a repeat: got %+v, %v", res, err)
	}
}
