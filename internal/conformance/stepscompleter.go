//go:build unix

package conformance

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/fault"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// completes runs a completer with fn, until the test's end or stop.
func (b *bench[TX]) completes(fn stepsFunc[TX]) (stop func()) {
	b.t.Helper()
	noErr(b.t, idem.Handle(b.keys, remit, fn))
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() { done <- b.keys.RunCompleter(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		noErr(b.t, <-done)
	})
}

// abandon leaves a key as a process does that died in its function.
func (b *bench[TX]) abandon(id string, fn stepsFunc[TX]) {
	b.t.Helper()
	dying := b.other(2)
	_, err := dying.run(b.t.Context(), id, func(ctx context.Context, run *idem.Run[TX], in remittance) (string, error) {
		_, _ = fn(ctx, run, in)
		b.expire()
		b.db.Exec(b.t, `UPDATE pgonce.idem_worker SET alive_until = '-infinity'`)
		b.db.Exec(b.t, `CREATE TABLE kept AS TABLE pgonce.idem_lease`)
		return "", errBank
	})
	wantErr(b.t, err, errBank)
	// What the function's end has made of the lease, the death of its process would not have.
	b.db.Exec(b.t, `DELETE FROM pgonce.idem_lease WHERE (scope, digest) IN (SELECT scope, digest FROM kept);
		INSERT INTO pgonce.idem_lease TABLE kept; DROP TABLE kept`)
}

// A completer finishes what a dead process has left, with what it was asked for, and what callers were told had failed.
func stepsCompleter[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 3)
	k := &bank{}
	b.abandon("r1", func(ctx context.Context, run *idem.Run[TX], _ remittance) (string, error) {
		return idem.StepTx(ctx, run, "decide", b.effect("decided"))
	})
	k.err = errBank
	_, err := b.run(t.Context(), "r2", b.remits(k, once(k)))
	wantErr(t, err, idem.ErrUnknownOutcome)
	k.err = nil
	b.left(2, 3, 2)
	stop := b.completes(func(ctx context.Context, run *idem.Run[TX], in remittance) (string, error) {
		wantInt(t, "cents", in.Cents, 1250)
		return b.remits(k, once(k))(ctx, run, in)
	})
	defer stop()
	pgtest.Eventually(t, "both are finished", func() bool { return b.db.Int(t, `SELECT count(*) FROM pgonce.idem_record`) == 2 })
	stop()
	wantInt(t, "payments", int64(k.payments()), 2)
	wantInt(t, "calls", int64(k.calls), 2)
	b.left(0, 0, 4)
	res, err := b.run(t.Context(), "r1", b.remits(k))
	if err != nil || !res.Replayed {
		t.Errorf("got %+v, %v", res, err)
	}
}

