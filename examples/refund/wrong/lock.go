package wrong

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/pgonce/pgonce/examples/refund/payment"
)

// lock takes a lock with a life of ten minutes and pays. Whoever finds the lock taken says that
// the refund is accepted. It is made as well as such a lock can be: taken in one step, given back by its
// owner only and only after a failure, and its clock is the server's. It still knows
// nothing of a refund that was made longer ago than its life: the message that comes again
// after thirty minutes finds no lock, and pays.
type lock struct{ till }

const lifetime = 10 * time.Minute

func (l *lock) Refund(ctx context.Context, r payment.Request) (result, error) {
	order, err := r.Order()
	if err != nil {
		return result{}, err
	}
	key, owner := r.Merchant+"/"+r.Number, rand.Text()
	const acquire = `
INSERT INTO wrong.lock (key, owner, expires_at) VALUES ($1, $2, now() + $3)
ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at WHERE lock.expires_at <= now()`
	tag, err := l.pool.Exec(ctx, acquire, key, owner, lifetime)
	if err != nil {
		return result{}, err
	}
	if tag.RowsAffected() == 0 {
		return accepted(order, true), nil
	}
	if _, err := l.pay(ctx, r, order); err != nil {
		_, failed := l.pool.Exec(context.WithoutCancel(ctx), `DELETE FROM wrong.lock WHERE key = $1 AND owner = $2`, key, owner)
		return result{}, errors.Join(err, failed)
	}
	return accepted(order, false), nil
}
