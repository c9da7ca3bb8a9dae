package remit

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
const QueueSchema = "remit_queue"

const (
	// A job is delivered again once it has run for rescueAfter, because its worker is gone. Should the worker live
	// after all, the key keeps the second delivery out.
	rescueAfter = 2 * time.Minute

	// Only an answer ends a message, not a number of attempts.
	neverGiveUp = 32767
)

// Message asks for one sending of a remittance. The queue delivers it at least once.
type Message struct {
	Remittance  string `json:"remittance"`
	Send        int    `json:"send"`
	AmountCents int64  `json:"amount_cents"`
}

// Kind is the name of these jobs in the queue.
func (Message) Kind() string { return "remittance.send" }

// InsertOpts says how patient the queue is with them.
func (Message) InsertOpts() river.InsertOpts { return river.InsertOpts{MaxAttempts: neverGiveUp} }

// Answer is what became of a message; the queue keeps it with the job.
type Answer struct {
	Outcome  Outcome `json:"outcome"`
	Replayed bool    `json:"replayed"`
	Refused  string  `json:"refused,omitempty"`
}

// NewPublisher is a client that enqueues and does not work.
func NewPublisher(pool *pgxpool.Pool) (*river.Client[pgx.Tx], error) {
	return river.NewClient(riverpgxv5.New(pool), &river.Config{Schema: QueueSchema})
}

// NewQueue is a client that works.
func NewQueue(pool *pgxpool.Pool, s *Service, log *slog.Logger) (*river.Client[pgx.Tx], error) {
	workers := river.NewWorkers()
	river.AddWorker(workers, &messages{service: s})
	return river.NewClient(riverpgxv5.New(pool), &river.Config{
		Schema: QueueSchema, Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 32}}, // they mostly wait for the bank
		Workers: workers, Logger: log, JobTimeout: rescueAfter / 2, RescueStuckJobsAfter: rescueAfter, RetryPolicy: backoff{},
		FetchCooldown: 10 * time.Millisecond, FetchPollInterval: 100 * time.Millisecond,
	})
}

// messages consumes them.
type messages struct {
	river.WorkerDefaults[Message]
	service *Service
}

// Work acknowledges a message when its sending is decided, now or before. What can never be is put aside with the reason, for a person to see.
// In any other case the message comes again: it is never answered as done because somebody else is at it.
func (w *messages) Work(ctx context.Context, job *river.Job[Message]) error {
	res, err := w.service.Remit(ctx, job.Args)
	switch {
	case err == nil:
		return river.RecordOutput(ctx, Answer{Outcome: res.Value, Replayed: res.Replayed})
	case errors.Is(err, ErrBadMessage), errors.Is(err, idem.ErrInvalidKey), errors.Is(err, idem.ErrRefused):
		return errors.Join(river.RecordOutput(ctx, Answer{Refused: err.Error()}), river.JobCancel(err))
	case errors.Is(err, idem.ErrInFlight), errors.Is(err, idem.ErrUnknownOutcome), errors.Is(err, idem.ErrDead):
		return river.JobSnooze(w.service.cfg.ComeBack) // under way, at the bank, or before a person: no fault of the message's
	}
	return err
}

// backoff asks again soon, and then ever more rarely, up to every four seconds: below the five within
// which the queue needs no leader to bring a job back.
type backoff struct{}

func (backoff) NextRetry(job *rivertype.JobRow) time.Time {
	pause := min(50*time.Millisecond<<min(len(job.Errors), 10), 4*time.Second)
	return time.Now().Add(pause/2 + rand.N(pause/2))
}
