//go:build unix

package conformance

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// What is said about a key in each of its states.
func idemInspect[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 3)
	op := idem.Op{Name: "refund.create", ReplayFor: time.Hour, RememberFor: idem.Forever}
	key := op.Key("m1", "r1")
	inspect := func() idem.Record {
		rec, err := b.keys.Inspect(t.Context(), key)
		noErr(t, err)
		return rec
	}
	if rec := inspect(); rec.State != idem.StateNone || rec.InFlight || rec.ResultBytes != -1 {
		t.Errorf("before: %+v", rec)
	}
	res, err := idem.Do(t.Context(), b.keys, key, idem.Bytes([]byte("a")), func(ctx context.Context, tx TX) (string, error) {
		if rec := inspect(); rec.State != idem.StateNone || !rec.InFlight {
			t.Errorf("in flight: %+v", rec)
		}
		return b.effect("r1")(ctx, tx)
	})
	noErr(t, err)
	rec := inspect()
	if rec.State != idem.StateDone || rec.InFlight || rec.Scope != "m1" || rec.Operation != op.Name || rec.ID != "r1" || len(rec.Digest) != 16 ||
		!rec.FirstAt.Equal(res.FirstAt) || rec.Attempt == 0 || rec.ReplayUntil.Sub(rec.FirstAt).Round(time.Minute) != time.Hour ||
		!rec.RememberUntil.IsZero() || rec.ResultBytes != int64(len(`"receipt r1"`)) || rec.Expired || rec.Forgettable || !rec.Fingerprinted {
		t.Errorf("done: %+v", rec)
	}
	b.age(op.Name, "61 minutes")
	if rec := inspect(); !rec.Expired || rec.Forgettable || rec.ResultBytes < 0 {
		t.Errorf("expired: %+v", rec)
	}
	b.db.Exec(t, `UPDATE pgonce.idem_record SET remember_until = now(), result = NULL`)
	if rec := inspect(); !rec.Expired || !rec.Forgettable || rec.ResultBytes != -1 {
		t.Errorf("forgettable: %+v", rec)
	}
	b.db.Exec(t, `UPDATE pgonce.idem_record SET state = 3`)
	if rec := inspect(); rec.State != idem.StateUnknown || rec.Expired || rec.Forgettable {
		t.Errorf("unknown: %+v", rec)
	}
	_, err = b.keys.Inspect(t.Context(), op.Key("", "r1"))
	wantErr(t, err, idem.ErrInvalidKey)
}

