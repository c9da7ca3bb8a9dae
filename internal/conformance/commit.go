//go:build unix

package conformance

import (
	"context"
	"testing"
	"time"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/fault"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// The answer to COMMIT is lost, in each way and on a pool of one: the caller is told the
// truth, and the effect is there once. A handler runs again only when its first run was
// rolled back.
func idemCommitAnswerLost[TX any](t *testing.T, c Client[TX]) {
	for kind, wantRuns := range map[fault.Kind]int64{
		fault.CutBeforeCommit: 2, fault.MuteBeforeCommit: 2, fault.CutAfterCommit: 1, fault.MuteAfterCommit: 1,
	} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			db.Exec(t, effects)
			proxy := fault.New(t, db.URL)
			b := at(t, c, db, c.Open(t, db.Via(proxy.URL()), 1), nil)
			noErr(t, b.keys.Validate(t.Context()))
			runs := int64(0)
			ctx := pg.WithNetTimeout(t.Context(), 2*time.Second)
			call := func() (idem.Result[string], error) {
				return idem.Do(ctx, b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
					runs++
					if err := b.Exec(ctx, tx, `INSERT INTO effect SELECT pg_backend_pid()`); err != nil {
						return "", err
					}
					if runs == 1 {
						proxy.Arm(db.Int(t, `SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
							AND backend_xid IS NOT NULL`), kind)
					}
					return "receipt r1", nil
				})
			}
			res, err := call()
			noErr(t, err)
			if res.Value != "receipt r1" || res.Replayed {
				t.Errorf("got %+v", res)
			}
			wantInt(t, "runs", runs, wantRuns)
			b.effects(1)
			b.records(1)
			again, err := call()
			noErr(t, err)
			if again.Value != res.Value || !again.Replayed || !again.FirstAt.Equal(res.FirstAt) {
				t.Errorf("repeat: %+v, first was %+v", again, res)
			}
		})
	}
}
