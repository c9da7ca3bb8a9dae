//go:build unix

package idem_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// Whoever goes on with a key need not show the request that began it: the completer never does. Callers who wait behind it, in
// memory, are compared with that first request all the same.
func TestFollowersOfWhoGoesOn(t *testing.T) {
	t.Parallel()
	errBank := errors.New("the bank is closed")
	for _, who := range []string{"the completer", "a caller without a fingerprint"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			keys := newStore(t, db.Pool(t), nil)
			op := idem.Op{Name: "remittance.send", Wait: time.Hour, RetryAfter: time.Millisecond}
			goOn := make(chan struct{})
			steps := func(ctx context.Context, run *idem.Run[pgx.Tx], _ int) (string, error) {
				return idem.Step(ctx, run, "pay", func(ctx context.Context, _ string) (string, error) {
					select {
					case <-goOn:
					case <-ctx.Done():
					}
					return "serial", ctx.Err()
				})
			}
			_, err := idem.RunSteps(t.Context(), keys, op.Key("m1", "r1"), idem.Bytes([]byte("first")), 1,
				func(ctx context.Context, run *idem.Run[pgx.Tx], _ int) (string, error) {
					return idem.Step(ctx, run, "pay", func(context.Context, string) (string, error) { return "", errBank })
				})
			if !errors.Is(err, errBank) {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			ended := make(chan error, 1)
			if who == "the completer" {
				if err := idem.Handle(keys, op, steps); err != nil {
					t.Fatal(err)
				}
				go func() { ended <- keys.RunCompleter(ctx) }()
			} else {
				go func() {
					_, err := idem.RunSteps(ctx, keys, op.Key("m1", "r1"), idem.NoFingerprint(), 1, steps)
					ended <- err
				}()
			}
			pgtest.Eventually(t, "somebody goes on", func() bool {
				return db.Int(t, `SELECT count(*) FROM pgonce.idem_lease l JOIN pgonce.idem_worker w ON w.id = l.worker`) == 1
			})
			type answer struct {
				res idem.Result[string]
				err error
			}
			ask := func(body string) <-chan answer {
				said := make(chan answer, 1)
				go func() {
					res, err := idem.RunSteps(t.Context(), keys, op.Key("m1", "r1"), idem.Bytes([]byte(body)), 1, steps)
					said <- answer{res, err}
				}()
				return said
			}
			same, other := ask("first"), ask("other")
			pgtest.Eventually(t, "both wait behind it", func() bool { return idem.Followers(keys) == 2 })
			close(goOn)
			if got := <-same; got.err != nil || !got.res.Replayed || got.res.Value != "serial" {
				t.Errorf("the same request: got %+v", got)
			}
			if got := <-other; !errors.Is(got.err, idem.ErrMismatch) || got.res.Value != "" {
				t.Errorf("another request: got %+v, want ErrMismatch", got)
			}
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}
