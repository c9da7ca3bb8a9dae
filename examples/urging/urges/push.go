package urges

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/statemachine"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
)

// Push is the job that a new urge enqueues: its assignee is to hear of it.
type Push struct {
	Urge   int64 `json:"urge"`
	Ticket int64 `json:"ticket"`
}

// Kind is the name of these jobs in the queue.
func (Push) Kind() string { return "urge.push" }

// InsertOpts makes the queue never give up: only the push service's word ends a push.
func (Push) InsertOpts() river.InsertOpts { return river.InsertOpts{MaxAttempts: neverGiveUp} }

// Pushes makes them.
type Pushes struct {
	river.WorkerDefaults[Push]
	pool   *pgxpool.Pool
	flow   *Urges
	url    string
	client *http.Client
}

// NewPushes makes pushes by the service at url, waiting for each answer for so long. It checks that the table is there, and that
// the database refuses what the machine does not allow.
func NewPushes(ctx context.Context, pool *pgxpool.Pool, url string, patience time.Duration) (*Pushes, error) {
	flow, err := statemachine.Bind[int64](Flow, pgxdriver.New(pool), Table)
	if err != nil {
		return nil, err
	}
	if err := flow.Verify(ctx); err != nil {
		return nil, err
	}
	client := &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	return &Pushes{pool: pool, flow: flow, url: url, client: client}, nil
}

// Work reads, calls the push service, and commits what it said: three steps, and no transaction spans two of them. It may be
// killed between any two, or run twice at the same time: the service pushes one reference once, and the state moves once.
func (p *Pushes) Work(ctx context.Context, job *river.Job[Push]) error {
	var (
		state    State
		assignee string
	)
	const read = `SELECT u.state, t.assignee FROM urging.urge u JOIN urging.ticket t ON t.id = u.ticket WHERE u.id = $1`
	if err := p.pool.QueryRow(ctx, read, job.Args.Urge).Scan(&state, &assignee); err != nil {
		return fmt.Errorf("urge %d: %w", job.Args.Urge, err)
	}
	if state != Raised {
		return nil // the job was delivered again
	}
	receipt, refusal, err := p.push(ctx, job.Args, assignee)
	if err != nil {
		return err // pushed or not, nobody knows; the next try asks under the same reference
	}
	event, set := Deliver, statemachine.Set("receipt", receipt)
	if refusal != "" {
		event, set = Refuse, statemachine.Set("reason", refusal)
	}
	err = pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
		if _, err := p.flow.FireTx(ctx, tx, job.Args.Urge, event, set); err != nil {
			return err
		}
		_, err = river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job)
		return err
	})
	if errors.Is(err, statemachine.ErrConflict) {
		return river.JobCancel(err) // the service has said two things about one reference: a person must look
	}
	return err
}

// push asks the service to push. An error means that nobody knows whether it did.
func (p *Pushes) push(ctx context.Context, job Push, assignee string) (receipt, refusal string, err error) {
	reference := "urge-" + strconv.FormatInt(job.Urge, 10)
	body, err := json.Marshal(map[string]string{
		"reference": reference, "to": assignee, "text": "ticket " + strconv.FormatInt(job.Ticket, 10) + " is urged",
	})
	if err != nil {
		return "", "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url+"/pushes", bytes.NewReader(body))
	if err != nil {
		return "", "", err
	}
	res, err := p.client.Do(req)
	if err != nil {
		return "", "", fmt.Errorf("push: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	var told struct{ Reference, Receipt, Reason string }
	data, err := io.ReadAll(io.LimitReader(res.Body, 1<<16))
	if err != nil {
		return "", "", fmt.Errorf("push: %w", err)
	}
	// The answer counts only if it is about this push: a service that answers twice can have its second answer read as that to the
	// next request on the connection.
	if json.Unmarshal(data, &told) != nil || told.Reference != reference {
		return "", "", fmt.Errorf("push: status %d: %.200q", res.StatusCode, data)
	}
	switch {
	case res.StatusCode == http.StatusOK && told.Receipt != "":
		return told.Receipt, "", nil
	case res.StatusCode == http.StatusUnprocessableEntity && told.Reason != "":
		return "", told.Reason, nil
	}
	return "", "", fmt.Errorf("push: status %d: %.200q", res.StatusCode, data)
}
