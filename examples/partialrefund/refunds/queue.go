package refunds

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/idem"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"
)

// QueueSchema holds the queue's tables.
const QueueSchema = "partialrefund_queue"

const neverGiveUp = 32767

// Notification is an agreement that comes by message. The queue delivers it at least once.
type Notification struct{ Request }

// Kind is the name of these jobs in the queue.
func (Notification) Kind() string { return "partialrefund.agreement" }

// InsertOpts makes the queue never give up.
func (Notification) InsertOpts() river.InsertOpts { return river.InsertOpts{MaxAttempts: neverGiveUp} }

// Notifications consumes them, under the same keys as by HTTP.
type Notifications struct {
	river.WorkerDefaults[Notification]
	Refunds *Service
}

// Work acknowledges a message when its agreement is recorded, now or before. What can never be is put aside with the reason, for a
// person to see.
func (n *Notifications) Work(ctx context.Context, job *river.Job[Notification]) error {
	_, err := n.Refunds.Agree(ctx, job.Args.Request)
	switch {
	case err != nil && Permanent(err):
		return river.JobCancel(err)
	case errors.Is(err, idem.ErrInFlight):
		return river.JobSnooze(time.Second) // somebody is at it; no fault of the message's
	}
	return err
}

// NewPublisher is a client that enqueues and does not work. Without a logger it warns on standard output.
func NewPublisher(pool *pgxpool.Pool, log *slog.Logger) (*river.Client[pgx.Tx], error) {
	return river.NewClient(riverpgxv5.New(pool), &river.Config{Schema: QueueSchema, Logger: log})
}

// NewQueue is a client that works. The queue has connections of its own, whatever the workers use.
func NewQueue(pool *pgxpool.Pool, refunds *Service, payouts *Payouts, log *slog.Logger) (*river.Client[pgx.Tx], error) {
	workers := river.NewWorkers()
	river.AddWorker(workers, payouts)
	river.AddWorker(workers, &Notifications{Refunds: refunds})
	return river.NewClient(riverpgxv5.New(pool), &river.Config{
		Schema: QueueSchema, Workers: workers, Logger: log, RetryPolicy: backoff{},
		Queues:     map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 32}}, // they mostly wait
		JobTimeout: 10 * time.Second, RescueStuckJobsAfter: 30 * time.Second,
		FetchCooldown: 10 * time.Millisecond, FetchPollInterval: 50 * time.Millisecond,
	})
}

// backoff asks again soon, and then ever more rarely, up to every four seconds: below the five within
// which the queue needs no leader to bring a job back.
type backoff struct{}

func (backoff) NextRetry(job *rivertype.JobRow) time.Time {
	pause := min(50*time.Millisecond<<min(len(job.Errors), 10), 4*time.Second)
	return time.Now().Add(pause/2 + rand.N(pause/2))
}
