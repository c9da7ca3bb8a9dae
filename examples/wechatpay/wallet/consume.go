package wallet

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/statemachine"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
)

// Message says that an order is to be consumed. The queue delivers it at least once.
type Message struct {
	Number string `json:"number"`
}

// Kind is the name of these jobs in the queue.
func (Message) Kind() string { return "wallet.paid" }

// InsertOpts makes the queue never give up: money waits.
func (Message) InsertOpts() river.InsertOpts { return river.InsertOpts{MaxAttempts: neverGiveUp} }

// Consumer puts the money of paid orders into wallets.
type Consumer struct {
	river.WorkerDefaults[Message]
	pool         *pgxpool.Pool
	payments     *Payments
	consumptions *Consumptions
}

// NewConsumer checks that the tables are there, and that the database refuses what the machines do not allow.
func NewConsumer(ctx context.Context, pool *pgxpool.Pool) (*Consumer, error) {
	db := pgxdriver.New(pool)
	payments, err1 := statemachine.Bind[string](PaymentFlow, db, PaymentTable)
	consumptions, err2 := statemachine.Bind[string](ConsumptionFlow, db, ConsumptionTable)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	if err := errors.Join(payments.Verify(ctx), consumptions.Verify(ctx)); err != nil {
		return nil, err
	}
	return &Consumer{pool: pool, payments: payments, consumptions: consumptions}, nil
}

// Work consumes a message: both states, the money and the end of the job are one commit. It takes no lock: of two deliveries one
// moves the state, and the other is told that it was moved.
func (c *Consumer) Work(ctx context.Context, job *river.Job[Message]) error {
	err := pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		if err := c.consume(ctx, tx, job.Args.Number); err != nil {
			return err
		}
		_, err := river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job)
		return err
	})
	if errors.Is(err, statemachine.ErrConflict) || errors.Is(err, statemachine.ErrNotFound) {
		return river.JobCancel(err) // a message that nobody of ours has written: a person must look
	}
	return err
}

// consume fires two machines at one row, in this order: a row may be consumed and not yet paid while the transaction runs, which
// nobody else can see, and never the other way round, which a CHECK says.
func (c *Consumer) consume(ctx context.Context, tx pgx.Tx, number string) error {
	res, err := c.consumptions.FireTx(ctx, tx, number, Consume)
	if err != nil || !res.Applied() {
		return err // nil for a repeat
	}
	if _, err := c.payments.FireTx(ctx, tx, number, Pay, statemachine.SetExpr("paid_at", "statement_timestamp()")); err != nil {
		return err
	}
	const credit = `
INSERT INTO wechatpay.credit (number, wallet, amount_cents)
SELECT number, wallet, amount_cents FROM wechatpay.wallet_order WHERE number = $1`
	tag, err := tx.Exec(ctx, credit, number)
	if err == nil && tag.RowsAffected() != 1 {
		err = fmt.Errorf("order %s: no row to credit", number)
	}
	return err
}
