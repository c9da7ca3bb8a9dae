package refunds

import (
	"context"
	"errors"
	"fmt"

	"github.com/jmoiron/sqlx"
	"github.com/pgonce/pgonce/statemachine"
	"github.com/riverqueue/river"
)

// Payout is the job that a refund enqueues.
type Payout struct {
	ApplyID string `json:"apply_id"`
}

// Kind is the name of these jobs in the queue.
func (Payout) Kind() string { return "partialrefund.payout" }

// InsertOpts makes the queue never give up: only the refund service's word ends a payout.
func (Payout) InsertOpts() river.InsertOpts { return river.InsertOpts{MaxAttempts: neverGiveUp} }

// Payouts makes them.
type Payouts struct {
	river.WorkerDefaults[Payout]
	refunds *Service
	bank    *Bank
}

// NewPayouts makes payouts by a refund service.
func NewPayouts(refunds *Service, bank *Bank) *Payouts { return &Payouts{refunds: refunds, bank: bank} }

// refund is what a payout has to know.
type refund struct {
	State       State  `db:"state"`
	Order       string `db:"order_id"`
	Account     string `db:"account"`
	AmountCents int64  `db:"amount_cents"`
}

// Work reads, calls the refund service, and commits what it said: three steps, and no transaction spans two of them. It may
// be killed between any two, or run twice at the same time: the service pays one reference once, and the state moves once. The queue marks
// the job as done in a commit of its own, so it comes again if that is lost, and finds nothing to do.
func (p *Payouts) Work(ctx context.Context, job *river.Job[Payout]) error {
	var r refund
	const read = `
SELECT r.state, r.order_id, o.account, r.amount_cents
FROM partialrefund.refund r JOIN partialrefund.shop_order o ON o.id = r.order_id WHERE r.apply_id = $1`
	if err := p.refunds.db.GetContext(ctx, &r, read, job.Args.ApplyID); err != nil {
		return fmt.Errorf("refund %s: %w", job.Args.ApplyID, err)
	}
	if r.State == Refunded || r.State == Refused {
		return nil // the job was delivered again
	}
	d, err := p.bank.Pay(ctx, Transfer{Reference: job.Args.ApplyID, Account: r.Account, AmountCents: r.AmountCents, Purpose: r.Order + "/" + job.Args.ApplyID})
	if err != nil {
		return err // paid or not, nobody knows; the next try asks under the same reference
	}
	err = p.refunds.settle(ctx, job.Args.ApplyID, r, d)
	if errors.Is(err, statemachine.ErrConflict) {
		return river.JobCancel(err) // the service has said two things about one reference: a person must look
	}
	return err
}

// settle commits the refund service's word with what follows from it: if it refused, the money is back on the order.
func (s *Service) settle(ctx context.Context, applyID string, r refund, d Decision) error {
	return inTx(ctx, s.db, func(tx *sqlx.Tx) error {
		if d.Paid {
			_, err := s.flow.FireTx(ctx, tx, applyID, Pay, statemachine.Set("serial", d.Serial))
			return err
		}
		if err := s.lockOrder(ctx, tx, r.Order); err != nil { // the order first: see orderRows
			return err
		}
		res, err := s.flow.FireTx(ctx, tx, applyID, Refuse, statemachine.Set("reason", d.Reason))
		if err != nil || !res.Applied() { // once: for a second delivery it is AlreadyApplied
			return err
		}
		const giveBack = `UPDATE partialrefund.shop_order SET refunded_cents = refunded_cents - $2 WHERE id = $1`
		_, err = tx.ExecContext(ctx, giveBack, r.Order, r.AmountCents)
		return err
	})
}
