// Package wrong makes refunds in three ways that are in wide use, and pays twice in each. They
// are here to be measured beside the right one; do not copy them.
//
// They have in common that the request itself pays, and that the bank is given a new
// reference at every try, as a service does that has nothing durable to derive one from.
package wrong

import (
	"context"
	"crypto/rand"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/examples/refund/payment"
	"github.com/pgonce/pgonce/idem"
)

// Ways are the wrong ways, by name.
func Ways(pool *pgxpool.Pool, bank *payment.Bank) map[string]payment.Refunder {
	till := till{pool: pool, bank: bank}
	return map[string]payment.Refunder{"unique": &unique{till}, "select": &lookup{till}, "lock": &lock{till}}
}

// till is what each of them pays from.
type till struct {
	pool *pgxpool.Pool
	bank *payment.Bank
}

type result = idem.Result[payment.Receipt]

// pay asks the bank. A refusal is an answer too: no money, and nothing more to do.
func (t till) pay(ctx context.Context, r payment.Request, o payment.Order) (serial string, err error) {
	d, err := t.bank.Pay(ctx, payment.Transfer{
		Reference: rand.Text(), Account: o.Account, AmountCents: o.AmountCents, Purpose: r.Merchant + "/" + r.Number,
	})
	return d.Serial, err
}

func accepted(o payment.Order, replayed bool) result {
	return result{Value: payment.Receipt{Purchase: o.Purchase, AmountCents: o.AmountCents}, Replayed: replayed}
}
