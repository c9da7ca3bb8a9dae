//go:build unix

package statemachine_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/statemachine"
	"github.com/pgonce/pgonce/statemachine/smtest"
)

// What docs/payments.md shows is a part of this file.

type PaymentState string

const (
	PaymentNew        PaymentState = "new"
	PaymentProcessing PaymentState = "processing"
	PaymentPaid       PaymentState = "paid"
	PaymentFailed     PaymentState = "failed"
	PaymentRefunded   PaymentState = "refunded"
)

var (
	PaymentStarted   = statemachine.NewEvent[PaymentState]("processing")
	PaymentSucceeded = statemachine.NewEvent[PaymentState]("succeeded")
	PaymentDeclined  = statemachine.NewEvent[PaymentState]("failed")
	PaymentBounced   = statemachine.NewEvent[PaymentState]("bounced")
	RefundPart       = statemachine.NewEvent[PaymentState]("refund part")
	RefundRest       = statemachine.NewEvent[PaymentState]("refund rest")
)

var PaymentFlow = statemachine.MustNew("payment",
	statemachine.Initial(PaymentNew), statemachine.Final(PaymentPaid, PaymentFailed, PaymentRefunded),
	statemachine.From(PaymentNew).On(PaymentStarted).To(PaymentProcessing),
	statemachine.From(PaymentNew, PaymentProcessing).On(PaymentSucceeded).To(PaymentPaid),
	statemachine.From(PaymentNew, PaymentProcessing).On(PaymentDeclined).To(PaymentFailed),
	statemachine.From(PaymentPaid).On(PaymentBounced).To(PaymentFailed).Reversal("the bank takes it back"),
	statemachine.From(PaymentPaid).On(RefundPart).To(PaymentPaid).Reversal("we give back some"),
	statemachine.From(PaymentPaid).On(RefundRest).To(PaymentRefunded).Reversal("we give back the rest"),
	statemachine.From(PaymentPaid, PaymentRefunded, PaymentFailed).Ignore(PaymentStarted))

const paymentTable = `
CREATE TABLE payment (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    state    text NOT NULL DEFAULT 'new',
    amount   bigint NOT NULL CHECK (amount > 0),
    refunded bigint NOT NULL DEFAULT 0 CHECK (refunded BETWEEN 0 AND amount),
    paid_at  timestamptz CHECK (paid_at IS NOT NULL OR state NOT IN ('paid', 'refunded'))
);
CREATE TABLE job (kind text NOT NULL, payment bigint NOT NULL REFERENCES payment, amount bigint)`

type Payments = statemachine.Binding[int64, PaymentState, pgx.Tx]

// Succeeded is called for the provider's answer, for its webhook, and for each time that the webhook comes again.
func Succeeded(ctx context.Context, tx pgx.Tx, payments *Payments, id int64, eventID string, amount int64, at time.Time) error {
	res, err := payments.FireTx(ctx, tx, id, PaymentSucceeded,
		statemachine.Dedup(eventID), statemachine.Match("amount = $1", amount), statemachine.Set("paid_at", at))
	if err != nil || !res.Applied() {
		return err // nil for a repeat: acknowledge it and do nothing
	}
	_, err = tx.Exec(ctx, `INSERT INTO job (kind, payment) VALUES ('ship', $1)`, id)
	return err
}

// RefundSome takes back a part of what was paid, once for each refund id.
func RefundSome(ctx context.Context, tx pgx.Tx, payments *Payments, id int64, refundID string, amount int64) error {
	res, err := payments.FireTx(ctx, tx, id, RefundPart, statemachine.Dedup(refundID),
		statemachine.Where("$1 > 0 AND refunded + $1 <= amount", amount), statemachine.SetExpr("refunded", "refunded + $1", amount))
	if err != nil || !res.Applied() {
		return err // statemachine.ErrGuard: it is more than what is left
	}
	_, err = tx.Exec(ctx, `INSERT INTO job (kind, payment, amount) VALUES ('refund', $1, $2)`, id, amount)
	return err
}

// shop is a payment on a database with the trigger of TriggerSQL.
type shop struct {
	t        *testing.T
	pool     *pgxpool.Pool
	payments *Payments
}

