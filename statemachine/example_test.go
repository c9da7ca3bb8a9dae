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
	Pay     = statemachine.NewEvent[OrderState]("pay")
	Refunds = statemachine.NewEvent[OrderState]("refund")
)

var OrderFlow = statemachine.MustNew("order",
	statemachine.Initial(Unpaid), statemachine.Final(Refunded),
	statemachine.From(Unpaid).On(Pay).To(Paid),
	statemachine.From(Paid).On(Refunds).To(Refunded),
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
			case errors.Is(err, statemachine.ErrGuard):
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
