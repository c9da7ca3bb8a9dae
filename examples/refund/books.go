package main

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/examples/refund/bank"
	"github.com/pgonce/pgonce/examples/refund/payment"
)

// entry is a refund as the database has it.
type entry struct {
	ID          int64
	Merchant    string
	Number      string
	Purchase    string
	AmountCents int64
	State       payment.State
	Serial      *string
}

// books is what the bank and the database say after a storm.
type books struct {
	payments      []bank.Payment
	refunds       []entry
	effects       int   // distinct keys that were committed
	records       int   // of finished keys
	refundedCents int64 // by the purchases
}

func readBooks(ctx context.Context, s *storm) (books, error) {
	b := books{payments: s.bank.Payments()}
	rows, _ := s.pool.Query(ctx, `
SELECT id, merchant, number, purchase, amount_cents, state, bank_serial FROM shop.refund WHERE merchant = ANY($1)`, s.merchants())
	var err error
	if b.refunds, err = pgx.CollectRows(rows, pgx.RowToStructByPos[entry]); err != nil {
		return b, err
	}
	err = s.pool.QueryRow(ctx, `
SELECT (SELECT count(DISTINCT (merchant, number)) FROM shop.refund WHERE merchant = ANY($1)),
       (SELECT count(*) FROM pgonce.idem_record WHERE scope = ANY($1) AND op = $2),
       (SELECT coalesce(sum(refunded_cents), 0) FROM shop.purchase WHERE merchant = ANY($1))`,
		s.merchants(), payment.CreateRefund.Name).Scan(&b.effects, &b.records, &b.refundedCents)
	return b, err
}

// ledger is what the bank has paid for each refund. A double payout is any payment of a refund
// after its first.
type ledger struct {
	byPurpose    map[string][]bank.Payment
	cents        int64
	doubles      int
	doubledCents int64
}

func (b books) ledger() ledger {
	l := ledger{byPurpose: map[string][]bank.Payment{}}
	for _, p := range b.payments {
		l.cents += p.AmountCents
		if len(l.byPurpose[p.Purpose]) > 0 {
			l.doubles++
			l.doubledCents += p.AmountCents
		}
		l.byPurpose[p.Purpose] = append(l.byPurpose[p.Purpose], p)
	}
	return l
}

// unpaid counts the refunds that the bank should have paid and has not.
func (s *storm) unpaid(l ledger) (n int) {
	for i := range s.refunds {
		if !closed(i) && len(l.byPurpose[s.key(i)]) == 0 {
			n++
		}
	}
	return n
}

// expectedCents is what should leave.
func (s *storm) expectedCents() (sum int64) {
	for i := range s.refunds {
		if !closed(i) {
			sum += amountOf(i)
		}
	}
	return sum
}
