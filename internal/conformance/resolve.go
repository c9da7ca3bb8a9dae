//go:build unix

package conformance

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/pgonce/pgonce/idem"
)

// A person ends a key in steps: it is done, and repeats get what the person has found out.
func stepsResolveEnds[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	k := &bank{err: errBank}
	key := remit.Key("m1", "r1")
	_, err := b.run(t.Context(), "r1", b.remits(k, idem.AtMostOnce[string](nil)))
	wantErr(t, err, idem.ErrUnknownOutcome)
	ended := idem.Resolution{Outcome: idem.Happened, Value: "by hand", Actor: "ann", Reason: "ticket 4711: I have seen the statement"}
	wantErr(t, b.keys.Resolve(t.Context(), key, ended), idem.ErrUnknownOutcome) // a step is undecided
	b.left(1, 2, 1)
	noErr(t, b.keys.Resolve(t.Context(), key, idem.Resolution{Step: "pay", Outcome: idem.Happened, Value: "serial 7", Actor: "ann", Reason: "seen"}))
	noErr(t, b.keys.Resolve(t.Context(), key, ended))
	b.left(0, 0, 1) // what it had done stays, what it had not is not done
	b.records(1)
	res, err := b.run(t.Context(), "r1", b.remits(k))
	if err != nil || res.Value != "by hand" || !res.Replayed {
		t.Errorf("got %+v, %v", res, err)
	}
	wantInt(t, "calls", int64(k.calls), 1)
	wantInt(t, "on record", b.db.Int(t, `SELECT count(*) FROM pgonce.idem_resolution WHERE id = 'r1' AND actor = 'ann' AND outcome = $1
		AND step = '' AND reason LIKE 'ticket 4711%' AND result = '"by hand"'`, int(idem.Happened)), 1)
	wantErr(t, b.keys.Resolve(t.Context(), key, ended), idem.ErrNotStuck)

	dead := func(id string) {
		_, err := b.run(t.Context(), id, b.remits(&bank{err: errBank}))
		wantErr(t, err, errBank)
		b.db.Exec(t, `UPDATE pgonce.idem_lease SET state = 2`)
		_, err = b.run(t.Context(), id, b.remits(k))
		wantErr(t, err, idem.ErrDead)
	}
	dead("r2")
	noErr(t, b.keys.Resolve(t.Context(), remit.Key("m1", "r2"), ended))
	res, err = b.run(t.Context(), "r2", b.remits(k))
	if err != nil || res.Value != "by hand" {
		t.Errorf("got %+v, %v", res, err)
	}
	b.left(0, 0, 2)
}

// Keys in steps are forgotten when they are finished, and not before. Then they are executed anew, and the other side meets the references that
// it knows.
func stepsForget[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 4)
	key := remit.Key("m1", "r1")
	forget := func() error { return b.keys.Forget(t.Context(), key, "ticket 4711") }
	k := &bank{before: func() { wantErr(t, forget(), idem.ErrInFlight) }, err: errBank}
	_, err := b.run(t.Context(), "r1", b.remits(k)) // a live lease, then one that is left
	wantErr(t, err, errBank)
	wantErr(t, forget(), idem.ErrUnfinished)
	k.before = func() {
		b.expire()
		wantErr(t, forget(), idem.ErrUnfinished) // an owner that is frozen
	}
	_, err = b.run(t.Context(), "r1", b.remits(k))
	if err == nil {
		t.Error("the lease was over, and the key is finished")
	}
	b.db.Exec(t, `UPDATE pgonce.idem_lease SET state = 2`)
	wantErr(t, forget(), idem.ErrUnfinished)
	b.left(1, 1, 1)
	wantInt(t, "written down", b.db.Int(t, `SELECT count(*) FROM pgonce.idem_forgotten`), 0)

	noErr(t, b.keys.Resolve(t.Context(), key, idem.Resolution{Refuse: true, Actor: "ann", Reason: "wrong account"}))
	_, err = b.run(t.Context(), "r1", b.remits(k))
	wantErr(t, err, idem.ErrRefused)
	b.left(0, 0, 1)
	noErr(t, forget())
	k.before, k.err = nil, nil
	first := slices.Sorted(maps.Keys(k.paid))
	_, err = b.run(t.Context(), "r1", b.remits(k))
	noErr(t, err)
	if again := slices.Sorted(maps.Keys(k.paid)); len(first) != 1 || !slices.Equal(first, again) {
		t.Errorf("paid under %v, and then under %v", first, again)
	}
	b.left(0, 0, 3)

	_, err = b.run(t.Context(), "r2", func(ctx context.Context, run *idem.Run[TX], _ remittance) (string, error) {
		return idem.StepTx(ctx, run, "decide", func(context.Context, TX) (string, error) {
			wantErr(t, b.keys.Forget(t.Context(), remit.Key("m1", "r2"), "too early"), idem.ErrInFlight) // and does not wait
			return "", nil
		})
	})
	noErr(t, err)
}

