//go:build unix

package conformance

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/pgonce/pgonce/idem"
)

// once is a payment that the bank would make twice.
func once(k *bank) idem.StepOption[string] { return idem.AtMostOnce(k.enquire) }

// The bank pays and does not answer. It is not asked to pay again: the next attempt enquires.
func stepsTimeoutAfterPaying[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	k := &bank{err: errBank}
	_, err := b.run(t.Context(), "r1", b.remits(k, once(k)))
	wantErr(t, err, idem.ErrUnknownOutcome)
	wantErr(t, err, errBank)
	list, err := b.keys.Stuck(t.Context(), 10)
	noErr(t, err)
	if len(list) != 1 || list[0].Step != "pay" || list[0].ID != "r1" || k.paid[list[0].Downstream] != 1 || list[0].Dead {
		t.Errorf("stuck: %+v, paid %v", list, k.paid)
	}
	k.err = nil
	res, err := b.run(t.Context(), "r1", b.remits(k, once(k)))
	noErr(t, err)
	if res.Value != "serial of "+list[0].Downstream {
		t.Errorf("got %+v", res)
	}
	wantInt(t, "calls", int64(k.calls), 1)
	wantInt(t, "enquiries", int64(k.asked), 1)
	b.left(0, 0, 2)
}

// The call did not reach the bank, which says so, and refuses its reference from then on. It is made under another one.
func stepsNeverHappened[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	k := &bank{}
	var first string
	_, err := b.run(t.Context(), "r1", func(ctx context.Context, run *idem.Run[TX], _ remittance) (string, error) {
		return idem.Step(ctx, run, "pay", func(_ context.Context, reference string) (string, error) {
			first = reference
			return "", errBank
		}, once(k))
	})
	wantErr(t, err, idem.ErrUnknownOutcome)
	_, err = b.run(t.Context(), "r1", b.remitsFrom(k, once(k)))
	noErr(t, err)
	if k.paid[first] != 0 || !k.refused[first] {
		t.Errorf("paid %v, refused %v, first %s", k.paid, k.refused, first)
	}
	wantInt(t, "payments", int64(k.payments()), 1)
	b.left(0, 0, 0)
}

