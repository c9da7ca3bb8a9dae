package refunds

import (
	"context"
	"database/sql"
	"errors"

	"github.com/jmoiron/sqlx"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/idem"
)

// Agree takes the notification that the seller agrees to a refund of so much. It does not say to which one, and it comes as
// often as it likes, before or after the money has gone. It joins the refund that it is about: the oldest of this order and amount that
// nobody has agreed to yet, those that are still executing first. Only if there is none, it makes one.
func (s *Service) Agree(ctx context.Context, r Request) (idem.Result[Receipt], error) {
	if !r.valid() {
		return idem.Result[Receipt]{}, ErrBadRequest
	}
	r.Kind = BySeller
	return idem.Do(ctx, s.keys, Agreement.Key(shop, r.ID), r.fingerprint(),
		func(ctx context.Context, tx *sqlx.Tx) (Receipt, error) { return s.join(ctx, tx, r) })
}

// join decides by several rows, so it locks them: the order, so that nobody opens, joins or refuses a refund of it
// meanwhile, and then the refunds, so that none of them is paid between the look and the decision.
//
// A refund that was refused can be joined too, when there is no other: the agreement was about it, and to pay something else
// instead would be a guess.
func (s *Service) join(ctx context.Context, tx *sqlx.Tx, r Request) (receipt Receipt, err error) {
	if err := s.lockOrder(ctx, tx, r.Order); err != nil {
		return receipt, err
	}
	var open []string
	const candidates = `
SELECT apply_id FROM partialrefund.refund r
WHERE order_id = $1 AND amount_cents = $2 AND NOT EXISTS (SELECT FROM partialrefund.agreement a WHERE a.apply_id = r.apply_id)`
	if err := tx.SelectContext(ctx, &open, candidates, r.Order, r.AmountCents); err != nil {
		return receipt, err
	}
	if _, err := dblock.LockRowsTx(ctx, s.locks, tx, refundRows, open, nil); err != nil {
		return receipt, err
	}
	receipt = Receipt{Order: r.Order, AmountCents: r.AmountCents, Joined: true}
	const choose = `
SELECT apply_id, kind FROM partialrefund.refund WHERE apply_id = ANY($1)
ORDER BY array_position(ARRAY['executing', 'refunded', 'refused'], state), asked_at, apply_id LIMIT 1`
	err = tx.QueryRowContext(ctx, choose, open).Scan(&receipt.ApplyID, &receipt.Kind)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		receipt, err = s.accept(ctx, tx, "agree-"+r.ID, r)
	case err == nil:
		_, err = s.flow.FireTx(ctx, tx, receipt.ApplyID, Agree)
	}
	if err != nil {
		return receipt, err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO partialrefund.agreement (id, apply_id) VALUES ($1, $2)`, r.ID, receipt.ApplyID)
	return receipt, err
}
