package callback

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"
)

// QueueSchema holds the queue's tables.
const QueueSchema = "orders_queue"

const (
	// A job is delivered again once it has run for rescueAfter, because its worker is gone. Should the worker live
	// after all, two call under one reference, which makes no difference.
	rescueAfter = 30 * time.Second

	// Only success ends a job, not a number of attempts.
	neverGiveUp = 32767
)

// Notify is the job that tells the customer by mail.
type Notify struct {
	Order int64 `json:"order"`
}

// Push is the job that tells the customer's phone.
type Push struct {
	Order int64 `json:"order"`
}

// Schedule is the job that has the order delivered.
type Schedule struct {
	Order int64 `json:"order"`
}

// Kind is the name of these jobs in the queue.
func (Notify) Kind() string { return "notify" }

// Kind is the name of these jobs in the queue.
func (Push) Kind() string { return "push" }

// Kind is the name of these jobs in the queue.
func (Schedule) Kind() string { return "schedule" }

// NewPublisher is a client that enqueues and does not work.
func NewPublisher(pool *pgxpool.Pool) (*river.Client[pgx.Tx], error) {
	return river.NewClient(riverpgxv5.New(pool), &river.Config{Schema: QueueSchema, MaxAttempts: neverGiveUp})
}

// NewQueue is a client that works.
func NewQueue(pool *pgxpool.Pool, to *Others, log *slog.Logger) (*river.Client[pgx.Tx], error) {
	workers := river.NewWorkers()
	river.AddWorker(workers, &effect[Notify]{to: to, order: func(n Notify) int64 { return n.Order }})
	river.AddWorker(workers, &effect[Push]{to: to, order: func(p Push) int64 { return p.Order }})
	river.AddWorker(workers, &effect[Schedule]{to: to, order: func(s Schedule) int64 { return s.Order }})
	return river.NewClient(riverpgxv5.New(pool), &river.Config{
		Schema: QueueSchema, Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 32}}, // they mostly wait
		Workers: workers, Logger: log, MaxAttempts: neverGiveUp, JobTimeout: 10 * time.Second, RescueStuckJobsAfter: rescueAfter,
		RetryPolicy: backoff{}, FetchCooldown: 10 * time.Millisecond, FetchPollInterval: 50 * time.Millisecond,
	})
}

// effect has a job's effect: one call, outside of any transaction, under a reference that is the same at every delivery.
type effect[T river.JobArgs] struct {
	river.WorkerDefaults[T]
	to    *Others
	order func(T) int64
}

// Work does it. Whatever goes wrong, the job comes again.
func (e *effect[T]) Work(ctx context.Context, job *river.Job[T]) error {
	order := e.order(job.Args)
	return e.to.Tell(ctx, job.Kind, Told{Reference: fmt.Sprintf("%s-%d", job.Kind, order), Order: order})
}

// Told is what another system is told.
type Told struct {
	Reference string `json:"reference"` // the same reference is the same thing
	Order     int64  `json:"order"`
}

// Others is a client of the mailer, the push service and the dispatcher.
type Others struct {
	url    string
	client *http.Client
}

// NewOthers makes a client of those at url that waits for each answer for so long.
func NewOthers(url string, patience time.Duration) *Others {
	return &Others{url: url, client: &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 32}}}
}

// Tell tells one of them. An error means that nobody knows whether it was heard: tell it again under the same reference.
func (o *Others) Tell(ctx context.Context, what string, t Told) error {
	body, err := json.Marshal(t)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.url+"/"+what, bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := o.client.Do(req)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer func() { _ = res.Body.Close() }()
	var heard Told
	switch data, err := io.ReadAll(io.LimitReader(res.Body, 1<<16)); {
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	case res.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: status %d: %.200s", what, res.StatusCode, data)
	case json.Unmarshal(data, &heard) != nil || heard != t: // a second answer to the request before
		return fmt.Errorf("%s: told %+v, answered %.200q", what, t, data)
	}
	return nil
}

// backoff asks again soon, and then ever more rarely, up to every four seconds: below the five within
// which the queue needs no leader to bring a job back.
type backoff struct{}

func (backoff) NextRetry(job *rivertype.JobRow) time.Time {
	pause := min(50*time.Millisecond<<min(len(job.Errors), 10), 4*time.Second)
	return time.Now().Add(pause/2 + rand.N(pause/2))
}
