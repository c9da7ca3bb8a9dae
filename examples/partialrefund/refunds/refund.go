// Package refunds gives back parts of what was paid for an order: the shape to copy.
//
// Customers, staff and the seller's agreements ask for refunds of one order at the same time, again and again. The sum never exceeds
// what was paid: one conditional UPDATE takes the money off the order, and a CHECK says the same to whoever writes otherwise. An
// apply id is refunded once: idem.Do. An agreement joins the refund that it is about: it locks the rows that it decides
// by. The refund service is called by a worker, outside of any transaction.
package refunds

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/sqlxdriver"
	"github.com/pgonce/pgonce/examples/internal/riversql"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/statemachine"
)

// What may be asked for. Money is remembered for ever; a repeat that comes while the first is under way waits for its answer.
var (
	Apply     = idem.Op{Name: "partialrefund.apply", ReplayFor: idem.Forever, RememberFor: idem.Forever, Wait: 2 * time.Second}
	Agreement = idem.Op{Name: "partialrefund.agree", ReplayFor: idem.Forever, RememberFor: idem.Forever, Wait: 2 * time.Second}
)

// shop is the scope: apply ids and agreements are numbered by one shop.
const shop = "shop"

var (
	// ErrBadRequest means that a request cannot be understood. Nothing is remembered of it.
	ErrBadRequest = errors.New("want an order, an id and an amount in cents between 1 and 1,000,000,000")

	// ErrUnknownOrder means that there is no such order. Nothing is remembered: it may come yet.
	ErrUnknownOrder = errors.New("no such order")

	// ErrTooMuch means that more is asked for than is left. The error is a [*TooMuchError].
	ErrTooMuch = errors.New("the refund exceeds what is left of the order")
)

// TooMuchError says what is left. It matches ErrTooMuch.
type TooMuchError struct{ AskedCents, LeftCents int64 }

func (e *TooMuchError) Error() string {
	return fmt.Sprintf("%v: asked for %d cents, %d are left", ErrTooMuch, e.AskedCents, e.LeftCents)
}

func (*TooMuchError) Unwrap() error { return ErrTooMuch }

// Kind is who asks for a refund.
type Kind string

// The kinds.
const (
	Customer  Kind = "customer"
	Staff     Kind = "staff"
	BySeller  Kind = "agree" // the seller has agreed to what nobody here had asked for
	maxAmount      = 1_000_000_000
)

// Request asks for a refund. ID is an apply id, or an agreement's id.
type Request struct {
	ID          string `json:"id"`
	Order       string `json:"order"`
	AmountCents int64  `json:"amount_cents"`
	Kind        Kind   `json:"-"` // may differ from repeat to repeat
}

func (r Request) valid() bool {
	return r.ID != "" && r.Order != "" && r.AmountCents > 0 && r.AmountCents <= maxAmount
}

// fingerprint is what makes two requests the same. Who asks is no part of it.
func (r Request) fingerprint() idem.Fingerprint {
	doc, _ := json.Marshal(r) // strings and a number; cannot fail
	return idem.Bytes(doc)
}

// Receipt is the answer, the same for every repeat.
type Receipt struct {
	ApplyID     string `json:"apply_id"`
	Order       string `json:"order"`
	AmountCents int64  `json:"amount_cents"`
	Kind        Kind   `json:"kind"`
	Joined      bool   `json:"joined"` // an agreement that was about this refund, which was there
}

// Service accepts refunds, over one pool.
type Service struct {
	db    *sqlx.DB
	keys  *idem.Store[*sqlx.Tx]
	locks *dblock.Client[*sqlx.Tx]
	flow  *Refunds
}

// NewService checks that the tables are there, and that the database refuses what the machine does not allow. Close it when
// done.
func NewService(ctx context.Context, db *sqlx.DB, log *slog.Logger) (*Service, error) {
	driver := sqlxdriver.New(db)
	keys, err1 := idem.New(driver, &idem.Config{Logger: log})
	flow, err2 := statemachine.Bind[string](Flow, driver, Table)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	if err := errors.Join(keys.Validate(ctx), flow.Verify(ctx)); err != nil {
		return nil, err
	}
	locks, err := dblock.New(ctx, driver, &dblock.Config{Logger: log})
	if err != nil {
		return nil, err
	}
	return &Service{db: db, keys: keys, locks: locks, flow: flow}, nil
}

// Close closes what is neither the pool nor the caller's.
func (s *Service) Close(ctx context.Context) error { return s.locks.Close(ctx) }

// Refund accepts a refund once, however often it is asked for. The money is off the order, and the job that pays it out is in the
// queue, when it returns.
func (s *Service) Refund(ctx context.Context, r Request) (idem.Result[Receipt], error) {
	if !r.valid() || r.Kind != Customer && r.Kind != Staff {
		return idem.Result[Receipt]{}, ErrBadRequest
	}
	return idem.Do(ctx, s.keys, Apply.Key(shop, r.ID), r.fingerprint(),
		func(ctx context.Context, tx *sqlx.Tx) (Receipt, error) { return s.accept(ctx, tx, r.ID, r) })
}

// accept takes the money off the order, writes the refund and enqueues the job, in the transaction that it is given.
func (s *Service) accept(ctx context.Context, tx *sqlx.Tx, applyID string, r Request) (Receipt, error) {
	if err := s.take(ctx, tx, r.Order, r.AmountCents); err != nil {
		return Receipt{}, err
	}
	const open = `INSERT INTO partialrefund.refund (apply_id, order_id, kind, amount_cents) VALUES ($1, $2, $3, $4)`
	if _, err := tx.ExecContext(ctx, open, applyID, r.Order, r.Kind, r.AmountCents); err != nil {
		return Receipt{}, err
	}
	receipt := Receipt{ApplyID: applyID, Order: r.Order, AmountCents: r.AmountCents, Kind: r.Kind}
	return receipt, riversql.InsertTx(ctx, tx, QueueSchema, Payout{ApplyID: applyID})
}

// take takes money off an order, if so much is left. Concurrent refunds of one order wait for each other at its row, and the
// condition is asked again when the wait is over, of the row as it is then: so no two of them can both take the last of it. If
// nothing was taken the row is locked before it is read, so that what the error says is left is left.
func (s *Service) take(ctx context.Context, tx *sqlx.Tx, order string, cents int64) error {
	const take = `
UPDATE partialrefund.shop_order SET refunded_cents = refunded_cents + $2
WHERE id = $1 AND refunded_cents + $2 <= paid_cents`
	took, err := affected(tx.ExecContext(ctx, take, order, cents))
	if err != nil || took {
		return err
	}
	if err := s.lockOrder(ctx, tx, order); err != nil {
		return err
	}
	left := int64(0)
	const read = `SELECT paid_cents - refunded_cents FROM partialrefund.shop_order WHERE id = $1`
	if err := tx.GetContext(ctx, &left, read, order); err != nil {
		return err
	}
	if left < cents {
		return &TooMuchError{AskedCents: cents, LeftCents: left} // not idem.Final: when another refund is refused, more is left
	}
	_, err = tx.ExecContext(ctx, take, order, cents) // something was given back between the two looks
	return err
}

func (s *Service) lockOrder(ctx context.Context, tx *sqlx.Tx, order string) error {
	_, err := dblock.LockRowsTx(ctx, s.locks, tx, orderRows, []string{order}, nil)
	if errors.Is(err, dblock.ErrRowMissing) {
		return fmt.Errorf("%w: %s", ErrUnknownOrder, order)
	}
	return err
}