// A listing yields what is there all the time once, whatever comes and goes meanwhile, and no other scope's.
func idemList[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 1) // the loop's body finds the connection free
	for i := range 30 {
		op := idem.Op{Name: fmt.Sprintf("op%d", i%2), HideID: i%2 == 1}
		_, err := idem.Do(t.Context(), b.keys, op.Key([]string{"m1", "m2"}[i/20], fmt.Sprint("r", i)), idem.NoFingerprint(), b.effect("x"))
		noErr(t, err)
	}
	b.db.Exec(t, `UPDATE pgonce.idem_record SET state = 3 WHERE id = 'r4'`)
	list := func(scope string, cfg *idem.ListConfig) (all []idem.Record) {
		for rec, err := range b.keys.List(t.Context(), scope, cfg) {
			noErr(t, err)
			all = append(all, rec)
		}
		return all
	}
	for _, size := range []int{0, 1, 3, 19, 20, 21} {
		all := list("m1", &idem.ListConfig{PageSize: size})
		if len(all) != 20 || !slices.IsSortedFunc(all, func(a, b idem.Record) int { return slices.Compare(a.Digest, b.Digest) }) {
			t.Errorf("by %d: %d records, sorted or not", size, len(all))
		}
		if rest := list("m1", &idem.ListConfig{PageSize: size, After: all[6].Digest}); len(rest) != 13 || string(rest[0].Digest) != string(all[7].Digest) {
			t.Errorf("by %d: after the seventh %d are left", size, len(rest))
		}
	}
	if got := list("m2", nil); len(got) != 10 || len(list("m", nil)) != 0 {
		t.Errorf("m2: %d", len(got))
	}
	for _, rec := range list("m1", &idem.ListConfig{Operation: "op1"}) {
		if rec.Operation != "op1" || rec.ID != "" {
			t.Errorf("got %+v, want op1, which hides ids", rec)
		}
	}
	if got := list("m1", &idem.ListConfig{State: idem.StateUnknown}); len(got) != 1 || got[0].ID != "r4" {
		t.Errorf("unknown: %v", got)
	}
	seen := map[string]int{}
	for rec, err := range b.keys.List(t.Context(), "m1", &idem.ListConfig{PageSize: 2}) {
		noErr(t, err)
		seen[string(rec.Digest)]++
		_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", fmt.Sprint("new", len(seen))), idem.NoFingerprint(), b.effect("x"))
		noErr(t, err)
		if len(seen) > 60 {
			break
		}
	}
	for _, rec := range list("m1", &idem.ListConfig{Operation: "op0"}) {
		wantInt(t, "seen", int64(seen[string(rec.Digest)]), 1)
	}
	for _, err := range b.keys.List(t.Context(), "m1", nil) {
		noErr(t, err)
		break // leaves nothing behind
	}
	for scope, cfg := range map[string]*idem.ListConfig{"": nil, "m1": {PageSize: -1}, "m2": {PageSize: 1 << 20}} {
		for _, err := range b.keys.List(t.Context(), scope, cfg) {
			wantErr(t, err, idem.ErrInvalidKey)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range b.keys.List(gone, "m1", nil) {
		wantErr(t, err, context.Canceled)
	}
}

// Forgetting is written down, with what was forgotten, or it does not happen.
func idemForget[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 3)
	key := refund.Key("m1", "r1")
	wantErr(t, b.keys.Forget(t.Context(), key, "not there"), idem.ErrNoRecord)
	_, err := idem.Do(t.Context(), b.keys, key, idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		wantErr(t, b.keys.Forget(t.Context(), key, "too early"), idem.ErrInFlight)
		return b.effect("r1")(ctx, tx)
	})
	noErr(t, err)
	for _, reason := range []string{"", "two\nlines", string(make([]byte, 2000))} {
		wantErr(t, b.keys.Forget(t.Context(), key, reason), idem.ErrInvalidKey)
	}
	wantErr(t, b.keys.Forget(t.Context(), refund.Key("m1", ""), "no key"), idem.ErrInvalidKey)
	b.records(1)
	wantInt(t, "written down", b.db.Int(t, `SELECT count(*) FROM pgonce.idem_forgotten`), 0)

	noErr(t, b.keys.Forget(t.Context(), key, "ticket 4711, Ada: wrong account"))
	b.records(0)
	wantInt(t, "written down", b.db.Int(t, `SELECT count(*) FROM pgonce.idem_forgotten WHERE scope = 'm1' AND op = 'refund.create' AND id = 'r1'
		AND state = 1 AND result_bytes = 12 AND reason = 'ticket 4711, Ada: wrong account' AND by = session_user
		AND application = current_setting('application_name') AND forgotten_at BETWEEN created_at AND now()`), 1)
	wantErr(t, b.keys.Forget(t.Context(), key, "again"), idem.ErrNoRecord)
	res, err := idem.Do(t.Context(), b.keys, key, idem.NoFingerprint(), b.effect("r1"))
	noErr(t, err)
	if res.Replayed {
		t.Error("replayed after it was forgotten")
	}
	b.effects(2) // as the documentation says

	b.db.Exec(t, `UPDATE pgonce.idem_record SET state = 3, result = NULL`) // a blocked key
	_, err = b.do(t.Context(), "r1")
	wantErr(t, err, idem.ErrUnknownOutcome)
	b.quiet() // that call has let go of the key
	noErr(t, b.keys.Forget(t.Context(), key, "looked: nothing was written"))
	wantInt(t, "written down", b.db.Int(t, `SELECT count(*) FROM pgonce.idem_forgotten WHERE state = 3 AND result_bytes IS NULL`), 1)

	_, err = b.do(t.Context(), "r2")
	noErr(t, err)
	b.db.Exec(t, `ALTER TABLE pgonce.idem_forgotten ADD CHECK (reason <> 'not in the books')`)
	if err := b.keys.Forget(t.Context(), refund.Key("m1", "r2"), "not in the books"); err == nil {
		t.Error("forgotten without being written down")
	}
	res, err = b.do(t.Context(), "r2")
	noErr(t, err)
	if !res.Replayed {
		t.Error("a forgetting that failed forgot")
	}
}

