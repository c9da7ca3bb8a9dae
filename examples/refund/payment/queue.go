package payment

import (
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"
)

// QueueSchema holds the queue's tables.
const QueueSchema = "shop_queue"

// The queues.
const (
	QueueMessages = "messages"
	QueuePayouts  = "payouts"
)

const (
	// A job is delivered again once it has run for rescueAfter, because its worker is gone.
	// Should the worker live after all, two work on it, which the reference and the
	// state make harmless; jobTimeout makes it rare.
	jobTimeout  = 10 * time.Second
	rescueAfter = 30 * time.Second

	// Only the bank's word ends a payout, not a number of attempts.
	neverGiveUp = 32767

	firstRetry = 50 * time.Millisecond
	lastRetry  = 4 * time.Second
)

// NewPublisher is a client that enqueues and does not work.
func NewPublisher(pool *pgxpool.Pool) (*river.Client[pgx.Tx], error) {
	return river.NewClient(riverpgxv5.New(pool), &river.Config{Schema: QueueSchema})
}

// NewQueue is a client that works: it consumes messages for refunds and makes payouts.
// Payouts is nil where refunds pay by themselves, as the wrong ones do.
func NewQueue(pool *pgxpool.Pool, refunds Refunder, payouts *Payouts, log *slog.Logger) (*river.Client[pgx.Tx], error) {
	workers := river.NewWorkers()
	river.AddWorker(workers, &Messages{Refunds: refunds})
	queues := map[string]river.QueueConfig{QueueMessages: {MaxWorkers: 32}}
	if payouts != nil {
		river.AddWorker(workers, payouts)
		queues[QueuePayouts] = river.QueueConfig{MaxWorkers: 64} // they mostly wait for the bank
	}
	return river.NewClient(riverpgxv5.New(pool), &river.Config{
		Schema: QueueSchema, Queues: queues, Workers: workers, Logger: log,
		JobTimeout: jobTimeout, RescueStuckJobsAfter: rescueAfter, RetryPolicy: backoff{},
		FetchCooldown: 10 * time.Millisecond, FetchPollInterval: 50 * time.Millisecond,
	})
}

// backoff asks again soon, and then ever more rarely, up to every four seconds: below the five within
// which the queue needs no leader to bring a job back.
type backoff struct{}

func (backoff) NextRetry(job *rivertype.JobRow) time.Time {
	pause := min(firstRetry<<min(len(job.Errors), 10), lastRetry)
	return time.Now().Add(pause/2 + rand.N(pause/2))
}