// Several completers and callers go for the same keys: each is executed once.
func stepsCompletersRace[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 4)
	k := &bank{err: errBank}
	const keys = 10
	ids := make([]string, keys)
	for n := range ids {
		ids[n] = string(rune('a' + n))
		_, err := b.run(t.Context(), ids[n], b.remits(k, once(k)))
		wantErr(t, err, idem.ErrUnknownOutcome)
	}
	k.err = nil
	var stops []func()
	for range 3 {
		stops = append(stops, b.other(3).completes(b.remits(k, once(k))))
	}
	var wg sync.WaitGroup
	for _, id := range ids[:keys/2] {
		wg.Go(func() {
			_, err := b.run(t.Context(), id, b.remits(k, once(k)))
			if err != nil && !errors.Is(err, idem.ErrInFlight) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	pgtest.Eventually(t, "all are finished", func() bool { return b.db.Int(t, `SELECT count(*) FROM pgonce.idem_record`) == keys })
	for _, stop := range stops {
		stop()
	}
	wantInt(t, "payments", int64(k.payments()), keys)
	wantInt(t, "calls", int64(k.calls), keys)
	b.left(0, 0, 2*keys)
}

// A key that fails every time is dead after so many attempts, each after a longer pause, until somebody decides.
func stepsDead[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects)
	var died atomic.Int64
	b := at(t, c, db, c.Open(t, db, 3), &idem.Config{Observe: func(e idem.Event) {
		if e.Kind == idem.Died {
			died.Add(1)
		}
	}})
	poison := func(ctx context.Context, run *idem.Run[TX], _ remittance) (string, error) {
		return idem.Step(ctx, run, "pay", func(context.Context, string) (string, error) { panic("poison") })
	}
	func() {
		defer func() { _ = recover() }()
		_, _ = b.run(t.Context(), "r1", poison)
	}()
	b.left(1, 0, 0)
	var calls atomic.Int64
	stop := b.completes(func(ctx context.Context, run *idem.Run[TX], in remittance) (string, error) {
		calls.Add(1)
		return poison(ctx, run, in)
	})
	defer stop()
	pgtest.Eventually(t, "it is dead", func() bool {
		return db.Int(t, `SELECT count(*) FROM pgonce.idem_lease WHERE state = 2 AND attempts = 3`) == 1
	})
	stop()
	wantInt(t, "attempts", calls.Load(), 3)
	wantInt(t, "told", died.Load(), 1)
	_, err := b.run(t.Context(), "r1", b.remitsFrom(&bank{}))
	wantErr(t, err, idem.ErrDead)
	list, err := b.keys.Stuck(t.Context(), 10)
	noErr(t, err)
	if len(list) != 1 || !list[0].Dead || list[0].Attempts != 3 || list[0].LastError == "" {
		t.Errorf("stuck: %+v", list)
	}
	noErr(t, b.keys.Resolve(t.Context(), remit.Key("m1", "r1"), idem.Resolution{Actor: "ann", Reason: "the release with the mistake is gone"}))
	_, err = b.run(t.Context(), "r1", b.remitsFrom(&bank{}))
	noErr(t, err)
	b.left(0, 0, 0)
}

// Between two attempts the completer leaves a key alone, twice as long each time.
func stepsBackOff[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 3)
	slow := remit
	slow.RetryAfter = time.Minute
	wantErr(t, b.asks(slow), errBank)
	noErr(t, idem.Handle(b.keys, slow, noAnswer[TX]))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.keys.RunCompleter(ctx) }()
	const ahead = `SELECT count(*) FROM pgonce.idem_lease WHERE attempts = $1 AND worker = 0
		AND not_before - statement_timestamp() BETWEEN make_interval(secs => $2 - 30) AND make_interval(secs => $2)`
	for n, secs := range []int{60, 120, 240} {
		pgtest.Eventually(t, "it is left alone", func() bool { return b.db.Int(t, ahead, n, secs) == 1 })
		b.db.Exec(t, `UPDATE pgonce.idem_lease SET not_before = statement_timestamp()`)
	}
	cancel()
	noErr(t, <-done)
}

// asks is a request whose bank never answers.
func (b *bench[TX]) asks(op idem.Op) error {
	_, err := idem.RunSteps(b.t.Context(), b.keys, op.Key("m1", "r1"), idem.NoFingerprint(), remittance{1}, noAnswer[TX])
	return err
}

func noAnswer[TX any](ctx context.Context, run *idem.Run[TX], _ remittance) (string, error) {
	return idem.Step(ctx, run, "pay", func(context.Context, string) (string, error) { return "", errBank })
}

// When the completer tries a key is its own business: callers who try in between are served at once, count for nothing and put nothing off.
func stepsSchedule[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	slow := remit
	slow.RetryAfter = time.Hour
	wantErr(t, b.asks(slow), errBank)
	b.db.Exec(t, `CREATE TABLE due AS SELECT not_before FROM pgonce.idem_lease`)
	unmoved := func() {
		t.Helper()
		wantInt(t, "as it was", b.db.Int(t, `SELECT count(*) FROM pgonce.idem_lease JOIN due USING (not_before) WHERE attempts = 0 AND worker = 0`), 1)
	}
	for range 3 {
		wantErr(t, b.asks(slow), errBank)
		unmoved()
	}
	_, err := idem.RunSteps(t.Context(), b.keys, slow.Key("m1", "r1"), idem.NoFingerprint(), remittance{1},
		func(context.Context, *idem.Run[TX], remittance) (string, error) {
			wantInt(t, "during an attempt", b.db.Int(t, `SELECT count(*) FROM pgonce.idem_lease JOIN due USING (not_before)`), 1)
			return "", errBank
		})
	wantErr(t, err, errBank)
	unmoved()
}