// A handler of Do has ended its transaction, which blocks the key. A person who has found its effect gives it its answer.
func idemResolveBlocked[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 3)
	ends := func(id string) {
		_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", id), idem.Bytes([]byte(id)), func(ctx context.Context, tx TX) (string, error) {
			noErr(t, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('r1')`))
			return "", b.Exec(ctx, tx, `COMMIT`)
		})
		wantErr(t, err, idem.ErrTxEnded)
	}
	do := func(id, body string) (idem.Result[string], error) {
		return idem.Do(t.Context(), b.keys, refund.Key("m1", id), idem.Bytes([]byte(body)), b.effect("again"))
	}
	resolve := func(id string, r idem.Resolution) error {
		r.Actor, r.Reason = "ann", "ticket 4711"
		return b.keys.Resolve(t.Context(), refund.Key("m1", id), r)
	}
	for _, id := range []string{"done", "refused", "typo"} {
		ends(id)
		_, err := do(id, id)
		wantErr(t, err, idem.ErrUnknownOutcome)
	}
	wantErr(t, resolve("done", idem.Resolution{}), idem.ErrNotStuck)
	wantErr(t, resolve("done", idem.Resolution{Step: "pay", Outcome: idem.Happened}), idem.ErrNotStuck)
	wantErr(t, resolve("nobody", idem.Resolution{Outcome: idem.Happened}), idem.ErrNotStuck)
	wantInt(t, "on record", b.db.Int(t, `SELECT count(*) FROM pgonce.idem_resolution`), 0)

	noErr(t, resolve("done", idem.Resolution{Outcome: idem.Happened, Value: "by hand"}))
	res, err := do("done", "done")
	if err != nil || res.Value != "by hand" || !res.Replayed {
		t.Errorf("got %+v, %v", res, err)
	}
	_, err = do("done", "another request")
	wantErr(t, err, idem.ErrMismatch)
	wantErr(t, resolve("done", idem.Resolution{Outcome: idem.Happened, Value: "again"}), idem.ErrNotStuck)
	wantErr(t, resolve("done", idem.Resolution{Refuse: true}), idem.ErrNotStuck)

	noErr(t, resolve("refused", idem.Resolution{Refuse: true}))
	_, err = do("refused", "refused")
	if refused, ok := errors.AsType[*idem.RefusedError](err); !ok || refused.Reason != "ticket 4711" {
		t.Errorf("got %v", err)
	}
	noErr(t, resolve("typo", idem.Resolution{Outcome: idem.Happened, Value: 7})) // a number, where a text is read
	if _, err := do("typo", "typo"); err == nil {
		t.Error("a value of another type was read")
	}
	b.effects(3)
	wantInt(t, "on record", b.db.Int(t, `SELECT count(*) FROM pgonce.idem_resolution WHERE op = 'refund.create' AND actor = 'ann' AND id IS NOT NULL`), 3)
}
