// Package remit pays money out at a bank that pays as often as it is called: the shape to copy.
//
// A message asks for a sending of a remittance. [Service.Remit] executes it as a key of idem.RunSteps, so however often the
// message comes, one worker is at it at a time and the first answer is the only one. The call to the bank is a step
// that is never made again by guess: what became of it is found out by an enquiry, by whoever goes on with the key. The
// flag moves along the edges of [Flow], together with the bank's serial number. No transaction is open while the bank is asked.
package remit

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/statemachine"
	"github.com/riverqueue/river"
)

// scope is whose remittances these are.
const scope = "remit"

// Config says how patient a service is. The zero value is that of production.
type Config struct {
	Patience time.Duration // for the bank's answers; 30 seconds
	Lease    time.Duration // how long the keys of a killed process wait for another one; 30 seconds
	ComeBack time.Duration // after which a message comes back whose sending is under way; 5 seconds
	Attempts int           // of the completer, after which it gives up; 20
	Retry    time.Duration // between the completer's attempts at first; 1 second
	Returns  time.Duration // between two looks for what the bank has returned; 1 minute
	Overdue  time.Duration // after which a person has to look at what is undecided; 1 hour
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, otherwise time.Duration) {
		if *d == 0 {
			*d = otherwise
		}
	}
	def(&c.Patience, 30*time.Second)
	def(&c.Lease, 30*time.Second)
	def(&c.ComeBack, 5*time.Second)
	def(&c.Retry, time.Second)
	def(&c.Returns, time.Minute)
	def(&c.Overdue, time.Hour)
	if c.Attempts == 0 {
		c.Attempts = 20
	}
	return c
}

// ErrBadMessage means that a message asks for what is not there: no such remittance, another amount.
var ErrBadMessage = errors.New("bad message")

// Outcome is the answer to a message, the same for each delivery of it.
type Outcome struct {
	Flag    Flag   `json:"flag"` // where this sending has ended
	Serial  string `json:"serial,omitempty"`
	Reason  string `json:"reason,omitempty"`
	NotSent bool   `json:"not_sent,omitempty"` // it was cancelled or blocked before
}

// Service sends remittances, over one pool.
type Service struct {
	cfg  Config
	op   idem.Op
	pool *pgxpool.Pool
	keys *idem.Store[pgx.Tx]
	flow *Remittances
	bank *Bank
	jobs *river.Client[pgx.Tx]
}

// NewService checks that the tables are there, and that the database holds everybody to the machine.
func NewService(ctx context.Context, pool *pgxpool.Pool, bankURL string, cfg Config) (*Service, error) {
	cfg = cfg.withDefaults()
	s := &Service{cfg: cfg, pool: pool, bank: NewBank(bankURL, cfg.Patience)}
	s.op = idem.Op{
		Name: "remittance.send", ReplayFor: idem.Forever, RememberFor: idem.Forever, Attempts: cfg.Attempts, RetryAfter: cfg.Retry,
	}
	db := pgxdriver.New(pool)
	var err error
	if s.keys, err = idem.New(db, &idem.Config{Lease: cfg.Lease}); err != nil {
		return nil, err
	}
	if s.flow, err = statemachine.Bind[string](Flow, db, Table); err != nil {
		return nil, err
	}
	if s.jobs, err = NewPublisher(pool); err != nil {
		return nil, err
	}
	if err := idem.Handle(s.keys, s.op, s.send); err != nil {
		return nil, err
	}
	return s, errors.Join(s.keys.Validate(ctx), s.flow.Verify(ctx))
}

// Remit executes a message once, however often it comes.
//
// ErrBadMessage is for good. idem.ErrInFlight and idem.ErrUnknownOutcome mean that the sending is under way, by others or at the bank: the message
// is to come again for the answer. If that does not come, it takes a person: [Service.Undecided].
func (s *Service) Remit(ctx context.Context, m Message) (idem.Result[Outcome], error) {
	r, err := s.read(ctx, m.Remittance)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return idem.Result[Outcome]{}, fmt.Errorf("%w: there is no remittance %s", ErrBadMessage, m.Remittance)
	case err != nil:
		return idem.Result[Outcome]{}, err
	case r.AmountCents != m.AmountCents || m.Send < 1 || m.Send > r.Send: // the amount never changes, and the number only rises
		return idem.Result[Outcome]{}, fmt.Errorf("%w: it is about %d cents in sending %d of %s, which has %d and is at %d",
			ErrBadMessage, m.AmountCents, m.Send, m.Remittance, r.AmountCents, r.Send)
	}
	return idem.RunSteps(ctx, s.keys, s.key(m.Remittance, m.Send), idem.NoFingerprint(), m, s.send) // the key is all that there is to the message
}

// key is one sending of one remittance. The bank's references are derived from it.
func (s *Service) key(remittance string, send int) idem.Key {
	return s.op.Key(scope, fmt.Sprintf("%s/%d", remittance, send))
}

// row is a remittance as the database has it.
type row struct {
	Flag        Flag
	Send        int
	Account     string
	AmountCents int64
	Reference   *string
}

func (s *Service) read(ctx context.Context, id string) (row, error) {
	rows, _ := s.pool.Query(ctx, `SELECT flag, send, account, amount_cents, reference FROM remit.remittance WHERE id = $1`, id)
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[row])
}

// Status is where a remittance is, and how it got there.
type Status struct {
	Flag        Flag     `json:"flag"`
	Name        string   `json:"name"`
	Send        int      `json:"send"`
	AmountCents int64    `json:"amount_cents"`
	Serial      *string  `json:"serial,omitempty"`
	Reason      *string  `json:"reason,omitempty"`
	History     []string `json:"history"`
}

// Status reads it.
func (s *Service) Status(ctx context.Context, id string) (Status, error) {
	var st Status
	err := s.pool.QueryRow(ctx, `SELECT flag, send, amount_cents, serial, reason FROM remit.remittance WHERE id = $1`, id).
		Scan(&st.Flag, &st.Send, &st.AmountCents, &st.Serial, &st.Reason)
	if err != nil {
		return st, fmt.Errorf("remittance %s: %w", id, err)
	}
	st.Name = st.Flag.String()
	for t, err := range s.flow.History(ctx, id) {
		if err != nil {
			return st, err
		}
		st.History = append(st.History, fmt.Sprintf("%s  %s: %s", t.At.Format(time.RFC3339Nano), t.Event, t.To))
	}
	return st, nil
}

// Breaks names what has been moved past the machine.
func (s *Service) Breaks(ctx context.Context) iter.Seq2[statemachine.Break, error] {
	return s.flow.VerifyHistory(ctx)
}
