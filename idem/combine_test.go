//go:build unix

package idem_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// More writers than a batch holds, from several processes' stores, none left behind.
func TestNoWriterIsLeftInLine(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool := db.Pool(t)
	const crowd, stores = 400, 2
	errs := make(chan error, crowd*stores)
	for range stores {
		keys := newStore(t, pool, nil)
		for i := range crowd {
			go func() {
				_, err := idem.RunSteps(t.Context(), keys, idem.Op{Name: "crowd", Wait: idem.Forever}.Key("m1", fmt.Sprint(i)), idem.NoFingerprint(), i,
					func(ctx context.Context, run *idem.Run[pgx.Tx], in int) (int, error) {
						return idem.Step(ctx, run, "a", func(context.Context, string) (int, error) { return in, nil })
					})
				errs <- err
			}()
		}
	}
	for range crowd * stores {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := db.Int(t, `SELECT count(*) FROM pgonce.idem_record`); n != crowd {
		t.Errorf("%d records, want %d", n, crowd)
	}
}
