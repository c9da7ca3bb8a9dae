//go:build unix

package conformance

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/fault"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// Every idle connection of the pool dies, as in a restart of the server. The next call works
// through them by itself.
func idemStaleConnections[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 8)
	var inside, done sync.WaitGroup
	inside.Add(8)
	for _, id := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		done.Go(func() {
			_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", id), idem.NoFingerprint(), func(context.Context, TX) (string, error) {
				inside.Done()
				inside.Wait() // so that the pool has eight connections
				return "", nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	done.Wait()
	b.db.KillOthers(t)
	_, err := b.do(t.Context(), "r1")
	noErr(t, err)
	b.effects(1)
}

// A statement that was prepared before a migration changed what it means is prepared anew.
func idemStalePlan[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 1)
	for range 2 {
		_, err := b.do(t.Context(), "r1")
		noErr(t, err)
	}
	b.db.Exec(t, `ALTER TABLE pgonce.idem_record ALTER COLUMN state TYPE int`)
	for _, id := range []string{"r1", "r2"} {
		_, err := b.do(t.Context(), id)
		noErr(t, err)
	}
	b.effects(2)
}

// The network swallows what is sent. Nothing waits for ever, even for a caller who would.
func idemSilentNetwork[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects)
	proxy := fault.New(t, db.URL)
	b := at(t, c, db, c.Open(t, db.Via(proxy.URL()), 1), nil)
	ctx := pg.WithNetTimeout(t.Context(), time.Second)
	verbs := map[string]func() error{
		"validate": func() error { return b.keys.Validate(ctx) },
		"lookup": func() error {
			_, _, err := idem.Lookup[string](ctx, b.keys, refund.Key("m1", "r1"), idem.NoFingerprint())
			return err
		},
		"do": func() error { _, err := b.do(ctx, "r1"); return err },
	}
	for name, verb := range verbs {
		pgtest.Eventually(t, "the pool has a good connection", func() bool { return b.keys.Validate(t.Context()) == nil })
		proxy.Arm(db.Int(t, `SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
			AND state = 'idle' ORDER BY backend_start DESC LIMIT 1`), fault.MuteNext)
		if err := verb(); !errors.Is(err, idem.ErrUnavailable) {
			t.Errorf("%s: got %v, want ErrUnavailable", name, err)
		}
	}
	pgtest.Eventually(t, "it works again", func() bool { _, err := b.do(t.Context(), "r1"); return err == nil })
	b.effects(1)
}
