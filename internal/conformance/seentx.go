//go:build unix

package conformance

import (
	"slices"
	"testing"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pg"
)

// The caller's snapshot is older than the key's record: above READ COMMITTED the handler runs in vain.
// The key is executed once, and the caller is told to repeat its transaction.
func txOldSnapshot[TX any](t *testing.T, c Client[TX]) {
	for level, again := range map[pg.Isolation]bool{pg.ReadCommitted: false, pg.RepeatableRead: true, pg.Serializable: true} {
		for verb, call := range map[string]func(b *bench[TX], tx TX) (repeat bool, err error){
			"DoTx": func(b *bench[TX], tx TX) (bool, error) {
				res, err := b.doTx(tx, "r1")
				return res.Replayed, err
			},
			"SeenTx": func(b *bench[TX], tx TX) (bool, error) {
				return b.keys.SeenTx(t.Context(), tx, refund.Key("m1", "r1"))
			},
		} {
			t.Run(verb+", "+string(level), func(t *testing.T) {
				t.Parallel()
				b := setup(t, c, 2)
				tx := b.open(level)
				b.exec(tx, `SELECT count(*) FROM effect`) // takes the snapshot
				_, err := b.other(1).do(t.Context(), "r1")
				noErr(t, err)
				repeat, err := call(b, tx)
				if again {
					wantErr(t, err, idem.ErrRetryTx)
					b.rollback(tx)
					tx = b.open(level)
					repeat, err = call(b, tx)
				}
				noErr(t, err)
				if !repeat {
					t.Error("taken for a new key")
				}
				b.commit(tx)
				b.effects(1)
				b.records(1)
			})
		}
	}
}

// Messages: seen exactly when the transaction that saw the key first has committed.
func txSeen[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 1)
	key := refund.Key("queue", "message 1")
	see := func(tx TX, want bool) {
		t.Helper()
		seen, err := b.keys.SeenTx(t.Context(), tx, key)
		noErr(t, err)
		if seen != want {
			t.Errorf("seen is %t", seen)
		}
	}
	tx := b.open("")
	see(tx, false)
	see(tx, true) // the same message twice in one batch
	b.rollback(tx)
	tx = b.open("")
	see(tx, false)
	b.commit(tx)
	tx = b.open("")
	see(tx, true)
	b.commit(tx)
	wantInt(t, "remembered for", b.db.Int(t, `SELECT count(*) FROM pgonce.idem_record WHERE remember_until > now() + interval '29 days'`), 1)
	b.db.Exec(t, `UPDATE pgonce.idem_record SET state = 3`)
	tx = b.open("")
	_, err := b.keys.SeenTx(t.Context(), tx, key)
	wantErr(t, err, idem.ErrUnknownOutcome)
	b.records(1)
}

// Two transactions take the same keys. In one order for both, one of them gets all.
func txSeveralKeys[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	keys := []idem.Key{refund.Key("m1", "a"), refund.Key("m1", "b"), refund.Key("m0", "c"), {}}[:3]
	reversed := slices.Clone(keys)
	slices.Reverse(reversed)
	slices.SortFunc(keys, idem.Key.Compare)
	slices.SortFunc(reversed, idem.Key.Compare)
	if !slices.EqualFunc(keys, reversed, func(a, b idem.Key) bool { return a.Compare(b) == 0 }) || keys[0].Scope() != "m0" {
		t.Errorf("%v and %v", keys, reversed)
	}
	one, two := b.open(""), b.open("")
	refused := 0
	for i := range keys {
		_, err := b.keys.SeenTx(t.Context(), one, keys[i])
		noErr(t, err)
		if refused == 0 {
			_, err = b.keys.SeenTx(t.Context(), two, reversed[i])
			wantErr(t, err, idem.ErrInFlight)
			refused++
			b.rollback(two)
		}
	}
	b.commit(one)
	b.records(3)
}