// One role for each tenant, and a policy by scope: nobody can see, replay or take another's keys. The purge needs a role
// that sees all.
func idemRowSecurity[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects+`; ALTER TABLE pgonce.idem_record ENABLE ROW LEVEL SECURITY;
		CREATE POLICY tenant ON pgonce.idem_record USING (scope = current_user) WITH CHECK (scope = current_user)`)
	owner := at(t, c, db, c.Open(t, db, 2), quick)
	tenant := func() (*bench[TX], string) {
		role := db.Role(t)
		db.GrantDML(t, role)
		db.Exec(t, `GRANT INSERT, SELECT ON effect TO "`+role+`"`)
		via := db.Via(db.As(t, role))
		return at(t, c, via, c.Open(t, via, 2), quick), role
	}
	a, alice := tenant()
	m, mallory := tenant()
	do := func(b *bench[TX], scope string) (idem.Result[string], error) {
		return idem.Do(t.Context(), b.keys, refund.Key(scope, "r1"), idem.NoFingerprint(), b.effect("r1"))
	}
	_, err := do(a, alice)
	noErr(t, err)
	res, err := do(a, alice)
	noErr(t, err)
	if !res.Replayed {
		t.Error("alice's repeat was not replayed")
	}
	owner.quiet()         // alice's repeat has let go of the key
	_, err = do(m, alice) // is rolled back: the record may not be written
	wantText(t, err, "row-level security")
	_, ok, err := idem.Lookup[string](t.Context(), m.keys, refund.Key(alice, "r1"), idem.NoFingerprint())
	if ok || err != nil {
		t.Errorf("mallory looked up alice's key: %v, %v", ok, err)
	}
	if rec, err := m.keys.Inspect(t.Context(), refund.Key(alice, "r1")); err != nil || rec.State != idem.StateNone {
		t.Errorf("mallory inspected alice's key: %+v, %v", rec, err)
	}
	for rec, err := range m.keys.List(t.Context(), alice, nil) {
		t.Errorf("mallory listed %v, %v", rec, err)
	}
	wantErr(t, m.keys.Forget(t.Context(), refund.Key(alice, "r1"), "mine now"), idem.ErrNoRecord)
	_, err = do(m, mallory)
	noErr(t, err)
	owner.effects(2)
	owner.records(2)
	owner.age(refund.Name, "31 days")
	stats, err := m.keys.PurgeOnce(t.Context())
	noErr(t, err)
	wantInt(t, "mallory purged", stats.Deleted, 1) // its own
	stats, err = owner.keys.PurgeOnce(t.Context())
	noErr(t, err)
	wantInt(t, "the owner purged", stats.Deleted, 1)
}

// A newer release has migrated: it added a column that this one does not know, and admits this one.
func idemNewerSchema[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects)
	old := at(t, c, db, c.Open(t, db, 2), nil)
	_, err := old.do(t.Context(), "before")
	noErr(t, err)
	db.Exec(t, `ALTER TABLE pgonce.idem_record ADD COLUMN region text NOT NULL DEFAULT 'eu'; INSERT INTO pgonce.schema_version VALUES (1000, 1)`)
	started := at(t, c, db, c.Open(t, db, 2), quick)
	noErr(t, started.keys.Validate(t.Context()))
	for _, b := range []*bench[TX]{old, started} {
		for id, replayed := range map[string]bool{"before": true, fmt.Sprintf("%p", b): false} {
			res, err := b.do(t.Context(), id)
			noErr(t, err)
			if res.Replayed != replayed {
				t.Errorf("%s: replayed %v", id, res.Replayed)
			}
		}
	}
	key := refund.Key("m1", "before")
	rec, err := started.keys.Inspect(t.Context(), key)
	noErr(t, err)
	wantInt(t, "state", int64(rec.State), int64(idem.StateDone))
	_, err = started.keys.PurgeOnce(t.Context())
	noErr(t, err)
	noErr(t, started.keys.Forget(t.Context(), key, "test"))
	started.records(2)
	db.Exec(t, `UPDATE pgonce.schema_version SET min_code = 1000 WHERE version = 1000`)
	late := at(t, c, db, c.Open(t, db, 1), nil)
	_, err = late.do(t.Context(), "late")
	wantErr(t, err, idem.ErrSchema)
	wantText(t, err, "upgrade the module")
}
