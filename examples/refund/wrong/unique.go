package wrong

import (
	"context"

	"github.com/pgonce/pgonce/examples/refund/payment"
)

// unique inserts first and lets the unique index refuse the second. That is right, until the
// table is sharded by another column than the number: the customer's request and the returns
// desk's message then go to two shards, and each of them accepts it.
//
// It has a second fault: the number is taken before the bank has been asked, so a refund
// whose first try fails is told to be done and is never paid.
type unique struct{ till }

func (u *unique) Refund(ctx context.Context, r payment.Request) (result, error) {
	order, err := r.Order()
	if err != nil {
		return result{}, err
	}
	const insert = `INSERT INTO wrong.sharded (merchant, number, asked_by) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`
	tag, err := u.pool.Exec(ctx, insert, r.Merchant, r.Number, r.AskedBy)
	if err != nil {
		return result{}, err
	}
	if tag.RowsAffected() == 0 {
		return accepted(order, true), nil
	}
	serial, err := u.pay(ctx, r, order)
	if err != nil {
		return result{}, err
	}
	const store = `UPDATE wrong.sharded SET serial = $4 WHERE merchant = $1 AND number = $2 AND asked_by = $3`
	_, err = u.pool.Exec(ctx, store, r.Merchant, r.Number, r.AskedBy, serial)
	return accepted(order, false), err
}