// A caller who repeats a request without end, faster than the completer would: it has its turns nevertheless, and ends them.
func stepsImpatient[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 6)
	slow := remit
	slow.RetryAfter, slow.Attempts = time.Second, 2
	noErr(t, idem.Handle(b.keys, slow, noAnswer[TX]))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- b.keys.RunCompleter(ctx) }()
	var callers sync.WaitGroup
	other := b.other(2)
	callers.Go(func() {
		again := time.NewTicker(slow.RetryAfter / 10)
		defer again.Stop()
		var err error
		for ; ctx.Err() == nil && !errors.Is(err, idem.ErrDead); err = other.asks(slow) {
			if err != nil && !errors.Is(err, errBank) && !errors.Is(err, idem.ErrInFlight) {
				t.Error(err)
			}
			<-again.C
		}
	})
	pgtest.Eventually(t, "it is dead", func() bool {
		return b.db.Int(t, `SELECT count(*) FROM pgonce.idem_lease WHERE state = 2 AND attempts = 2`) == 1
	})
	callers.Wait()
	cancel()
	noErr(t, <-done)
	wantErr(t, b.asks(slow), idem.ErrDead)
}

// What the completer cannot work with.
func stepsCompleterMisuse[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	wantText(t, b.keys.RunCompleter(t.Context()), "no operation")
	noErr(t, idem.Handle(b.keys, remit, b.remits(&bank{})))
	wantText(t, idem.Handle(b.keys, remit, b.remits(&bank{})), "already")
	wantText(t, idem.Handle(b.keys, idem.Op{}, b.remits(&bank{})), "operation")
	wantText(t, idem.Handle[int, int](b.keys, refund, nil), "nil")
	hidden := at(t, c, b.db, c.Open(t, b.db, 2), &idem.Config{HideIDs: true})
	wantText(t, idem.Handle(hidden.keys, remit, b.remits(&bank{})), "hides ids")
	_, err := hidden.run(t.Context(), "r1", b.remits(&bank{})) // without a completer it works
	noErr(t, err)
	wantInt(t, "ids", b.db.Int(t, `SELECT count(*) FROM pgonce.idem_record WHERE id <> ''`), 0)
	_, err = idem.New(b.pool.Driver, &idem.Config{Lease: time.Millisecond})
	wantText(t, err, "Config.Lease")
}

// The connection breaks at the COMMIT of a step in a transaction, before the server gets it or after.
func stepsCommitLost[TX any](t *testing.T, c Client[TX]) {
	for _, kind := range []fault.Kind{fault.CutBeforeCommit, fault.CutAfterCommit} {
		t.Run(kind.String(), func(t *testing.T) {
			db := pgtest.New(t)
			db.Exec(t, effects)
			proxy := fault.New(t, db.URL)
			b := at(t, c, db.Via(proxy.URL()), c.Open(t, db.Via(proxy.URL()), 2), nil)
			var armed sync.Once
			runs := 0
			res, err := b.run(t.Context(), "r1", func(ctx context.Context, run *idem.Run[TX], _ remittance) (string, error) {
				return idem.StepTx(ctx, run, "write", func(ctx context.Context, tx TX) (string, error) {
					runs++
					pid := int64(0)
					q := b.pool.Tx(tx)
					noErr(t, q.Run(ctx, pidStmt(&pid)))
					armed.Do(func() { proxy.Arm(pid, kind) })
					return b.effect("r1")(ctx, tx)
				})
			})
			noErr(t, err)
			if res.Replayed || res.Value != "receipt r1" {
				t.Errorf("got %+v", res)
			}
			want := map[fault.Kind]int{fault.CutBeforeCommit: 2, fault.CutAfterCommit: 1}[kind]
			if runs != want {
				t.Errorf("%d runs, want %d", runs, want)
			}
			b.t, b.db = t, db
			b.left(0, 0, 1)
		})
	}
}

func pidStmt(pid *int64) pg.Stmt { return pg.Stmt{SQL: pg.SQLBackendPID, Dest: []any{pid}} }
