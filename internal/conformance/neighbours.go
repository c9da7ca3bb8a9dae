//go:build unix

package conformance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// One role for each tenant, and a policy by scope on what is under way: nobody can see, execute, complete, resolve or forget another's keys.
func stepsRowSecurity[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects)
	for _, table := range []string{"idem_record", "idem_lease", "idem_step", "idem_resolution", "idem_forgotten"} {
		db.Exec(t, fmt.Sprintf(`ALTER TABLE pgonce.%s ENABLE ROW LEVEL SECURITY;
			CREATE POLICY tenant ON pgonce.%[1]s USING (scope = current_user) WITH CHECK (scope = current_user)`, table))
	}
	owner := at(t, c, db, c.Open(t, db, 2), nil)
	tenant := func() (*bench[TX], string) {
		role := db.Role(t)
		db.GrantDML(t, role)
		db.Exec(t, `GRANT INSERT, SELECT ON effect TO "`+role+`"`)
		via := db.Via(db.As(t, role))
		return at(t, c, via, c.Open(t, via, 3), nil), role
	}
	a, alice := tenant()
	m, mallory := tenant()
	run := func(b *bench[TX], scope string, fn stepsFunc[TX]) error {
		_, err := idem.RunSteps(t.Context(), b.keys, remit.Key(scope, "r1"), idem.NoFingerprint(), remittance{1}, fn)
		return err
	}
	k := &bank{err: errBank}
	wantErr(t, run(a, alice, a.remits(k, idem.AtMostOnce[string](nil))), idem.ErrUnknownOutcome)

	k.err = nil
	wantText(t, run(m, alice, m.remits(k)), "row-level security")
	if list, err := m.keys.Stuck(t.Context(), 10); len(list) != 0 || err != nil {
		t.Errorf("mallory sees %+v, %v", list, err)
	}
	key, said := remit.Key(alice, "r1"), idem.Resolution{Step: "pay", Outcome: idem.NeverHappened, Actor: "mallory", Reason: "mine now"}
	wantErr(t, m.keys.Resolve(t.Context(), key, said), idem.ErrNotStuck)
	wantErr(t, m.keys.Forget(t.Context(), key, "mine now"), idem.ErrNoRecord)
	stop := m.completes(m.remits(k)) // finds nothing of alice's
	noErr(t, run(m, mallory, m.remits(k)))
	stop()
	wantInt(t, "calls", int64(k.calls), 2) // one for each
	owner.left(1, 2, 3)

	if list, err := a.keys.Stuck(t.Context(), 10); len(list) != 1 || err != nil {
		t.Errorf("alice sees %+v, %v", list, err)
	}
	said.Outcome, said.Value = idem.Happened, "serial 7"
	noErr(t, a.keys.Resolve(t.Context(), key, said))
	noErr(t, run(a, alice, a.remits(k, idem.AtMostOnce[string](nil))))
	wantInt(t, "calls", int64(k.calls), 2)
	owner.left(0, 0, 4)
	noErr(t, a.keys.Forget(t.Context(), key, "test"))
}

// Two releases of a service work on one table at the same time. They differ in what they answer, in what they show of ids, in how long they wait and
// remember, and in how they run steps. A key has one effect, and both read what the other one has stored.
func idemTwoReleases[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects)
	type receipt struct{ Number string }
	type receiptV2 struct{ Number, Currency string }
	v1 := at(t, c, db, c.Open(t, db, 4), nil)
	v2 := at(t, c, db, c.Open(t, db, 4), &idem.Config{HideIDs: true, Lease: time.Second})
	op1 := idem.Op{Name: "refund.create", Wait: 30 * time.Second}
	op2 := idem.Op{Name: "refund.create", Wait: time.Minute, ReplayFor: idem.Forever, RememberFor: idem.Forever, MaxHandler: time.Minute}
	const keys = 20
	var both sync.WaitGroup
	ask := func(id string, n int) (string, error) {
		body := idem.JSON([]byte(`{"cents": 1250, "id": "` + id + `"}`))
		if n%2 == 0 {
			res, err := idem.Do(t.Context(), v1.keys, op1.Key("m1", id), body, func(ctx context.Context, tx TX) (receipt, error) {
				text, err := v1.effect(id)(ctx, tx)
				return receipt{text}, err
			})
			return res.Value.Number, err
		}
		res, err := idem.Do(t.Context(), v2.keys, op2.Key("m1", id), body, func(ctx context.Context, tx TX) (receiptV2, error) {
			text, err := v2.effect(id)(ctx, tx)
			return receiptV2{text, "EUR"}, err
		})
		if cur := res.Value.Currency; err == nil && cur != "" && cur != "EUR" {
			err = errors.New("read " + cur)
		}
		return res.Value.Number, err
	}
	for n := range 4 {
		both.Go(func() {
			for i := range keys {
				if got, err := ask(fmt.Sprint("r", i), n); err != nil || got != fmt.Sprintf("receipt r%d", i) {
					t.Errorf("release %d, r%d: %q, %v", n%2+1, i, got, err)
				}
			}
		})
	}
	both.Wait()
	v1.effects(keys)
	v1.records(keys)

	// A key in steps that the old release has begun is finished by the new one, which has another kind of step and one more; the old one
	// then reads its result.
	_, err := v1.run(t.Context(), "s1", v1.remits(&bank{err: errBank}))
	wantErr(t, err, errBank)
	k := &bank{}
	res, err := v2.run(t.Context(), "s1", func(ctx context.Context, run *idem.Run[TX], in remittance) (string, error) {
		serial, err := v2.remits(k, once(k))(ctx, run, in)
		if err != nil {
			return "", err
		}
		return idem.Step(ctx, run, "tell", func(context.Context, string) (string, error) { return serial, nil })
	})
	noErr(t, err)
	again, err := v1.run(t.Context(), "s1", v1.remits(k))
	noErr(t, err)
	if !again.Replayed || again.Value != res.Value {
		t.Errorf("got %+v after %+v", again, res)
	}
	wantInt(t, "calls", int64(k.calls), 1)
}
