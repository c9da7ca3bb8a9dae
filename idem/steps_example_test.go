//go:build unix

package idem_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

var Remit = idem.Op{Name: "remittance", ReplayFor: idem.Forever, RememberFor: idem.Forever}

// Order is what a remittance is asked for with.
type Order struct{ Cents int64 }

// theBank pays each reference once, and answers as it likes.
type theBank struct {
	paid    map[string]bool
	timeOut bool
}

func (b *theBank) Pay(_ context.Context, reference string, cents int64) (serial string, err error) {
	if !b.paid[reference] {
		fmt.Printf("the bank pays %d\n", cents)
	}
	b.paid[reference] = true
	if b.timeOut {
		b.timeOut = false
		return "", errors.New("no answer from the bank")
	}
	return "S-1", nil
}

func (b *theBank) Enquire(_ context.Context, reference string) (serial string, outcome idem.Outcome, err error) {
	fmt.Println("the bank is asked what it knows")
	if b.paid[reference] {
		return "S-1", idem.Happened, nil
	}
	return "", idem.NeverHappened, nil // it refuses this reference from now on
}

// remitAt decides in the database, pays at the bank, and books what came of it.
func remitAt(bank *theBank, opts ...idem.StepOption[string]) func(context.Context, *idem.Run[pgx.Tx], Order) (string, error) {
	return func(ctx context.Context, run *idem.Run[pgx.Tx], o Order) (string, error) {
		serial, err := idem.Step(ctx, run, "pay", func(ctx context.Context, reference string) (string, error) {
			return bank.Pay(ctx, reference, o.Cents)
		}, opts...)
		if err != nil {
			return "", err
		}
		return idem.StepTx(ctx, run, "book", func(ctx context.Context, tx pgx.Tx) (string, error) {
			_, err := tx.Exec(ctx, `INSERT INTO remittance (serial, cents) VALUES ($1, $2)`, serial, o.Cents)
			return serial, err
		})
	}
}

const remittanceTable = `CREATE TABLE remittance (serial text NOT NULL, cents bigint NOT NULL)`

// The bank does not answer. The repeat calls it under the same reference, so it pays once.
func ExampleRunSteps() {
	pgtest.Example(remittanceTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		bank := &theBank{paid: map[string]bool{}, timeOut: true}
		for range 3 {
			res, err := idem.RunSteps(ctx, keys, Remit.Key("queue", "m-1"), idem.Bytes([]byte("1250")), Order{1250}, remitAt(bank))
			fmt.Printf("%q, replayed: %t, error: %v\n", res.Value, res.Replayed, err)
		}
		return nil
	})
	// Output:
	// the bank pays 1250
	// "", replayed: false, error: no answer from the bank
	// "S-1", replayed: false, error: <nil>
	// "S-1", replayed: true, error: <nil>
}

// A bank that would pay twice is not called twice. It is asked.
func ExampleAtMostOnce() {
	pgtest.Example(remittanceTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		bank := &theBank{paid: map[string]bool{}, timeOut: true}
		for range 2 {
			res, err := idem.RunSteps(ctx, keys, Remit.Key("queue", "m-1"), idem.NoFingerprint(), Order{1250}, remitAt(bank, idem.AtMostOnce(bank.Enquire)))
			fmt.Printf("%q, unknown: %t\n", res.Value, errors.Is(err, idem.ErrUnknownOutcome))
		}
		return nil
	})
	// Output:
	// the bank pays 1250
	// "", unknown: true
	// the bank is asked what it knows
	// "S-1", unknown: false
}

func ExampleStep() {
	pgtest.Example(``, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		_, err = idem.RunSteps(ctx, keys, Remit.Key("queue", "m-1"), idem.NoFingerprint(), Order{1250},
			func(ctx context.Context, run *idem.Run[pgx.Tx], o Order) (string, error) {
				return idem.Step(ctx, run, "pay", func(ctx context.Context, reference string) (string, error) {
					fmt.Println("Idempotency-Key:", reference) // the same in every attempt
					return "S-1", nil
				})
			})
		return err
	})
	// Output: Idempotency-Key: 03e5ef7004faa7b208152bf595af2b06
}

