//go:build unix

package statemachine_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/statemachine"
)

const manyOrders = orderTable + `; INSERT INTO orders (id, state, amount) VALUES (2, 'paid', 100), (3, 'refunded', 100), (4, 'unpaid', 100)`

func withOrders(setup string, m *statemachine.Machine[OrderState], table statemachine.Table, fn func(ctx context.Context, pool *pgxpool.Pool, orders *Orders) error) {
	pgtest.Example(setup, func(ctx context.Context, pool *pgxpool.Pool) error {
		table.Name = "orders"
		orders, err := statemachine.Bind[int64](m, pgxdriver.New(pool), table)
		if err != nil {
			return err
		}
		return fn(ctx, pool, orders)
	})
}

func ExampleBinding_FireMany() {
	withOrders(manyOrders, OrderFlow, statemachine.Table{}, func(ctx context.Context, _ *pgxpool.Pool, orders *Orders) error {
		rows, err := orders.FireMany(ctx, []int64{4, 1, 2, 3, 99}, Pay, statemachine.Actor("import"))
		for _, row := range rows {
			if row.Err != nil {
				fmt.Println(row.ID, errors.Is(row.Err, statemachine.ErrNotFound))
				continue
			}
			fmt.Println(row.ID, row.Outcome)
		}
		return err
	})
	// Output:
	// 4 Applied
	// 1 Applied
	// 2 AlreadyApplied
	// 3 Superseded
	// 99 true
}

func ExampleBinding_FireManyTx() {
	withOrders(manyOrders, OrderFlow, statemachine.Table{}, func(ctx context.Context, pool *pgxpool.Pool, orders *Orders) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			rows, err := orders.FireManyTx(ctx, tx, []int64{1, 4}, Pay)
			fmt.Println(len(rows), "moved when the transaction is committed")
			return err
		})
	})
	// Output: 2 moved when the transaction is committed
}

func ExampleBinding_FireFunc() {
	withOrders(manyOrders, OrderFlow, statemachine.Table{}, func(ctx context.Context, _ *pgxpool.Pool, orders *Orders) error {
		errEnough := errors.New("enough orders are paid")
		limit := func(ctx context.Context, tx pgx.Tx, _ OrderState) error { // a rule about other rows
			var paid int
			err := tx.QueryRow(ctx, `SELECT count(*) FROM orders WHERE state = 'paid'`).Scan(&paid)
			if err == nil && paid >= 2 {
				err = errEnough
			}
			return err
		}
		for _, id := range []int64{1, 4} {
			res, err := orders.FireFunc(ctx, id, Pay, limit)
			fmt.Println(id, res.Applied(), errors.Is(err, errEnough))
		}
		return nil
	})
	// Output:
	// 1 true false
	// 4 false true
}

func ExampleBinding_FireFuncTx() {
	withOrders(manyOrders, OrderFlow, statemachine.Table{}, func(ctx context.Context, pool *pgxpool.Pool, orders *Orders) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			res, err := orders.FireFuncTx(ctx, tx, 1, Pay, func(context.Context, pgx.Tx, OrderState) error { return nil })
			fmt.Println(res.Outcome)
			return err
		})
	})
	// Output: Applied
}

func ExampleBinding_Create() {
	withOrders(orderTable, OrderFlow, statemachine.Table{}, func(ctx context.Context, _ *pgxpool.Pool, orders *Orders) error {
		for _, amount := range []int{500, 500, 600} { // a client that tries again, and another with the same id
			res, err := orders.Create(ctx, 7, Unpaid, statemachine.Set("amount", amount), statemachine.Match("amount = $1", amount))
			if errors.Is(err, statemachine.ErrConflict) {
				fmt.Println("another order has this id")
				continue
			}
			fmt.Println(res.Outcome, res.To)
		}
		return nil
	})
	// Output:
	// Applied unpaid
	// AlreadyApplied unpaid
	// another order has this id
}

func ExampleBinding_CreateTx() {
	withOrders(orderTable, OrderFlow, statemachine.Table{}, func(ctx context.Context, pool *pgxpool.Pool, orders *Orders) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := orders.CreateTx(ctx, tx, 7, Unpaid, statemachine.Set("amount", 500)); err != nil {
				return err
			}
			res, err := orders.FireTx(ctx, tx, 7, Pay)
			fmt.Println(res.From, "->", res.To)
			return err
		})
	})
	// Output: unpaid -> paid
}

func ExampleBinding_Adopt() {
	withOrders(manyOrders, OrderFlow, statemachine.Table{}, func(ctx context.Context, _ *pgxpool.Pool, orders *Orders) error {
		n, err := orders.Adopt(ctx, "import of 2026")
		fmt.Println(n, err)
		return nil
	})
	// Output: 4 <nil>
}