func newShop(t *testing.T) *shop {
	t.Helper()
	db := pgtest.New(t)
	db.Exec(t, paymentTable+`; INSERT INTO payment (amount) VALUES (100)`)
	s := &shop{t: t, pool: db.Pool(t)}
	var err error
	if s.payments, err = statemachine.Bind[int64](PaymentFlow, pgxdriver.New(s.pool), statemachine.Table{Name: "payment"}); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, s.payments.TriggerSQL(nil))
	if err := s.payments.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	return s
}

// deliver handles a message in a transaction of its own.
func (s *shop) deliver(handle func(tx pgx.Tx) error) error {
	return pgx.BeginFunc(s.t.Context(), s.pool, handle)
}

func (s *shop) succeeded(event string, amount int64) error {
	return s.deliver(func(tx pgx.Tx) error {
		return Succeeded(s.t.Context(), tx, s.payments, 1, event, amount, time.Unix(1e9, 0))
	})
}

func (s *shop) fire(ev statemachine.Event[PaymentState], id string) (statemachine.Outcome, error) {
	res, err := s.payments.Fire(s.t.Context(), 1, ev, statemachine.Dedup(id))
	return res.Outcome, err
}

func (s *shop) want(what string, got, want any) {
	s.t.Helper()
	if got != want {
		s.t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// The answer of the provider and its webhook, twice, all at once: one job. Another amount is refused.
func TestPaymentDoubleCallback(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	var wg sync.WaitGroup
	for _, event := range []string{"answer", "evt_1", "evt_1", "answer", "evt_2", "evt_1"} {
		wg.Go(func() {
			if err := s.succeeded(event, 100); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s.want("jobs", pgtest.Number(t, s.pool, `SELECT count(*) FROM job`), int64(1))
	s.want("moves", pgtest.Number(t, s.pool, `SELECT count(*) FROM pgonce.transition WHERE outcome = 0`), int64(1))
	s.want("another amount is refused", errors.Is(s.succeeded("evt_3", 99), statemachine.ErrConflict), true)
}

// "processing" that arrives after "succeeded" is no news; the payment stays paid.
func TestPaymentOutOfOrder(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.want("paid", s.succeeded("evt_2", 100), nil)
	for range 2 {
		outcome, err := s.fire(PaymentStarted, "evt_1")
		s.want("processing after paid", fmt.Sprint(outcome, err), "Superseded <nil>")
	}
	s.want("paid", pgtest.Number(t, s.pool, `SELECT count(*) FROM payment WHERE state = 'paid'`), int64(1))
}

// "failed" after "succeeded" is no transition that happens by itself: money may be there. What is meant to take a paid payment
// back is an event of its own, and says so.
func TestPaymentLateFailure(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.want("paid", s.succeeded("evt_1", 100), nil)
	_, err := s.fire(PaymentDeclined, "evt_2")
	conflict, ok := errors.AsType[*statemachine.ConflictError](err)
	s.want("a late failure is a conflict", ok && conflict.State == "paid", true)
	_, err = s.pool.Exec(t.Context(), `UPDATE payment SET state = 'new'`)
	_, byTrigger := refused(err)
	s.want("a repair by hand is refused", byTrigger, true)
	outcome, err := s.fire(PaymentBounced, "evt_3")
	s.want("the bank takes it back", fmt.Sprint(outcome, err), "Applied <nil>")
}

// Refunds of 60, 60 and 40 on 100, each delivered three times, at once: never more than was paid.
func TestPaymentPartialRefunds(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.want("paid", s.succeeded("evt_1", 100), nil)
	refund := func(id string, amount int64) error {
		return s.deliver(func(tx pgx.Tx) error { return RefundSome(t.Context(), tx, s.payments, 1, id, amount) })
	}
	var wg sync.WaitGroup
	for id, amount := range map[string]int64{"r1": 60, "r2": 60, "r3": 40} {
		for range 3 {
			wg.Go(func() {
				if err := refund(id, amount); err != nil && !errors.Is(err, statemachine.ErrGuard) {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	s.want("refunded is what was sent", pgtest.Number(t, s.pool, `SELECT count(*) FROM payment WHERE refunded = (SELECT sum(amount) FROM job WHERE kind = 'refund')`), int64(1))
	s.want("and no more than 100", pgtest.Number(t, s.pool, `SELECT refunded FROM payment`) <= 100, true)
	for _, amount := range []int64{101, 0, -5} {
		s.want("a wrong amount", errors.Is(refund(fmt.Sprint("wrong", amount), amount), statemachine.ErrGuard), true)
	}
}

// The whole machine, on a real table with its own constraints.
func TestPaymentsProved(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	create := func(ctx context.Context, state PaymentState) (id int64, err error) {
		err = s.pool.QueryRow(ctx, `INSERT INTO payment (state, amount) VALUES ($1, 100) RETURNING id`, state).Scan(&id)
		return id, err
	}
	smtest.Run(t, pgxdriver.New(s.pool), s.payments, create, &smtest.Config[PaymentState]{
		Options: func(_ PaymentState, ev statemachine.Event[PaymentState]) []statemachine.Option {
			if ev == PaymentSucceeded {
				return []statemachine.Option{statemachine.SetExpr("paid_at", "statement_timestamp()")}
			}
			return nil
		},
		Racers: 4,
	})
	smtest.Golden(t, "testdata/payment.mmd", PaymentFlow.Mermaid())
}

func ExampleMachine_Mermaid() {
	fmt.Print(OrderFlow.Mermaid())
	// Output:
	// stateDiagram-v2
	//     state "unpaid" as s0
	//     state "refunded" as s1
	//     state "paid" as s2
	//     [*] --> s0
	//     s0 --> s2 : pay
	//     s1 --> s1 : pay (ignored)
	//     s2 --> s1 : refund
	//     s1 --> [*]
}

func ExampleMachine_DOT() {
	fmt.Print(OrderFlow.DOT())
	// Output:
	// digraph "order" {
	//     rankdir=LR
	//     node [shape=box, style=rounded]
	//     s0 [label="unpaid"]
	//     s1 [label="refunded", peripheries=2]
	//     s2 [label="paid"]
	//     i0 [shape=point]
	//     i0 -> s0
	//     s0 -> s2 [label="pay"]
	//     s1 -> s1 [label="pay (ignored)", style=dashed]
	//     s2 -> s1 [label="refund"]
	// }
}

func ExampleMachine_Markdown() {
	fmt.Print(OrderFlow.Markdown())
	// Output:
	// | | state | event | leads to | |
	// |---|---|---|---|---|
	// | initial | unpaid | pay | paid |  |
	// | final | refunded | pay | *ignored* |  |
	// |  | paid | refund | refunded |  |
}

func ExampleBinding_TriggerSQL() {
	withOrders(orderTable, OrderFlow, statemachine.Table{}, func(ctx context.Context, pool *pgxpool.Pool, orders *Orders) error {
		if _, err := pool.Exec(ctx, orders.TriggerSQL(nil)); err != nil {
			return err
		}
		_, err := pool.Exec(ctx, `UPDATE orders SET state = 'refunded'`)
		fmt.Println(err)
		return nil
	})
	// Output: ERROR: pgonce: machine "order" does not lead from 'unpaid' to 'refunded' (SQLSTATE 23514)
}

func ExampleBinding_WriteMigration() {
	withOrders(orderTable, OrderFlow, statemachine.Table{}, func(_ context.Context, _ *pgxpool.Pool, orders *Orders) error {
		dir, err := os.MkdirTemp("", "migrations")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		if _, err := orders.WriteMigration(dir, 7, nil); err != nil {
			return err
		}
		files, err := os.ReadDir(dir)
		for _, f := range files {
			fmt.Println(f.Name())
		}
		return err
	})
	// Output:
	// 00007_order_trigger.sql
	// 00008_order_validate.sql
}

func ExampleBinding_Verify() {
	withOrders(orderTable, OrderFlow, statemachine.Table{}, func(ctx context.Context, pool *pgxpool.Pool, orders *Orders) error {
		if _, err := pool.Exec(ctx, orders.TriggerSQL(nil)+`; ALTER TABLE orders DISABLE TRIGGER zzzz_pgonce_move_state`); err != nil {
			return err
		}
		err := orders.Verify(ctx)
		if e, ok := errors.AsType[*statemachine.VerifyError](err); ok {
			for _, f := range e.Findings {
				fmt.Println(f.Problem)
				fmt.Println(f.Fix)
			}
		}
		return nil
	})
	// Output:
	// trigger "zzzz_pgonce_move_state" is disabled
	// run ALTER TABLE public.orders ENABLE TRIGGER "zzzz_pgonce_move_state"
}
