//go:build unix

package idem_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// What is remembered is judged, and counted, at the time of the question, and not at that of a caller's transaction that has been open for long.
func TestMemoryInALongTransaction(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, effects)
	pool := db.Pool(t)
	keys := newStore(t, pool, nil)
	do := func(ctx context.Context, tx pgx.Tx, id string) error {
		_, err := idem.DoTx(ctx, keys, tx, refund.Key("m1", id), idem.NoFingerprint(), insertEffect)
		return err
	}
	if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return do(t.Context(), tx, "old") }); err != nil {
		t.Fatal(err)
	}
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		var began time.Time
		if err := tx.QueryRow(t.Context(), `SELECT now()`).Scan(&began); err != nil {
			return err
		}
		db.Exec(t, `UPDATE pgonce.idem_record SET replay_until = clock_timestamp()`) // it was kept when the transaction began
		wantErr(t, do(t.Context(), tx, "old"), idem.ErrExpired, "")
		if err := do(t.Context(), tx, "new"); err != nil {
			return err
		}
		var whole bool
		err := tx.QueryRow(t.Context(), `SELECT n.replay_until - o.replay_until > interval '24 h' FROM pgonce.idem_record o, pgonce.idem_record n
			WHERE o.id = 'old' AND n.id = 'new'`).Scan(&whole)
		if !whole {
			t.Error("what the transaction has taken is missing from ReplayFor")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