func ExampleBinding_Sweep() {
	expire := statemachine.NewEvent[OrderState]("expire")
	const expired OrderState = "expired"
	flow := statemachine.MustNew("order", statemachine.Initial(Unpaid), statemachine.Final(Paid, expired),
		statemachine.From(Unpaid).On(Pay).To(Paid),
		statemachine.From(Unpaid).After(15*time.Minute).On(expire).To(expired))
	const since = `; ALTER TABLE orders ADD COLUMN since timestamptz NOT NULL DEFAULT now(); UPDATE orders SET since = now() - interval '1 hour' WHERE id = 4
		; CREATE TABLE job (kind text, order_id bigint)`
	withOrders(manyOrders+since, flow, statemachine.Table{Since: "since"}, func(ctx context.Context, _ *pgxpool.Pool, orders *Orders) error {
		rows, err := orders.Sweep(ctx, nil, func(ctx context.Context, tx pgx.Tx, row statemachine.RowResult[int64, OrderState]) error {
			_, err := tx.Exec(ctx, `INSERT INTO job VALUES ('release the stock', $1)`, row.ID)
			return err
		})
		for _, row := range rows {
			fmt.Println(row.ID, row.From, "->", row.To, row.Err)
		}
		return err
	})
	// Output: 4 unpaid -> expired <nil>
}

func ExampleBinding_State() {
	withOrders(manyOrders, OrderFlow, statemachine.Table{}, func(ctx context.Context, _ *pgxpool.Pool, orders *Orders) error {
		state, err := orders.State(ctx, 2)
		fmt.Println(state)
		return err
	})
	// Output: paid
}

func ExampleBinding_History() {
	withOrders(orderTable, OrderFlow, statemachine.Table{}, func(ctx context.Context, _ *pgxpool.Pool, orders *Orders) error {
		_, err := orders.Fire(ctx, 1, Pay, statemachine.Dedup("evt_1"), statemachine.Actor("webhook"))
		if err == nil {
			_, err = orders.Fire(ctx, 1, Refund, statemachine.Actor("ops"), statemachine.Meta(map[string]string{"why": "broken"}))
		}
		if err != nil {
			return err
		}
		for move, err := range orders.History(ctx, 1) {
			if err != nil {
				return err
			}
			fmt.Printf("%s: %s -> %s by %s %s%s\n", move.Event, move.From, move.To, move.Actor, move.Dedup, move.Meta)
		}
		return nil
	})
	// Output:
	// pay: unpaid -> paid by webhook evt_1
	// refund: paid -> refunded by ops {"why": "broken"}
}

func ExampleBinding_VerifyHistory() {
	withOrders(orderTable, OrderFlow, statemachine.Table{}, func(ctx context.Context, pool *pgxpool.Pool, orders *Orders) error {
		_, err := pool.Exec(ctx, `UPDATE orders SET state = 'paid'`) // somebody with psql
		if err != nil {
			return err
		}
		for found, err := range orders.VerifyHistory(ctx) {
			if err != nil {
				return err
			}
			fmt.Println(found)
		}
		return nil
	})
	// Output: row 1 is in "paid" and has no history
}

func ExampleBinding_In() {
	withOrders(manyOrders, OrderFlow, statemachine.Table{Scope: "amount = $1"}, func(ctx context.Context, _ *pgxpool.Pool, orders *Orders) error {
		for _, tenant := range []int{100, 1250} { // the column of the tenant is another one in real life
			res, err := orders.In(tenant).Fire(ctx, 1, Pay)
			fmt.Println(res.Applied(), errors.Is(err, statemachine.ErrNotFound))
		}
		return nil
	})
	// Output:
	// false true
	// true false
}

func ExampleBinding_SQL() {
	withOrders(orderTable, OrderFlow, statemachine.Table{NoHistory: true}, func(ctx context.Context, pool *pgxpool.Pool, orders *Orders) error {
		sql, err := orders.SQL(ctx, statemachine.Where("amount < $1", 0), statemachine.Set("paid_at", nil))
		if err != nil {
			return err
		}
		for line := range strings.Lines(sql.Fire) {
			if strings.Contains(line, "amount") || strings.Contains(line, "paid_at") {
				fmt.Println(strings.TrimSpace(line))
			}
		}
		return nil
	})
	// Output:
	// WHEN "state"::text COLLATE "C" = ANY ($2::text[]) THEN CASE WHEN false THEN 0 WHEN NOT COALESCE((amount < $7), false) THEN 11 ELSE 0 END
	// UPDATE "public"."orders" SET "state" = pgonce_ht::pg_catalog.text, "paid_at" = $8::pg_catalog.timestamptz
}

func ExampleRule_Reversal() {
	bounce := statemachine.NewEvent[OrderState]("bounce")
	flow := statemachine.MustNew("order", statemachine.Initial(Unpaid), statemachine.Final(Paid),
		statemachine.Require(Paid, "paid_at"),
		statemachine.From(Unpaid).On(Pay).To(Paid).Setting("paid_at"),
		statemachine.From(Paid).On(bounce).To(Unpaid).Reversal("late return by the bank"))
	fmt.Println(flow.IsFinal(Paid), flow.IsReversal(Paid, bounce), flow.Required(Paid))
	// Output: true true [paid_at]
}

func ExampleIsRetryable() {
	fmt.Println(statemachine.IsRetryable(statemachine.ErrBusy), statemachine.IsRetryable(statemachine.ErrConflict), statemachine.IsRetryable(statemachine.ErrUnknownOutcome))
	// Output: true false false
}
