package payment

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// State is where a refund is.
type State string

// The states of a refund.
const (
	Requested State = "requested" // accepted; the bank has not said yet
	Paid      State = "paid"
	Refused   State = "refused" // by the bank
)

// Flow moves refunds.
type Flow struct{}

// NewFlow binds.
func NewFlow(*pgxpool.Pool) (*Flow, error) { return &Flow{}, nil }

func (f *Flow) settle(ctx context.Context, tx pgx.Tx, id int64, d Decision) (bool, error) {
	to := Paid
	if !d.Paid {
		to = Refused
	}
	tag, err := tx.Exec(ctx, `UPDATE shop.refund SET state = $2, bank_serial = nullif($3, ''), reason = nullif($4, ''), settled_at = now() WHERE id = $1 AND state = 'requested'`, id, to, d.Serial, d.Reason)
	return tag.RowsAffected() == 1, err
}
