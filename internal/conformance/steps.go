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

var remit = idem.Op{Name: "remittance.send", ReplayFor: idem.Forever, RememberFor: idem.Forever, RetryAfter: time.Millisecond, Attempts: 3}

// bank is a foreign system: it pays whatever it is asked, and counts.
type bank struct {
	mu      sync.Mutex
	paid    map[string]int
	refused map[string]bool // it has said of them that it does not know them
	calls   int
	asked   int
	err     error            // instead of an answer, after paying
	before  func()           // paying
	after   func(ref string) // paying, before the answer
}

func (k *bank) pay(_ context.Context, reference string) (string, error) {
	if k.before != nil {
		k.before()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls++
	if k.refused[reference] {
		return "", errors.New("reference is void")
	}
	if k.paid == nil {
		k.paid = map[string]int{}
	}
	k.paid[reference]++
	if k.after != nil {
		k.after(reference)
	}
	return "serial of " + reference, k.err
}

func (k *bank) enquire(_ context.Context, reference string) (string, idem.Outcome, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	if k.paid[reference] > 0 {
		return "serial of " + reference, idem.Happened, nil
	}
	if k.refused == nil {
		k.refused = map[string]bool{}
	}
	k.refused[reference] = true
	return "", idem.NeverHappened, nil
}

// payments is how often money has left.
func (k *bank) payments() (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, times := range k.paid {
		n += times
	}
	return n
}

type remittance struct{ Cents int64 }

type stepsFunc[TX any] = func(context.Context, *idem.Run[TX], remittance) (string, error)

// remits is the usual function: it decides in the database, pays, and writes what came of it.
func (b *bench[TX]) remits(k *bank, opts ...idem.StepOption[string]) stepsFunc[TX] {
	return func(ctx context.Context, run *idem.Run[TX], in remittance) (string, error) {
		_, err := idem.StepTx(ctx, run, "decide", b.effect(fmt.Sprintf("decided %d", in.Cents)))
		if err != nil {
			return "", err
		}
		serial, err := idem.Step(ctx, run, "pay", k.pay, opts...)
		if err != nil {
			return "", err
		}
		return idem.StepTx(ctx, run, "book", func(ctx context.Context, tx TX) (string, error) {
			return serial, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('booked')`)
		})
	}
}

func (b *bench[TX]) run(ctx context.Context, id string, fn stepsFunc[TX]) (idem.Result[string], error) {
	return idem.RunSteps(ctx, b.keys, remit.Key("m1", id), idem.Bytes([]byte(id)), remittance{1250}, fn)
}

// left checks what is under way, and what effects there are.
func (b *bench[TX]) left(leases, steps, effects int64) {
	b.t.Helper()
	wantInt(b.t, "leases", b.db.Int(b.t, `SELECT count(*) FROM pgonce.idem_lease`), leases)
	wantInt(b.t, "steps", b.db.Int(b.t, `SELECT count(*) FROM pgonce.idem_step`), steps)
	b.effects(effects)
}

// expire ends all leases, as the passing of time does.
func (b *bench[TX]) expire() {
	b.t.Helper()
	b.db.Exec(b.t, `UPDATE pgonce.idem_worker SET alive_until = statement_timestamp() - interval '1 second' WHERE alive_until > '-infinity'`)
}

var errBank = errors.New("the bank does not answer")

func stepsNewAndRepeat[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	k := &bank{}
	first, err := b.run(t.Context(), "r1", b.remits(k))
	noErr(t, err)
	if first.Replayed || first.FirstAt.IsZero() || first.Value == "" {
		t.Errorf("first: %+v", first)
	}
	for range 2 {
		again, err := b.run(t.Context(), "r1", b.remits(k))
		noErr(t, err)
		if !again.Replayed || again.Value != first.Value || !again.FirstAt.Equal(first.FirstAt) {
			t.Errorf("repeat: %+v, first was %+v", again, first)
		}
	}
	found, ok, err := idem.Lookup[string](t.Context(), b.keys, remit.Key("m1", "r1"), idem.Bytes([]byte("r1")))
	if err != nil || !ok || found.Value != first.Value {
		t.Errorf("lookup: %+v, %v, %v", found, ok, err)
	}
	_, err = idem.RunSteps(t.Context(), b.keys, remit.Key("m1", "r1"), idem.Bytes([]byte("another")), remittance{1}, b.remits(k))
	wantErr(t, err, idem.ErrMismatch)
	wantInt(t, "payments", int64(k.payments()), 1)
	b.left(0, 0, 2)
	b.records(1)
}

// An attempt that fails leaves what it has done. The next one goes on there, with the same downstream key, and the same
// values of the steps before.
func stepsGoOn[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	k := &bank{err: errBank}
	_, err := b.run(t.Context(), "r1", b.remits(k))
	wantErr(t, err, errBank)
	b.left(1, 1, 1)
	_, err = idem.RunSteps(t.Context(), b.keys, remit.Key("m1", "r1"), idem.Bytes([]byte("another")), remittance{1}, b.remits(k))
	wantErr(t, err, idem.ErrMismatch) // known before the key is finished
	k.err = nil
	res, err := b.run(t.Context(), "r1", b.remits(k))
	noErr(t, err)
	if res.Replayed {
		t.Error("it was executed just now")
	}
	wantInt(t, "calls", int64(k.calls), 2)
	wantInt(t, "references", int64(len(k.paid)), 1)
	b.left(0, 0, 2)
}

// A function that has called nobody leaves nothing.
func stepsNothingCalled[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	_, err := b.run(t.Context(), "r1", func(context.Context, *idem.Run[TX], remittance) (string, error) { return "", errBank })
	wantErr(t, err, errBank)
	b.left(0, 0, 0)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic did not go on")
			}
		}()
		_, _ = b.run(t.Context(), "r1", func(context.Context, *idem.Run[TX], remittance) (string, error) { panic("oh") })
	}()
	b.left(0, 0, 0)
	k := &bank{}
	_, err = b.run(t.Context(), "r1", b.remits(k))
	noErr(t, err)
}

// A refusal ends the key; what the steps did stays.
func stepsFinal[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	for n := range 2 {
		res, err := b.run(t.Context(), "r1", func(ctx context.Context, run *idem.Run[TX], _ remittance) (string, error) {
			if _, err := idem.StepTx(ctx, run, "decide", b.effect("decided")); err != nil {
				return "", err
			}
			return "closed", idem.Final(errors.New("the account is closed"))
		})
		wantErr(t, err, idem.ErrRefused)
		if res.Value != "closed" || res.Replayed != (n == 1) {
			t.Errorf("got %+v", res)
		}
	}
	b.left(0, 0, 1)
	b.records(1)
}

// While one process executes a key, others are told so, or wait for its answer.
func stepsInFlight[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 3)
	other := b.other(2)
	inside, goOn, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	k := &bank{before: sync.OnceFunc(func() { close(inside); <-goOn })}
	go func() {
		_, err := b.run(t.Context(), "r1", b.remits(k))
		done <- err
	}()
	<-inside
	for _, who := range []*bench[TX]{b, other} {
		_, err := who.run(t.Context(), "r1", b.remits(k))
		wantErr(t, err, idem.ErrInFlight)
	}
	answers := make(chan idem.Result[string], 2)
	for _, who := range []*bench[TX]{b, other} {
		go func() {
			op := remit
			op.Wait = time.Hour
			res, err := idem.RunSteps(t.Context(), who.keys, op.Key("m1", "r1"), idem.Bytes([]byte("r1")), remittance{1250}, b.remits(k))
			if err != nil {
				t.Error(err)
			}
			answers <- res
		}()
	}
	pgtest.Eventually(t, "the other process asks again", func() bool {
		return b.db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%idem_lease%' AND state = 'idle'`) > 0
	})
	close(goOn)
	noErr(t, <-done)
	for range 2 {
		if res := <-answers; !res.Replayed || res.Value == "" {
			t.Errorf("got %+v", res)
		}
	}
	wantInt(t, "payments", int64(k.payments()), 1)
	b.left(0, 0, 2)
}

// Many callers of many keys, from two processes: each key once.
func stepsStorm[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 4)
	other := b.other(4)
	k := &bank{}
	var wg sync.WaitGroup
	const keys, callers = 12, 6
	for n := range keys * callers {
		who := []*bench[TX]{b, other}[n%2]
		id := fmt.Sprintf("r%d", n/callers)
		wg.Go(func() {
			op := remit
			op.Wait = time.Hour
			res, err := idem.RunSteps(t.Context(), who.keys, op.Key("m1", id), idem.Bytes([]byte(id)), remittance{1}, b.remits(k))
			if err != nil || res.Value == "" {
				t.Errorf("%s: %+v, %v", id, res, err)
			}
		})
	}
	wg.Wait()
	wantInt(t, "payments", int64(k.payments()), keys)
	b.left(0, 0, 2*keys)
	b.records(keys)
}

