// Package original is the consumer as it was first built, with its flaws: do not copy.
package original

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/examples/remittance/remit"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
)

// The lock was waited for for 3 seconds and lived for 50, with banks that take a minute. Here everything is shorter.
const (
	wait  = 300 * time.Millisecond
	lease = time.Second
)

// Message is that of the right way, in a queue of its own.
type Message struct{ remit.Message }

// Kind is the name of these jobs in the queue.
func (Message) Kind() string { return "original.send" }

// Consumer is the consumer.
type Consumer struct {
	river.WorkerDefaults[Message]
	pool *pgxpool.Pool
	bank *remit.Bank
	log  *slog.Logger
}

// NewQueue is a client that works.
func NewQueue(pool *pgxpool.Pool, bankURL string, patience time.Duration, log *slog.Logger) (*river.Client[pgx.Tx], error) {
	workers := river.NewWorkers()
	river.AddWorker(workers, &Consumer{pool: pool, bank: remit.NewBank(bankURL, patience), log: log})
	return river.NewClient(riverpgxv5.New(pool), &river.Config{
		Schema: remit.QueueSchema, Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 32}}, Workers: workers, Logger: log,
		FetchCooldown: 10 * time.Millisecond, FetchPollInterval: 100 * time.Millisecond,
	})
}

// Work logs whatever goes wrong, and acknowledges.
func (c *Consumer) Work(ctx context.Context, job *river.Job[Message]) error {
	if said, err := c.consume(ctx, job.Args.Remittance); err != nil {
		c.log.Error("remittance", "err", err)
	} else {
		c.log.Info(said)
	}
	return nil
}

func (c *Consumer) consume(ctx context.Context, id string) (string, error) {
	var flag int
	var t remit.Transfer
	err := c.pool.QueryRow(ctx, `SELECT flag, account, amount_cents FROM original.remittance WHERE id = $1`, id).Scan(&flag, &t.Account, &t.AmountCents)
	if err != nil {
		return "", err
	}
	owner := rand.Text()
	got, err := c.tryLock(ctx, id, owner)
	defer func() { // finally: also a lock that it has never got
		_, _ = c.pool.Exec(context.WithoutCancel(ctx), `DELETE FROM original.lock WHERE key = $1`, id)
	}()
	if err != nil || !got {
		return "being processed, retry later", err
	}
	if flag != 1 && flag != 6 { // as read before the lock, and never again
		return "does not support remittance", nil
	}
	t.Reference, t.Purpose = rand.Text(), id+"/1"
	word, err := c.bank.Pay(ctx, t)
	if err != nil {
		return "", err // the flag stays as it is
	}
	switch word.Code {
	case 4:
		flag = 2
	case 8, 9:
		flag = 3
	default:
		flag = 8
	}
	_, err = c.pool.Exec(ctx, `UPDATE original.remittance SET flag = $2, serial = nullif($3, '') WHERE id = $1`, id, flag, word.Serial)
	return "done", err
}

// tryLock is as good as it can be: taken in one step, by the server's clock.
func (c *Consumer) tryLock(ctx context.Context, key, owner string) (bool, error) {
	const take = `
INSERT INTO original.lock (key, owner, expires_at) VALUES ($1, $2, statement_timestamp() + $3::interval)
ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at
WHERE original.lock.expires_at < statement_timestamp()`
	for end := time.Now().Add(wait); ; {
		tag, err := c.pool.Exec(ctx, take, key, owner, lease)
		if err != nil || tag.RowsAffected() == 1 {
			return err == nil, err
		}
		if time.Now().After(end) {
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, errors.Join(ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}
