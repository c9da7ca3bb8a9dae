package consumer

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/idem"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
)

// Args is a message as a River job. River numbers jobs, and the producer its messages: a message that is published twice is
// two jobs.
type Args struct {
	Source  string `json:"source"`
	Message string `json:"message"`
	Body    []byte `json:"body"`
}

// Kind is the name of these jobs in the queue.
func (Args) Kind() string { return "credit" }

// Worker has the effect of a message, remembers its id and completes the job in one commit.
type Worker struct {
	river.WorkerDefaults[Args]
	Pool   *pgxpool.Pool
	Keys   *idem.Store[pgx.Tx]
	Handle Handler
}

// Work is called for each delivery. What will fail each time is cancelled, for a person to see; the rest comes again.
func (w *Worker) Work(ctx context.Context, job *river.Job[Args]) error {
	m := Message{Source: job.Args.Source, ID: job.Args.Message, Attempt: job.Attempt, Body: job.Args.Body}
	err := pgx.BeginFunc(ctx, w.Pool, func(tx pgx.Tx) error {
		seen, err := w.Keys.SeenTx(ctx, tx, m.key())
		if err == nil && !seen {
			err = w.Handle(ctx, tx, m)
		}
		if err == nil {
			_, err = river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job)
		}
		return err
	})
	switch {
	case errors.Is(err, idem.ErrInFlight):
		return river.JobSnooze(time.Second) // another delivery is at it; no fault of the message's
	case err != nil && Permanent(err):
		return river.JobCancel(err)
	}
	return err
}
