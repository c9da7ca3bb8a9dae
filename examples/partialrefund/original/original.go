// Package original gives back parts of orders as it was first done, with a lock in Redis. It is here to be measured beside the
// right way; do not copy it. A table stands for Redis: each command is a statement, and as atomic as the command.
package original

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/examples/partialrefund/refunds"
	"github.com/pgonce/pgonce/idem"
)

// life is that of the lock: two seconds in the original. Here a second takes ten milliseconds, so that a demonstration does.
const life = 20 * time.Millisecond

// Service is an instance.
type Service struct {
	pool *pgxpool.Pool
	bank *refunds.Bank
}

// New makes an instance.
func New(pool *pgxpool.Pool, bank *refunds.Bank) *Service { return &Service{pool, bank} }

type result = idem.Result[refunds.Receipt]

// Refund makes a refund.
func (s *Service) Refund(ctx context.Context, r refunds.Request) (result, error) {
	return s.refund(ctx, r, false)
}

// Agree makes a refund too, under the apply id of one that is executing, if there is one.
func (s *Service) Agree(ctx context.Context, r refunds.Request) (result, error) {
	return s.refund(ctx, r, true)
}

// refund has the flaws of the original:
//   - the key of the lock is made before the order's id is known, so all orders have one lock, and wait for each other;
//   - the lock is never released, only over after its life, whatever its holder does;
//   - nothing remembers an apply id, so a repeat after that pays again;
//   - an agreement pays under the apply id of the refund that it is about, which pays too;
//   - what is left is read, and written back after the call: what others have written meanwhile is lost.
func (s *Service) refund(ctx context.Context, r refunds.Request, agreed bool) (res result, err error) {
	var orderID string
	if err := s.lock(ctx, "refund:"+orderID); err != nil {
		return res, err
	}
	orderID = r.Order
	var (
		account              string
		paid, refunded       int64
		applyID, kind, state = r.ID, string(r.Kind), "execute"
	)
	const load = `SELECT account, paid_cents, refunded_cents FROM partialrefund_original.shop_order WHERE id = $1`
	err = s.pool.QueryRow(ctx, load, orderID).Scan(&account, &paid, &refunded)
	if errors.Is(err, pgx.ErrNoRows) {
		return res, refunds.ErrUnknownOrder
	}
	if err != nil {
		return res, err
	}
	if refunded+r.AmountCents > paid {
		return res, &refunds.TooMuchError{AskedCents: r.AmountCents, LeftCents: paid - refunded}
	}
	if agreed {
		const executing = `SELECT apply_id, kind FROM partialrefund_original.refund WHERE order_id = $1 AND state = 'execute' LIMIT 1`
		err = s.pool.QueryRow(ctx, executing, orderID).Scan(&applyID, &kind)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return res, err
		}
	}
	const insert = `INSERT INTO partialrefund_original.refund (apply_id, order_id, kind, state) VALUES ($1, $2, $3, $4)`
	if _, err := s.pool.Exec(ctx, insert, applyID, orderID, kind, state); err != nil {
		return res, err
	}
	d, err := s.bank.Pay(ctx, refunds.Transfer{Reference: rand.Text(), Account: account, AmountCents: r.AmountCents, Purpose: orderID + "/" + applyID})
	if err != nil {
		return res, err
	}
	res.Value = refunds.Receipt{ApplyID: applyID, Order: orderID, AmountCents: r.AmountCents, Kind: refunds.Kind(kind)}
	if !d.Paid {
		return res, nil
	}
	_, err1 := s.pool.Exec(ctx, `UPDATE partialrefund_original.shop_order SET refunded_cents = $2 WHERE id = $1`, orderID, refunded+r.AmountCents)
	_, err2 := s.pool.Exec(ctx, `UPDATE partialrefund_original.refund SET state = 'done' WHERE apply_id = $1`, applyID)
	return res, errors.Join(err1, err2)
}

// lock is SET key NX PX.
func (s *Service) lock(ctx context.Context, key string) error {
	const set = `
INSERT INTO partialrefund_original.lock (key, expires_at) VALUES ($1, clock_timestamp() + $2::interval)
ON CONFLICT (key) DO UPDATE SET expires_at = excluded.expires_at WHERE lock.expires_at <= clock_timestamp()`
	got, err := s.pool.Exec(ctx, set, key, life)
	if err == nil && got.RowsAffected() == 0 {
		err = idem.ErrInFlight // come again
	}
	return err
}
