package urges

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
const QueueSchema = "urging_queue"

const neverGiveUp = 32767

// NewQueue is a client that works. It is River's on pgx, with a pool of its own, whatever the service uses.
func NewQueue(pool *pgxpool.Pool, pushes *Pushes, log *slog.Logger) (*river.Client[pgx.Tx], error) {
	workers := river.NewWorkers()
	river.AddWorker(workers, pushes)
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
