//go:build unix

package conformance

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// Every call ends with exactly one event, which says what the caller was told; what happens on the way
// has events of its own. No transaction of the call is open when it is told.
func idemEvents[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects)
	var mu sync.Mutex
	var events []idem.Event
	b := at(t, c, db, c.Open(t, db, 2), &idem.Config{Observe: func(e idem.Event) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, e)
	}})
	type handler = func(context.Context, TX) (string, error)
	fails := func(errs ...error) handler {
		return func(context.Context, TX) (string, error) {
			err := errs[0]
			if len(errs) > 1 {
				errs = errs[1:]
			}
			return "", err
		}
	}
	call := func(id string, fp idem.Fingerprint, fn handler) {
		_, _ = idem.Do(t.Context(), b.keys, refund.Key("m1", id), fp, fn)
	}
	a, other := idem.Bytes([]byte("a")), idem.Bytes([]byte("other"))
	for _, tc := range []struct {
		name string
		call func()
		want []idem.EventKind
	}{
		{"new", func() { call("r1", a, b.effect("r1")) }, []idem.EventKind{idem.Executed}},
		{"repeat", func() { call("r1", a, b.effect("r1")) }, []idem.EventKind{idem.Replayed}},
		{"another request", func() { call("r1", other, b.effect("r1")) }, []idem.EventKind{idem.Failed}},
		{"handler fails", func() { call("r2", a, fails(errRefused)) }, []idem.EventKind{idem.Failed}},
		{"refused", func() { call("r3", a, b.refuse) }, []idem.EventKind{idem.Refused}},
		{"refused before", func() { call("r3", a, b.refuse) }, []idem.EventKind{idem.Refused}},
		{"retried", func() { call("r4", a, fails(sqlStateError(pg.CodeSerialization), nil)) }, []idem.EventKind{idem.Retried, idem.Executed}},
		{"blocked", func() {
			call("r5", a, func(ctx context.Context, tx TX) (string, error) { return "", b.Exec(ctx, tx, `COMMIT`) })
		}, []idem.EventKind{idem.Blocked, idem.Failed}},
		{"looked up, not there", func() {
			_, _, _ = idem.Lookup[string](t.Context(), b.keys, refund.Key("m1", "r6"), a)
		}, nil},
		{"looked up", func() { _, _, _ = idem.Lookup[string](t.Context(), b.keys, refund.Key("m1", "r1"), a) }, []idem.EventKind{idem.Replayed}},
		{"panic", func() {
			defer func() { _ = recover() }()
			call("r9", a, func(context.Context, TX) (string, error) { panic("boom") })
		}, []idem.EventKind{idem.Failed}},
		{"undecodable", func() {
			_, _ = idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), a, func(context.Context, TX) (int, error) { return 0, nil })
		}, []idem.EventKind{idem.Failed}},
		{"invalid key", func() { call("", a, b.effect("x")) }, nil}, // never became a call
		{"in a transaction", func() {
			tx := b.open("")
			_, _ = b.doTx(tx, "r7")
			_, _ = b.doTx(tx, "r7")
			_, _ = b.keys.SeenTx(t.Context(), tx, refund.Key("m1", "r8"))
			_, _ = b.keys.SeenTx(t.Context(), tx, refund.Key("m1", "r8"))
			b.commit(tx)
		}, []idem.EventKind{idem.Executed, idem.Replayed, idem.Executed, idem.Replayed}},
	} {
		events = nil
		tc.call()
		var got []idem.EventKind
		for _, e := range events {
			got = append(got, e.Kind)
			if e.Key.Scope() != "m1" || e.Took <= 0 || (e.Err != nil) != (e.Kind == idem.Failed || e.Kind == idem.Refused || e.Kind == idem.Retried) {
				t.Errorf("%s: %+v", tc.name, e)
			}
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}