func ExampleStepTx() {
	pgtest.Example(remittanceTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		res, err := idem.RunSteps(ctx, keys, Remit.Key("queue", "m-1"), idem.NoFingerprint(), Order{1250},
			func(ctx context.Context, run *idem.Run[pgx.Tx], o Order) (int64, error) {
				return idem.StepTx(ctx, run, "book", func(ctx context.Context, tx pgx.Tx) (int64, error) {
					tag, err := tx.Exec(ctx, `INSERT INTO remittance (serial, cents) VALUES ('S-1', $1)`, o.Cents)
					return tag.RowsAffected(), err
				})
			})
		fmt.Println(res.Value, err)
		return nil
	})
	// Output: 1 <nil>
}

// What a request has left undone is finished by a completer, in this process or in another.
func ExampleHandle() {
	pgtest.Example(remittanceTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		bank := &theBank{paid: map[string]bool{}, timeOut: true}
		finished := make(chan idem.Event, 10)
		keys, err := idem.New(pgxdriver.New(pool), &idem.Config{Observe: func(e idem.Event) { finished <- e }})
		if err != nil {
			return err
		}
		if err := idem.Handle(keys, Remit, remitAt(bank)); err != nil {
			return err
		}
		_, err = idem.RunSteps(ctx, keys, Remit.Key("queue", "m-1"), idem.NoFingerprint(), Order{1250}, remitAt(bank))
		fmt.Println(err, (<-finished).Kind)

		ctx, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- keys.RunCompleter(ctx) }()
		fmt.Println((<-finished).Kind, (<-finished).Kind)
		stop()
		return <-done
	})
	// Output:
	// the bank pays 1250
	// no answer from the bank failed
	// taken over executed
}

func ExampleStore_RunCompleter() {
	pgtest.Example(remittanceTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		if err := idem.Handle(keys, Remit, remitAt(&theBank{})); err != nil {
			return err
		}
		ctx, stop := context.WithTimeout(ctx, 50*time.Millisecond) // in a service: for as long as it runs
		defer stop()
		fmt.Println(keys.RunCompleter(ctx))
		return nil
	})
	// Output: <nil>
}

// Nobody but a person can say what became of the call. What he has found out is put on record.
func ExampleStore_Resolve() {
	pgtest.Example(remittanceTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		fn := remitAt(&theBank{paid: map[string]bool{}, timeOut: true}, idem.AtMostOnce[string](nil))
		key := Remit.Key("queue", "m-1")
		_, err = idem.RunSteps(ctx, keys, key, idem.NoFingerprint(), Order{1250}, fn)
		fmt.Println("unknown:", errors.Is(err, idem.ErrUnknownOutcome))
		err = keys.Resolve(ctx, key, idem.Resolution{
			Step: "pay", Outcome: idem.Happened, Value: "S-1", Actor: "ann@example.com", Reason: "the bank's statement of May 4 has it",
		})
		if err != nil {
			return err
		}
		res, err := idem.RunSteps(ctx, keys, key, idem.NoFingerprint(), Order{1250}, fn)
		fmt.Println(res.Value, err)
		return nil
	})
	// Output:
	// the bank pays 1250
	// unknown: true
	// S-1 <nil>
}

func ExampleStore_Stuck() {
	pgtest.Example(remittanceTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		fn := remitAt(&theBank{paid: map[string]bool{}, timeOut: true}, idem.AtMostOnce[string](nil))
		_, _ = idem.RunSteps(ctx, keys, Remit.Key("queue", "m-1"), idem.NoFingerprint(), Order{1250}, fn)
		list, err := keys.Stuck(ctx, 100)
		for _, k := range list {
			fmt.Printf("%s %s: ask the bank about %s\n", k.Op, k.ID, k.Downstream[:4])
		}
		return err
	})
	// Output:
	// the bank pays 1250
	// remittance m-1: ask the bank about 03e5
}
