//go:build unix

package idem_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// The mark of a step has landed and its answer has not, so nobody was called, as far as the function knows. The key is not free, since
// there is a step; but it is left to the next one, and not kept for as long as this process lives.
func TestKeyWithAMarkIsLeft(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	keys := newStore(t, db.Pool(t), nil)
	errLost := errors.New("the answer is lost")
	_, err := idem.RunSteps(t.Context(), keys, remit.Key("m1", "r1"), idem.NoFingerprint(), 1, func(context.Context, *idem.Run[pgx.Tx], int) (string, error) {
		db.Exec(t, `INSERT INTO pgonce.idem_step (at, ord, round, state, scope, digest, name)
			SELECT now(), 0, 0, 1, scope, digest, 'pay' FROM pgonce.idem_lease`)
		return "", errLost
	})
	if !errors.Is(err, errLost) {
		t.Fatal(err)
	}
	res, err := idem.RunSteps(t.Context(), keys, remit.Key("m1", "r1"), idem.NoFingerprint(), 1, func(ctx context.Context, run *idem.Run[pgx.Tx], _ int) (string, error) {
		return idem.Step(ctx, run, "pay", func(context.Context, string) (string, error) { return "", errLost }, idem.AtMostOnce(sure))
	})
	if err != nil || res.Value != "serial" {
		t.Errorf("got %+v, %v", res, err)
	}
}
