package consumer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/idem"
)

// Tables are what a [Poller] and [AddCredit] need.
const Tables = `
CREATE TABLE inbox (
    delivery   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source     text NOT NULL,
    message    text NOT NULL,
    body       bytea NOT NULL,
    attempts   int NOT NULL DEFAULT 0,
    visible_at timestamptz NOT NULL DEFAULT now(),
    dead       text
);
CREATE INDEX inbox_visible ON inbox (visible_at) WHERE dead IS NULL;
CREATE TABLE credit (account text NOT NULL, cents bigint NOT NULL);`

// Poller takes messages from the table inbox. Any number of pollers may share it. A message that is being worked on is
// invisible to the others for a while, not locked: the transaction that has its effect is another one, as it
// would be with a queue in another database.
type Poller struct {
	Pool   *pgxpool.Pool
	Handle func(ctx context.Context, m Message) error // made by Once

	// Invisible is how long a message is not delivered again while it is being worked on. If that was too short, it is
	// delivered twice, and has its effect once.
	Invisible time.Duration

	// MaxAttempts is how often a message is delivered before it is put aside.
	MaxAttempts int
}

const (
	// A claim is committed before the work begins, so a message that kills its worker is counted too. SKIP LOCKED: pollers
	// do not queue behind each other's claim.
	sqlClaim = `
UPDATE inbox SET attempts = attempts + 1, visible_at = statement_timestamp() + $1::interval
WHERE delivery = (
    SELECT delivery FROM inbox WHERE dead IS NULL AND visible_at <= statement_timestamp()
    ORDER BY visible_at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING delivery, source, message, attempts, body`

	// attempts says whose claim it is: who was too slow takes nothing away from the one that came after.
	sqlAcknowledge = `DELETE FROM inbox WHERE delivery = $1 AND attempts = $2`
	sqlPutAside    = `UPDATE inbox SET dead = $3 WHERE delivery = $1 AND attempts = $2`
	sqlAgain       = `UPDATE inbox SET visible_at = statement_timestamp() + $3::interval WHERE delivery = $1 AND attempts = $2`
	sqlNoFault     = `UPDATE inbox SET visible_at = statement_timestamp() + $3::interval, attempts = attempts - 1 WHERE delivery = $1 AND attempts = $2`
)

// Next works on one message. worked is false when there is none. An error of the message is no error of Next: the message
// comes again, or is put aside.
func (p *Poller) Next(ctx context.Context) (worked bool, err error) {
	delivery, m, err := p.claim(ctx)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("consumer: claim: %w", err)
	}
	var failed error
	if m.Attempt > p.MaxAttempts {
		failed = errors.New("its worker died each time")
	} else {
		failed = p.Handle(ctx, m)
	}
	if err := p.settle(ctx, delivery, m, failed); err != nil {
		return true, fmt.Errorf("consumer: settle delivery %d: %w", delivery, err) // it comes again, and does no harm
	}
	return true, nil
}

func (p *Poller) claim(ctx context.Context) (delivery int64, m Message, err error) {
	err = p.Pool.QueryRow(ctx, sqlClaim, p.Invisible).Scan(&delivery, &m.Source, &m.ID, &m.Attempt, &m.Body)
	return delivery, m, err
}

// settle tells the queue what became of a delivery. The effect is committed by now, or never will be by this delivery.
func (p *Poller) settle(ctx context.Context, delivery int64, m Message, failed error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second) // also when we are told to stop
	defer cancel()
	sql, args := sqlAcknowledge, []any{delivery, m.Attempt}
	switch {
	case failed == nil:
	case errors.Is(failed, idem.ErrInFlight):
		sql, args = sqlNoFault, append(args, time.Second) // somebody is at it
	case Permanent(failed), m.Attempt >= p.MaxAttempts:
		sql, args = sqlPutAside, append(args, failed.Error())
	default:
		sql, args = sqlAgain, append(args, time.Second<<min(m.Attempt, 10))
	}
	_, err := p.Pool.Exec(ctx, sql, args...)
	return err
}
