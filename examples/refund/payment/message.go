package payment

import (
	"context"
	"errors"

	"github.com/pgonce/pgonce/idem"
	"github.com/riverqueue/river"
)

// Message asks for a refund by way of the queue, which delivers it at least once.
type Message struct{ Request }

// Kind is the name of these jobs in the queue.
func (Message) Kind() string { return "refund.requested" }

// InsertOpts puts them into a queue of their own.
func (Message) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueMessages, MaxAttempts: neverGiveUp}
}

// Outcome is what became of a message; the queue keeps it with the job.
type Outcome struct {
	Receipt  Receipt `json:"receipt"`
	Replayed bool    `json:"replayed"`
	Refused  string  `json:"refused,omitempty"`
}

// Messages consumes them. The key is the same as that of the HTTP request, so it makes no difference how
// often a refund is asked for in which way.
type Messages struct {
	river.WorkerDefaults[Message]
	Refunds Refunder
}

// Work acknowledges a message when its refund is accepted, now or before. What can never be accepted is put aside
// with the reason, for a person to see; whatever else goes wrong, the message comes again.
func (m *Messages) Work(ctx context.Context, job *river.Job[Message]) error {
	res, err := m.Refunds.Refund(ctx, job.Args.Request)
	switch {
	case err == nil:
		return river.RecordOutput(ctx, Outcome{Receipt: res.Value, Replayed: res.Replayed})
	case Permanent(err):
		return errors.Join(river.RecordOutput(ctx, Outcome{Refused: err.Error()}), river.JobCancel(err))
	case errors.Is(err, idem.ErrInFlight):
		return river.JobSnooze(firstRetry) // somebody is at it; no fault of the message's
	}
	return err
}
