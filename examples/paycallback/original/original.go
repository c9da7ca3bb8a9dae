// Package original takes callbacks as it was first done, with its flaws: do not copy.
package original

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/examples/paycallback/callback"
)

// life is that of the lock. PX is in milliseconds.
const life = 5 * time.Millisecond

// Service takes callbacks and tells the others within the request.
type Service struct {
	pool *pgxpool.Pool
	to   *callback.Others
}

// NewService is one over a pool.
func NewService(pool *pgxpool.Pool, to *callback.Others) *Service { return &Service{pool, to} }

// Paid answers success to whoever does not get the lock, and runs the release for it.
func (s *Service) Paid(ctx context.Context, c callback.Callback) (bool, error) {
	key := fmt.Sprint("order-", c.Order)
	const take = `
INSERT INTO careless.lock (key, expires_at) VALUES ($1, statement_timestamp() + $2::interval)
ON CONFLICT (key) DO UPDATE SET expires_at = excluded.expires_at WHERE careless.lock.expires_at < statement_timestamp()`
	tag, err := s.pool.Exec(ctx, take, key, life)
	if err != nil {
		return false, err
	}
	if tag.RowsAffected() == 1 {
		if err := s.pay(ctx, c); err != nil {
			return false, err // before the release: there is no finally
		}
	}
	_, err = s.pool.Exec(ctx, `DELETE FROM careless.lock WHERE key = $1`, key)
	return true, err
}

func (s *Service) pay(ctx context.Context, c callback.Callback) error {
	// The order comes with its lines, its customer and its coupons, which takes longer than the lock lives.
	var state string
	if err := s.pool.QueryRow(ctx, `SELECT state FROM careless.purchase, pg_sleep(0.02) WHERE id = $1`, c.Order).Scan(&state); err != nil {
		return err
	}
	if state == "paid" {
		return fmt.Errorf("order %d is paid", c.Order)
	}
	if _, err := s.pool.Exec(ctx, `UPDATE careless.purchase SET state = 'paid' WHERE id = $1`, c.Order); err != nil {
		return err
	}
	for _, what := range []string{"notify", "push", "schedule"} {
		if err := s.to.Tell(ctx, what, callback.Told{Reference: rand.Text(), Order: c.Order}); err != nil {
			return err
		}
	}
	return nil
}