// The bank takes longer than the lease. The heartbeat keeps the key.
func stepsSlowBank[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects)
	b := at(t, c, db, c.Open(t, db, 2), &idem.Config{Lease: 3 * time.Second})
	other := b.other(2)
	k := &bank{}
	res, err := b.run(t.Context(), "r1", b.remits(&bank{before: func() {
		pgtest.Eventually(t, "the lease would be over twice", func() bool {
			_, err := other.run(t.Context(), "r1", b.remits(k))
			wantErr(t, err, idem.ErrInFlight)
			return db.Int(t, `SELECT count(*) FROM pgonce.idem_lease WHERE created_at < clock_timestamp() - interval '7 s'`) == 1
		})
	}}))
	noErr(t, err)
	if res.Replayed {
		t.Errorf("got %+v", res)
	}
	wantInt(t, "payments by others", int64(k.payments()), 0)
	b.left(0, 0, 2)
}

// An owner that loses its lease is told so, and whatever it writes after that does not land: no step, no local
// write, no record. The one who took over decides.
func stepsLeaseLost[TX any](t *testing.T, c Client[TX]) {
	for _, step := range []string{"a step", "a step in a transaction", "the end"} {
		t.Run(step, func(t *testing.T) {
			b := setup(t, c, 3)
			other := b.other(2)
			k := &bank{}
			var late, cause error
			_, err := b.run(t.Context(), "r1", func(ctx context.Context, run *idem.Run[TX], in remittance) (string, error) {
				_, err := idem.StepTx(ctx, run, "decide", b.effect("decided"))
				noErr(t, err)
				b.expire()
				res, err := other.run(t.Context(), "r1", b.remits(k))
				noErr(t, err)
				if res.Replayed || res.Value == "" {
					t.Errorf("the other one: %+v", res)
				}
				switch step {
				case "a step":
					_, late = idem.Step(ctx, run, "pay", func(context.Context, string) (string, error) { return "mine", nil })
					<-ctx.Done()
				case "a step in a transaction":
					_, late = idem.StepTx(ctx, run, "pay", b.effect("mine"))
					<-ctx.Done()
				default:
					late = idem.ErrLeaseLost
					return "mine", nil
				}
				cause = context.Cause(ctx)
				return "mine", nil
			})
			if step == "the end" { // nothing was written, so nobody had to be told: the other one's answer counts
				noErr(t, err)
				cause = idem.ErrLeaseLost
			} else {
				wantErr(t, err, idem.ErrLeaseLost)
			}
			wantErr(t, late, idem.ErrLeaseLost)
			wantErr(t, cause, idem.ErrLeaseLost)
			res, err := b.run(t.Context(), "r1", b.remits(k))
			noErr(t, err)
			if !res.Replayed || res.Value == "mine" {
				t.Errorf("got %+v", res)
			}
			wantInt(t, "payments", int64(k.payments()), 1)
			b.left(0, 0, 2)
		})
	}
}

// The heartbeat finds out that the lease is over, while the function waits for the bank.
func stepsHeartbeatFindsLoss[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects)
	pool := c.Open(t, db, 2)
	b, next := at(t, c, db, pool, &idem.Config{Lease: time.Second}), at(t, c, db, pool, nil)
	_, err := b.run(t.Context(), "r1", func(ctx context.Context, run *idem.Run[TX], _ remittance) (string, error) {
		return idem.Step(ctx, run, "pay", func(ctx context.Context, _ string) (string, error) {
			b.expire()
			<-ctx.Done()
			return "", context.Cause(ctx)
		})
	})
	wantErr(t, err, idem.ErrLeaseLost)
	res, err := next.run(t.Context(), "r1", next.remitsFrom(&bank{}))
	noErr(t, err)
	if res.Replayed {
		t.Errorf("got %+v", res)
	}
}

// remitsFrom is a function whose first step is the payment.
func (b *bench[TX]) remitsFrom(k *bank, opts ...idem.StepOption[string]) stepsFunc[TX] {
	return func(ctx context.Context, run *idem.Run[TX], _ remittance) (string, error) {
		return idem.Step(ctx, run, "pay", k.pay, opts...)
	}
}