// As long as nobody can say what became of a call, nothing is called, and nothing that the function returns ends the key.
func stepsUnsure[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	k := &bank{err: errBank}
	answers := map[string]func(context.Context, string) (string, idem.Outcome, error){
		"unsure":  func(context.Context, string) (string, idem.Outcome, error) { return "", idem.Unsure, nil },
		"fails":   func(context.Context, string) (string, idem.Outcome, error) { return "x", idem.Happened, errBank },
		"nothing": nil,
	}
	_, err := b.run(t.Context(), "r1", b.remitsFrom(k, idem.AtMostOnce(answers["unsure"])))
	wantErr(t, err, idem.ErrUnknownOutcome)
	for name, reconcile := range answers {
		_, err := b.run(t.Context(), "r1", b.remitsFrom(k, idem.AtMostOnce(reconcile)))
		if !errors.Is(err, idem.ErrUnknownOutcome) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	_, err = b.run(t.Context(), "r1", b.remitsFrom(k)) // a release that forgot what kind of step it is
	wantErr(t, err, idem.ErrUnknownOutcome)
	for _, result := range []error{nil, idem.Final(errBank), errBank} {
		_, err := b.run(t.Context(), "r1", func(ctx context.Context, run *idem.Run[TX], in remittance) (string, error) {
			_, _ = b.remitsFrom(k, idem.AtMostOnce(answers["unsure"]))(ctx, run, in)
			_, again := idem.Step(ctx, run, "another", k.pay)
			wantErr(t, again, idem.ErrUnknownOutcome)
			return "swallowed", result
		})
		wantErr(t, err, idem.ErrUnknownOutcome)
	}
	_, err = b.run(t.Context(), "r1", func(ctx context.Context, run *idem.Run[TX], in remittance) (string, error) {
		_, err := b.remitsFrom(k, idem.AtMostOnce(answers["unsure"]))(ctx, run, in)
		return "", idem.Final(fmt.Errorf("refused: %w", err))
	})
	wantErr(t, err, idem.ErrUnknownOutcome)
	wantInt(t, "calls", int64(k.calls), 1)
	b.left(1, 1, 0)
	b.records(0)
}

// A person decides, and it is on record who and why.
func stepsResolve[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	k := &bank{err: errBank}
	asked := idem.AtMostOnce[string](nil)
	for _, id := range []string{"happened", "never", "refused"} {
		_, err := b.run(t.Context(), id, b.remitsFrom(k, asked))
		wantErr(t, err, idem.ErrUnknownOutcome)
	}
	k.err = nil
	resolve := func(id string, r idem.Resolution) error {
		r.Actor, r.Reason = "ann", "I have called the bank"
		return b.keys.Resolve(t.Context(), remit.Key("m1", id), r)
	}
	wantErr(t, resolve("refused", idem.Resolution{Refuse: true}), idem.ErrUnknownOutcome)
	wantErr(t, resolve("refused", idem.Resolution{Step: "another", Outcome: idem.Happened}), idem.ErrNotStuck)
	wantErr(t, resolve("refused", idem.Resolution{}), idem.ErrNotStuck)
	wantErr(t, resolve("nobody", idem.Resolution{}), idem.ErrNotStuck)
	wantInt(t, "resolutions", b.db.Int(t, `SELECT count(*) FROM pgonce.idem_resolution`), 0)

	noErr(t, resolve("happened", idem.Resolution{Step: "pay", Outcome: idem.Happened, Value: "serial 7"}))
	res, err := b.run(t.Context(), "happened", b.remitsFrom(k, asked))
	if err != nil || res.Value != "serial 7" {
		t.Errorf("got %+v, %v", res, err)
	}
	noErr(t, resolve("never", idem.Resolution{Step: "pay", Outcome: idem.NeverHappened}))
	calls := k.calls
	_, err = b.run(t.Context(), "never", b.remitsFrom(k, asked))
	noErr(t, err)
	wantInt(t, "calls after never", int64(k.calls-calls), 1)
	wantInt(t, "references", int64(len(k.paid)), 4)
	noErr(t, resolve("refused", idem.Resolution{Step: "pay", Outcome: idem.NeverHappened, Refuse: true}))
	_, err = b.run(t.Context(), "refused", b.remitsFrom(k, asked))
	wantErr(t, err, idem.ErrRefused)
	wantText(t, err, "I have called the bank")
	wantInt(t, "resolutions", b.db.Int(t, `SELECT count(*) FROM pgonce.idem_resolution WHERE actor = 'ann' AND reason LIKE 'I have%' AND step = 'pay' AND id IS NOT NULL`), 3)
	b.left(0, 0, 0)
	b.records(3)
}

// What cannot be resolved: by nobody, without a reason, while somebody is at work.
func stepsResolveMisuse[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 3)
	key := remit.Key("m1", "r1")
	for says, r := range map[string]idem.Resolution{
		"Actor":           {Reason: "r"},
		"Reason":          {Actor: "a"},
		"without a Step":  {Actor: "a", Reason: "r", Outcome: idem.NeverHappened},
		"Refuse and":      {Actor: "a", Reason: "r", Outcome: idem.Happened, Refuse: true},
		"must be":         {Actor: "a", Reason: "r", Step: "pay"},
		"a Value without": {Actor: "a", Reason: "r", Step: "pay", Outcome: idem.NeverHappened, Value: 1},
	} {
		wantText(t, b.keys.Resolve(t.Context(), key, r), says)
	}
	_, err := b.run(t.Context(), "r1", b.remits(&bank{before: func() {
		err := b.keys.Resolve(t.Context(), key, idem.Resolution{Actor: "a", Reason: "r"})
		wantErr(t, err, idem.ErrInFlight)
	}}))
	noErr(t, err)
	_, err = b.run(t.Context(), "r2", func(ctx context.Context, run *idem.Run[TX], _ remittance) (string, error) {
		return idem.StepTx(ctx, run, "decide", func(context.Context, TX) (string, error) {
			err := b.keys.Resolve(t.Context(), remit.Key("m1", "r2"), idem.Resolution{Actor: "a", Reason: "r"})
			wantErr(t, err, idem.ErrInFlight) // the transaction holds the row
			return "", nil
		})
	})
	noErr(t, err)
}

// A person decides while the owner is frozen. The owner does not own the key any more when it wakes up.
func stepsResolveTakesAway[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 3)
	k := &bank{}
	_, err := b.run(t.Context(), "r1", func(ctx context.Context, run *idem.Run[TX], _ remittance) (string, error) {
		return idem.Step(ctx, run, "pay", func(context.Context, string) (string, error) {
			b.expire()
			noErr(t, b.keys.Resolve(t.Context(), run.Key(), idem.Resolution{Step: "pay", Outcome: idem.Happened, Value: "theirs", Actor: "a", Reason: "r"}))
			return "mine", nil
		}, once(k))
	})
	wantErr(t, err, idem.ErrLeaseLost)
	res, err := b.run(t.Context(), "r1", b.remitsFrom(k, once(k)))
	noErr(t, err)
	if res.Value != "theirs" {
		t.Errorf("got %+v", res)
	}
	wantInt(t, "calls", int64(k.calls), 0)
}

