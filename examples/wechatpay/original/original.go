// Package original takes callbacks as it was first done, with a lock in Redis. It is here to be measured beside the right way; do
// not copy it. A table stands for Redis: each command is a statement, and as atomic as the command.
package original

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/examples/wechatpay/wallet"
	"github.com/riverqueue/river"
)

const (
	// limit is the longest wait and the life of the lock, in one number. The original's was seconds; here a second takes twenty
	// milliseconds, of the platform's slowness too, so that a demonstration does.
	limit = 100 * time.Millisecond

	spin = 5 * time.Millisecond
)

// Service is an instance. Its mutex is what "synchronized" was: it knows nothing of other instances.
type Service struct {
	pool     *pgxpool.Pool
	jobs     *river.Client[pgx.Tx]
	platform *wallet.Platform
	mu       sync.Mutex
}

// New makes an instance.
func New(pool *pgxpool.Pool, platform *wallet.Platform, log *slog.Logger) (*Service, error) {
	jobs, err := wallet.NewPublisher(pool, log)
	return &Service{pool: pool, jobs: jobs, platform: platform}, err
}

// Callback has the flaws of the original:
//   - a holder that takes longer than the limit loses the lock while it works;
//   - get and set are two commands, so two instances can both get the lock;
//   - the release does not look at the owner, so it takes away the next one's lock;
//   - the state and the message are two commits.
func (s *Service) Callback(ctx context.Context, c wallet.Callback) error {
	if err := s.acquire(ctx, c.Number); err != nil {
		return err
	}
	defer func() {
		_, _ = s.pool.Exec(context.WithoutCancel(ctx), `DELETE FROM wechatpay_original.lock WHERE key = $1`, c.Number)
	}()
	var state wallet.Consumption
	err := s.pool.QueryRow(ctx, `SELECT consumption FROM wechatpay_original.wallet_order WHERE number = $1`, c.Number).Scan(&state)
	if errors.Is(err, pgx.ErrNoRows) {
		return wallet.ErrUnknownOrder
	}
	if err != nil || state != wallet.NotConsumed {
		return err
	}
	if err := s.platform.Confirm(ctx, c); err != nil {
		return err
	}
	if _, err := s.pool.Exec(ctx, `UPDATE wechatpay_original.wallet_order SET consumption = 'enqueued' WHERE number = $1`, c.Number); err != nil {
		return err
	}
	_, err = s.jobs.Insert(ctx, wallet.Message{Number: c.Number}, nil)
	return err
}

// acquire spins.
func (s *Service) acquire(ctx context.Context, key string) error {
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); {
		got, err := s.try(ctx, key)
		if err != nil || got {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(spin):
		}
	}
	return dblock.ErrNotAcquired // come again
}

// try gets, and sets if it got nothing.
func (s *Service) try(ctx context.Context, key string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var held bool
	const get = `SELECT EXISTS (SELECT FROM wechatpay_original.lock WHERE key = $1 AND expires_at > clock_timestamp())`
	if err := s.pool.QueryRow(ctx, get, key).Scan(&held); err != nil || held {
		return false, err
	}
	const set = `
INSERT INTO wechatpay_original.lock (key, owner, expires_at) VALUES ($1, $2, clock_timestamp() + $3::interval)
ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at`
	_, err := s.pool.Exec(ctx, set, key, rand.Text(), limit)
	return err == nil, err
}

// Consumer puts money into wallets at each delivery, and sets paid.
type Consumer struct {
	river.WorkerDefaults[wallet.Message]
	Pool *pgxpool.Pool
}

// Work consumes a message.
func (c *Consumer) Work(ctx context.Context, job *river.Job[wallet.Message]) error {
	const credit = `
INSERT INTO wechatpay_original.credit (number, amount_cents)
SELECT number, amount_cents FROM wechatpay_original.wallet_order WHERE number = $1`
	if _, err := c.Pool.Exec(ctx, credit, job.Args.Number); err != nil {
		return err
	}
	const paid = `UPDATE wechatpay_original.wallet_order SET payment = 'paid', consumption = 'consumed' WHERE number = $1`
	_, err := c.Pool.Exec(ctx, paid, job.Args.Number)
	return err
}
