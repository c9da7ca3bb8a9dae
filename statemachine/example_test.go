//go:build unix

package statemachine_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/statemachine"
)

// OrderState is the state of an order, as its column holds it.
type OrderState string

const (
	Unpaid   OrderState = "unpaid"
	Paid     OrderState = "paid"
	Refunded OrderState = "refunded"
)

var (
	Pay    = statemachine.NewEvent[OrderState]("pay")
	Refund = statemachine.NewEvent[OrderState]("refund")
)

var OrderFlow = statemachine.MustNew("order",
	statemachine.Initial(Unpaid), statemachine.Final(Refunded),
	statemachine.From(Unpaid).On(Pay).To(Paid),
	statemachine.From(Paid).On(Refund).To(Refunded),
	statemachine.From(Refunded).Ignore(Pay))

// Orders is the machine over its table.
type Orders = statemachine.Binding[int64, OrderState, pgx.Tx]

const orderTable = `
CREATE TABLE orders (
    id      bigint PRIMARY KEY,
    state   text NOT NULL DEFAULT 'unpaid',
    amount  bigint NOT NULL,
    paid_at timestamptz
);
INSERT INTO orders (id, amount) VALUES (1, 1250)`

func ExampleBinding_Fire() {
	pgtest.Example(orderTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		orders, err := statemachine.Bind[int64](OrderFlow, pgxdriver.New(pool), statemachine.Table{Name: "orders"})
		if err != nil {
			return err
		}
		for _, callback := range []struct {
			id     string
			amount int64
		}{{"evt_1", 1250}, {"evt_1", 1250}, {"evt_2", 1250}, {"evt_3", 9999}} {
			res, err := orders.Fire(ctx, 1, Pay, statemachine.Dedup(callback.id), statemachine.Match("amount = $1", callback.amount))
			switch {
			case errors.Is(err, statemachine.ErrConflict):
				fmt.Println("refused: another amount")
			case err != nil:
				return err
			default:
				fmt.Println(res.Outcome, res.From, "->", res.To)
			}
		}
		return nil
	})
	// Output:
	// Applied unpaid -> paid
	// AlreadyApplied unpaid -> paid
	// AlreadyApplied paid -> paid
	// refused: another amount
}

// PayCallback is called as often as the provider likes, by as many processes as there are. The
// order is paid once, and the job to push it is in the same commit.
func PayCallback(ctx context.Context, pool *pgxpool.Pool, orders *Orders, id int64, event string) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		res, err := orders.FireTx(ctx, tx, id, Pay, statemachine.Dedup(event), statemachine.SetExpr("paid_at", "statement_timestamp()"))
		if err != nil || !res.Applied() {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO job (kind, order_id) VALUES ('push', $1)`, id)
		return err
	})
}

func ExampleBinding_FireTx() {
	pgtest.Example(orderTable+`; CREATE TABLE job (kind text, order_id bigint)`, func(ctx context.Context, pool *pgxpool.Pool) error {
		orders, err := statemachine.Bind[int64](OrderFlow, pgxdriver.New(pool), statemachine.Table{Name: "orders"})
		if err != nil {
			return err
		}
		for _, event := range []string{"evt_1", "evt_1", "evt_2"} {
			if err := PayCallback(ctx, pool, orders, 1, event); err != nil {
				return err
			}
		}
		var jobs int
		err = pool.QueryRow(ctx, `SELECT count(*) FROM job`).Scan(&jobs)
		fmt.Println(jobs, "job")
		return err
	})
	// Output: 1 job
}

func ExampleBind() {
	pgtest.Example(orderTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		orders, err := statemachine.Bind[int64](OrderFlow, pgxdriver.New(pool), statemachine.Table{Name: "public.orders", ID: "id", State: "state"})
		if err != nil {
			return err
		}
		fmt.Println(orders.Validate(ctx)) // at start: says what is wrong with the table, or what to run
		return nil
	})
	// Output: <nil>
}

func ExampleNew() {
	_, err := statemachine.New("order",
		statemachine.From(Unpaid).On(Pay).To(Paid),
		statemachine.From(Unpaid).On(Pay).To(Refunded),
		statemachine.Final(Refunded))
	fmt.Println(err)
	// Output:
	// statemachine: new "order": event "pay" in state "unpaid" leads to "paid" and to "refunded"
	// Initial is missing: name the states that rows are created in
	// state "paid" has no way out and is not final
}

func ExampleMachine() {
	fmt.Println(OrderFlow.Name(), OrderFlow.States())
	for _, ev := range OrderFlow.Allowed(Paid) {
		to, _ := OrderFlow.Next(Paid, ev)
		fmt.Println(ev.Name(), "->", to)
	}
	fmt.Println(OrderFlow.IsFinal(Refunded), OrderFlow.NeedsDedup(Pay))
	fmt.Println(OrderFlow.Initial(), len(OrderFlow.Events()), OrderFlow.Ignores(Refunded, Pay))
	// Output:
	// order [unpaid refunded paid]
	// refund -> refunded
	// true false
	// [unpaid] 2 true
}

func ExampleWhere() {
	pgtest.Example(orderTable+`; ALTER TABLE orders ADD COLUMN refunded bigint NOT NULL DEFAULT 0; UPDATE orders SET state = 'paid'`, func(ctx context.Context, pool *pgxpool.Pool) error {
		refundPart := statemachine.NewEvent[OrderState]("refund part")
		flow := statemachine.MustNew("refunds", statemachine.Initial(Unpaid), statemachine.Final(Refunded),
			statemachine.From(Unpaid).On(Pay).To(Paid), statemachine.From(Paid).On(refundPart).To(Paid), statemachine.From(Paid).On(Refund).To(Refunded))
		orders, err := statemachine.Bind[int64](flow, pgxdriver.New(pool), statemachine.Table{Name: "orders"})
		if err != nil {
			return err
		}
		for _, apply := range []string{"apply_1", "apply_1", "apply_2"} { // refunds of 1000 on 1250
			res, err := orders.Fire(ctx, 1, refundPart, statemachine.Dedup(apply),
				statemachine.Where("refunded + $1 <= amount", 1000), statemachine.SetExpr("refunded", "refunded + $1", 1000))
			fmt.Println(apply, res.Applied(), errors.Is(err, statemachine.ErrGuard))
		}
		return nil
	})
	// Output:
	// apply_1 true false
	// apply_1 false false
	// apply_2 false true
}