// A deploy has changed the steps of a key that is under way: nothing is called.
func stepsChanged[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	_, err := b.run(t.Context(), "r1", b.remits(&bank{err: errBank}))
	wantErr(t, err, errBank)
	k := &bank{}
	for name, fn := range map[string]stepsFunc[TX]{
		"another first step": b.remitsFrom(k),
		"fewer steps":        func(context.Context, *idem.Run[TX], remittance) (string, error) { return "done", nil },
	} {
		_, err := b.run(t.Context(), "r1", fn)
		wantErr(t, err, idem.ErrStepsChanged)
		changed, ok := errors.AsType[*idem.StepsChangedError](err)
		if !ok || changed.Stored != "decide" || changed.Step != 0 {
			t.Errorf("%s: got %#v", name, err)
		}
	}
	wantInt(t, "calls", int64(k.calls), 0)
	b.left(1, 1, 1)
	_, err = b.run(t.Context(), "r1", b.remits(k)) // as it was
	noErr(t, err)
	b.left(0, 0, 2)
}

// Steps that are used as they must not be.
func stepsMisuse[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 3)
	one := func(context.Context, string) (int, error) { return 1, nil }
	var leaked *idem.Run[TX]
	_, err := b.run(t.Context(), "r1", func(ctx context.Context, run *idem.Run[TX], in remittance) (string, error) {
		leaked = run
		_, err := idem.Step(ctx, run, "", one)
		wantErr(t, err, idem.ErrInvalidKey)
		_, err = idem.Step[int](ctx, run, "a", nil)
		wantText(t, err, "nil")
		_, err = idem.Step(ctx, run, "a", func(ctx context.Context, _ string) (int, error) {
			_, err := idem.Step(ctx, run, "b", one)
			wantText(t, err, "under way")
			_, err = b.run(ctx, "r1", b.remits(&bank{}))
			wantErr(t, err, idem.ErrReentrant)
			_, err = idem.Do(ctx, b.keys, run.Key(), idem.NoFingerprint(), b.effect("x"))
			wantErr(t, err, idem.ErrReentrant)
			_, err = idem.Do(ctx, b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), b.effect("another key"))
			return 1, err
		})
		noErr(t, err)
		_, err = idem.Step(ctx, run, "a", one)
		wantText(t, err, "of this name")
		_, err = idem.StepTx(ctx, run, "c", func(ctx context.Context, tx TX) (string, error) {
			_, err := b.do(ctx, "r2")
			wantErr(t, err, idem.ErrNested)
			_, err = b.run(ctx, "r2", b.remits(&bank{}))
			wantErr(t, err, idem.ErrNested)
			res, err := idem.DoTx(ctx, b.keys, tx, refund.Key("m1", "r3"), idem.NoFingerprint(), b.effect("third key"))
			return res.Value, err
		})
		return "", err
	})
	noErr(t, err)
	_, err = idem.Step(t.Context(), leaked, "late", one)
	wantText(t, err, "has ended")
	_, err = idem.Do(t.Context(), b.keys, refund.Key("m1", "outer"), idem.NoFingerprint(), func(ctx context.Context, _ TX) (string, error) {
		_, err := b.run(ctx, "r9", b.remits(&bank{}))
		wantErr(t, err, idem.ErrNested)
		return "", nil
	})
	noErr(t, err)
	_, err = idem.RunSteps[int, int](t.Context(), b.keys, remit.Key("m1", "r1"), idem.NoFingerprint(), 1, nil)
	wantText(t, err, "nil function")
	_, err = idem.RunSteps(t.Context(), b.keys, remit.Key("m1", "r7"), idem.NoFingerprint(), func() {}, func(context.Context, *idem.Run[TX], func()) (int, error) { return 0, nil })
	wantText(t, err, "encode")
	b.left(0, 0, 2)
}

