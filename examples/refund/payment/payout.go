package payment

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

// Payout is the job that a refund enqueues.
type Payout struct {
	Merchant string `json:"merchant"`
	RefundID int64  `json:"refund_id"`
}

// Kind is the name of these jobs in the queue.
func (Payout) Kind() string { return "refund.payout" }

// InsertOpts puts them into a queue of their own.
func (Payout) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueuePayouts, MaxAttempts: neverGiveUp}
}

// Payouts makes them.
type Payouts struct {
	river.WorkerDefaults[Payout]
	pool *pgxpool.Pool
	flow *Refunds
	bank *Bank
}

// NewPayouts makes payouts at a bank. It checks that the table is there.
func NewPayouts(ctx context.Context, pool *pgxpool.Pool, b *Bank) (*Payouts, error) {
	flow, err := statemachine.Bind[int64](Flow, pgxdriver.New(pool), refundTable)
	if err != nil {
		return nil, err
	}
	if err := flow.Validate(ctx); err != nil {
		return nil, err
	}
	return &Payouts{pool: pool, flow: flow, bank: b}, nil
}

// Work reads, calls the bank, and commits the outcome: three steps, and no transaction
// spans two of them. It may be killed between any two, or run twice at the same time: the bank
// makes one payment of one reference, and the state moves once.
func (p *Payouts) Work(ctx context.Context, job *river.Job[Payout]) error {
	r, err := p.read(ctx, job.Args)
	if err != nil || r.State != Requested {
		return err // settled: the job was delivered again
	}
	decision, err := p.bank.Pay(ctx, Transfer{
		Reference: Reference(job.Args.Merchant, r.Number), Account: r.Account, AmountCents: r.AmountCents,
		Purpose: job.Args.Merchant + "/" + r.Number,
	})
	if err != nil {
		return err // paid or not, nobody knows; the next try asks under the same reference
	}
	return p.settle(ctx, job, r, decision)
}

// refund is what a payout has to know.
type refund struct {
	State       State
	Number      string
	Purchase    string
	Account     string
	AmountCents int64
}

func (p *Payouts) read(ctx context.Context, id Payout) (refund, error) {
	rows, _ := p.pool.Query(ctx, `
SELECT state, number, purchase, account, amount_cents FROM shop.refund WHERE merchant = $1 AND id = $2`, id.Merchant, id.RefundID)
	r, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[refund])
	if err != nil {
		return r, fmt.Errorf("refund %d: %w", id.RefundID, err)
	}
	return r, nil
}

// settle commits the bank's word with all that follows from it: the state, the money back on the
// purchase if the bank refused, and that the job is done.
func (p *Payouts) settle(ctx context.Context, job *river.Job[Payout], r refund, d Decision) error {
	event, opts := Pay, []statemachine.Option{statemachine.Set("bank_serial", d.Serial)}
	if !d.Paid {
		event, opts = Refuse, []statemachine.Option{statemachine.Set("reason", d.Reason)}
	}
	opts = append(opts, statemachine.SetExpr("settled_at", "statement_timestamp()"))
	err := pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
		res, err := p.flow.FireTx(ctx, tx, job.Args.RefundID, event, opts...)
		if err != nil {
			return err
		}
		if res.Applied() && !d.Paid { // once: for a second delivery it is AlreadyApplied
			const giveBack = `UPDATE shop.purchase SET refunded_cents = refunded_cents - $3 WHERE merchant = $1 AND id = $2`
			if _, err := tx.Exec(ctx, giveBack, job.Args.Merchant, r.Purchase, r.AmountCents); err != nil {
				return err
			}
		}
		_, err = river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job)
		return err
	})
	if errors.Is(err, statemachine.ErrConflict) {
		return river.JobCancel(err) // the bank has said two things about one reference: a person must look
	}
	return err
}
