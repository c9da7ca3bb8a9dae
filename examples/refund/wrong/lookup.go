package wrong

import (
	"context"

	"github.com/pgonce/pgonce/examples/refund/payment"
)

// lookup looks first, and pays and inserts when it has found nothing. Two services that look
// at the same time both find nothing. So does the repeat of a request whose first try was
// killed, or not answered, between the payment and the insert.
type lookup struct{ till }

func (l *lookup) Refund(ctx context.Context, r payment.Request) (result, error) {
	order, err := r.Order()
	if err != nil {
		return result{}, err
	}
	var found bool
	const look = `SELECT EXISTS (SELECT FROM wrong.looked_up WHERE merchant = $1 AND number = $2)`
	if err := l.pool.QueryRow(ctx, look, r.Merchant, r.Number).Scan(&found); err != nil {
		return result{}, err
	}
	if found {
		return accepted(order, true), nil
	}
	serial, err := l.pay(ctx, r, order)
	if err != nil {
		return result{}, err
	}
	const insert = `INSERT INTO wrong.looked_up (merchant, number, serial) VALUES ($1, $2, $3)`
	_, err = l.pool.Exec(ctx, insert, r.Merchant, r.Number, serial)
	return accepted(order, false), err
}