// A step in a transaction is held to what the handlers of Do are held to.
func stepsTxHandlers[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 3)
	step := func(id string, fn func(context.Context, TX) (string, error)) error {
		_, err := b.run(t.Context(), id, func(ctx context.Context, run *idem.Run[TX], _ remittance) (string, error) {
			return idem.StepTx(ctx, run, "write", fn)
		})
		return err
	}
	wantErr(t, step("fails", func(ctx context.Context, tx TX) (string, error) {
		noErr(t, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('x')`))
		return "", errBank
	}), errBank)
	b.effects(0)
	noErr(t, step("fails", b.effect("x")))
	b.effects(1)

	runs := 0
	noErr(t, step("retried", func(ctx context.Context, tx TX) (string, error) {
		if runs++; runs < 3 {
			return "", b.Exec(ctx, tx, `DO $$ BEGIN RAISE EXCEPTION 'lost a race' USING ERRCODE = '40001'; END $$`)
		}
		return b.effect("y")(ctx, tx)
	}))
	b.effects(2)

	err := step("ends", func(ctx context.Context, tx TX) (string, error) {
		noErr(t, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('z')`))
		return "", b.Exec(ctx, tx, `COMMIT`)
	})
	wantErr(t, err, idem.ErrTxEnded)
	b.effects(3)
	err = step("ends", b.effect("again"))
	wantErr(t, err, idem.ErrUnknownOutcome)
	b.effects(3)
	noErr(t, b.keys.Resolve(t.Context(), remit.Key("m1", "ends"), idem.Resolution{Step: "write", Outcome: idem.Happened, Value: "z", Actor: "a", Reason: "r"}))
	noErr(t, step("ends", b.effect("again")))
	b.effects(3)

	func() {
		defer func() { _ = recover() }()
		_ = step("panics", func(ctx context.Context, tx TX) (string, error) {
			noErr(t, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('p')`))
			panic("oh")
		})
	}()
	b.quiet()
	b.left(1, 0, 3)
	noErr(t, step("panics", b.effect("p")))
	b.left(0, 0, 4)
}

// Writes of many goroutines share commits. One that the server refuses fails alone.
func stepsOneOfManyFails[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 4)
	b.db.Exec(t, `ALTER TABLE pgonce.idem_lease ADD CHECK (scope <> 'bad')`)
	b.db.Exec(t, `ALTER TABLE pgonce.idem_step ADD CHECK (name <> 'bad')`)
	const good, bad = 60, 12
	errs := make(chan error, good+bad)
	for n := range good + bad {
		scope, name := "m1", "pay"
		switch {
		case n >= good+bad/2:
			scope = "bad"
		case n >= good:
			name = "bad"
		}
		go func() {
			_, err := idem.RunSteps(t.Context(), b.keys, remit.Key(scope, fmt.Sprint(n)), idem.NoFingerprint(), n,
				func(ctx context.Context, run *idem.Run[TX], in int) (int, error) {
					return idem.Step(ctx, run, name, func(context.Context, string) (int, error) { return in, nil })
				})
			errs <- err
		}()
	}
	failed := int64(0)
	for range good + bad {
		if err := <-errs; err != nil {
			failed++
			wantText(t, err, "check")
		}
	}
	wantInt(t, "failed", failed, bad)
	b.records(good)
	b.left(bad/2, 0, 0)
}

// An owner that has lost its lease goes on while the one who took over is at work: neither its step, nor its end, nor its
// failure touches what the other one owns.
func stepsLoserBeforeTheEnd[TX any](t *testing.T, c Client[TX]) {
	for _, kind := range []string{"a step", "the end", "a refusal", "a failure"} {
		t.Run(kind, func(t *testing.T) {
			b := setup(t, c, 3)
			other := b.other(2)
			inside, goOn, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			var answer idem.Result[string]
			takeOver := func() {
				b.expire()
				go func() {
					var err error
					answer, err = other.run(t.Context(), "r1", func(ctx context.Context, run *idem.Run[TX], _ remittance) (string, error) {
						return idem.Step(ctx, run, "pay", func(context.Context, string) (string, error) {
							close(inside)
							<-goOn
							return "theirs", nil
						})
					})
					done <- err
				}()
				<-inside
			}
			_, err := b.run(t.Context(), "r1", func(ctx context.Context, run *idem.Run[TX], in remittance) (string, error) {
				if kind == "a step" {
					return b.remitsFrom(&bank{before: takeOver})(ctx, run, in)
				}
				takeOver()
				return "mine", map[string]error{"a failure": errBank, "a refusal": idem.Final(errBank)}[kind]
			})
			want := idem.ErrLeaseLost
			if kind == "a failure" {
				want = errBank
			}
			wantErr(t, err, want)
			wantInt(t, "steps of the loser", b.db.Int(t, `SELECT count(*) FROM pgonce.idem_step`), 0)
			wantInt(t, "leases of the other one", b.db.Int(t, `SELECT count(*) FROM pgonce.idem_lease WHERE worker <> 0`), 1)
			close(goOn)
			noErr(t, <-done)
			if answer.Value != "theirs" {
				t.Errorf("got %+v", answer)
			}
			b.left(0, 0, 0)
		})
	}
}
