// Package wallet takes the callbacks of a payment platform and puts the money into wallets: the shape to copy.
//
// A callback says that an order is paid. It is not believed: the platform is asked, which may take long, and it is
// asked by one at a time for an order, since its quota is small. Then the state and a message for the consumer are one commit, and
// the consumer's work and the message's end are another.
//
// The lock keeps two from asking at the same time. That the wallet gets the money once does not hang on it: that is what
// the two machines are for.
package wallet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/statemachine"
	"github.com/riverqueue/river"
)

var (
	// ErrUnknownOrder means that there is no such order.
	ErrUnknownOrder = errors.New("no such order")

	// ErrNotPaid means that the platform knows nothing of the payment, or of another amount or
	// transaction than the callback says.
	ErrNotPaid = errors.New("the platform does not confirm this")

	// ErrBadCallback means that a callback cannot be understood.
	ErrBadCallback = errors.New(`want {"number": "...", "transaction": "...", "amount_cents": 1250}`)
)

// Callback is what the platform says, as often as it likes.
type Callback struct {
	Number      string `json:"number"` // of the order
	Transaction string `json:"transaction"`
	AmountCents int64  `json:"amount_cents"`
}

// Config tunes a [Service].
type Config struct {
	// MaxWait is how long a callback waits for another one of the same order. It says nothing about how long that one may
	// have the lock: Expect is what it should take, and a holder that takes longer is reported and keeps it.
	MaxWait, Expect time.Duration

	Observe func(dblock.Event) // what becomes of locks, overruns among it; defaults to nothing
	Logger  *slog.Logger       // of locks and queue
}

// Service takes callbacks, over one pool.
type Service struct {
	cfg          Config
	pool         *pgxpool.Pool
	locks        *dblock.Client[pgx.Tx]
	consumptions *Consumptions
	jobs         *river.Client[pgx.Tx]
	platform     *Platform
}

// NewService checks that the tables are there, that the database refuses what the machines do not allow, and that locks hold
// here. Close it when done.
func NewService(ctx context.Context, pool *pgxpool.Pool, platform *Platform, cfg Config) (*Service, error) {
	db := pgxdriver.New(pool)
	consumptions, err := statemachine.Bind[string](ConsumptionFlow, db, ConsumptionTable)
	if err != nil {
		return nil, err
	}
	if err := consumptions.Verify(ctx); err != nil {
		return nil, err
	}
	jobs, err := NewPublisher(pool, cfg.Logger)
	if err != nil {
		return nil, err
	}
	locks, err := dblock.New(ctx, db, &dblock.Config{Observe: cfg.Observe, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	return &Service{cfg, pool, locks, consumptions, jobs, platform}, nil
}

// Close gives the locks back.
func (s *Service) Close(ctx context.Context) error { return s.locks.Close(ctx) }

// Callback takes a callback, however often it comes. Nil means that the money is or will be in the wallet, once.
//
// Callbacks of one order take turns, those of different orders do not wait for each other. Who has waited for MaxWait gives up
// ([dblock.ErrNotAcquired]) and leaves the holder alone: the platform will call again. Only the holder can release the lock, since
// only he has it in his hands; nothing is released by name.
func (s *Service) Callback(ctx context.Context, c Callback) error {
	if c.Number == "" || c.Transaction == "" || c.AmountCents <= 0 {
		return ErrBadCallback
	}
	wait, enough := context.WithTimeout(ctx, s.cfg.MaxWait)
	defer enough()
	lock, err := s.locks.Acquire(wait, dblock.Key{Space: "wechatpay.order", ID: c.Number}, &dblock.LockConfig{Expect: s.cfg.Expect})
	if err != nil {
		return err
	}
	defer func() { _ = lock.Release(ctx) }()           // if it was lost before, FenceTx has said so
	work, cancel := context.WithCancel(lock.Context()) // ends when the lock is lost,
	defer cancel()
	defer context.AfterFunc(ctx, cancel)() // and when the caller has gone
	return s.confirm(work, lock, c)
}

// confirm asks the platform, outside of any transaction, and commits what it said.
func (s *Service) confirm(ctx context.Context, lock *dblock.Lock[pgx.Tx], c Callback) error {
	state, err := s.consumptions.State(ctx, c.Number)
	if errors.Is(err, statemachine.ErrNotFound) {
		return fmt.Errorf("%w: %s", ErrUnknownOrder, c.Number)
	}
	if err != nil {
		return err
	}
	if state == NotConsumed { // else it was asked before
		if err := s.platform.Confirm(ctx, c); err != nil {
			return err
		}
	}
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := lock.FenceTx(ctx, tx); err != nil {
			return err
		}
		return s.enqueue(ctx, tx, c)
	})
}

// enqueue moves the order and puts its message into the queue, in one commit.
func (s *Service) enqueue(ctx context.Context, tx pgx.Tx, c Callback) error {
	res, err := s.consumptions.FireTx(ctx, tx, c.Number, Enqueue, statemachine.Set("transaction", c.Transaction),
		statemachine.Match(`amount_cents = $1 AND (transaction IS NULL OR transaction = $2)`, c.AmountCents, c.Transaction))
	if errors.Is(err, statemachine.ErrConflict) {
		return fmt.Errorf("%w: %w", ErrNotPaid, err)
	}
	if err != nil || !res.Applied() {
		return err // nil for a repeat
	}
	_, err = s.jobs.InsertTx(ctx, tx, Message{Number: c.Number}, nil)
	return err
}

// Order is where an order is.
type Order struct {
	Number      string      `json:"number"`
	AmountCents int64       `json:"amount_cents"`
	Payment     Payment     `json:"payment"`
	Consumption Consumption `json:"consumption"`
	Transaction *string     `json:"transaction"`
}

// Order reads where an order is.
func (s *Service) Order(ctx context.Context, number string) (Order, error) {
	rows, _ := s.pool.Query(ctx, `SELECT number, amount_cents, payment, consumption, transaction FROM wechatpay.wallet_order WHERE number = $1`, number)
	o, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Order])
	if errors.Is(err, pgx.ErrNoRows) {
		return o, fmt.Errorf("%w: %s", ErrUnknownOrder, number)
	}
	return o, err
}
