// Package payment is a payment service that makes refunds: the shape to copy.
//
// A request is a decision and a job, in one commit: [Service.Refund] writes the refund, enqueues
// its payout and records the answer, or nothing of it. A worker ([Payouts]) then calls the
// bank outside any transaction, under a reference that is the same at every try, and
// commits the outcome. No transaction is ever open while somebody else's system is asked.
package payment

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/riverqueue/river"
)

// CreateRefund is the operation whose repeats must not pay again. Money is remembered for ever. A
// repeat that comes while the first is under way waits for its answer.
var CreateRefund = idem.Op{Name: "refund.create", ReplayFor: idem.Forever, RememberFor: idem.Forever, Wait: 2 * time.Second}

var (
	// ErrBadRequest means that a request cannot be understood. Nothing is remembered of it.
	ErrBadRequest = errors.New(`want {"purchase": "...", "account": "...", "amount_cents": 1250}`)

	// ErrTooMuch means that less is left of the purchase than was asked back.
	ErrTooMuch = errors.New("the refund exceeds what is left of the purchase")
)

// Request is a refund as it is asked for, by HTTP or by message.
type Request struct {
	Merchant string `json:"merchant"` // whose numbers these are
	Number   string `json:"number"`   // the same at every repeat
	AskedBy  string `json:"asked_by"` // customer, returns desk: may differ from repeat to repeat
	Body     []byte `json:"body"`     // JSON of an Order; the same JSON at every repeat
}

// Order is what the body of a request says.
type Order struct {
	Purchase    string `json:"purchase"`
	Account     string `json:"account"`
	AmountCents int64  `json:"amount_cents"`
}

// Order reads the body.
func (r Request) Order() (Order, error) {
	var o Order
	if err := json.Unmarshal(r.Body, &o); err != nil || o.AmountCents <= 0 || o.Purchase == "" || o.Account == "" {
		return o, ErrBadRequest
	}
	return o, nil
}

// Receipt is the answer, the same for every repeat: the refund is accepted, and will be paid
// or refused.
type Receipt struct {
	RefundID    int64  `json:"refund_id"`
	Purchase    string `json:"purchase"`
	AmountCents int64  `json:"amount_cents"`
}

// Refunder accepts refunds. [Service] is the right one.
type Refunder interface {
	Refund(ctx context.Context, r Request) (idem.Result[Receipt], error)
}

// Service accepts refunds, over one pool.
type Service struct {
	pool *pgxpool.Pool
	keys *idem.Store[pgx.Tx]
	jobs *river.Client[pgx.Tx]
}

// NewService checks that the library's tables are there, and that they are of its version.
func NewService(ctx context.Context, pool *pgxpool.Pool) (*Service, error) {
	keys, err := idem.New(pgxdriver.New(pool), nil)
	if err != nil {
		return nil, err
	}
	if err := keys.Validate(ctx); err != nil {
		return nil, err
	}
	jobs, err := NewPublisher(pool)
	if err != nil {
		return nil, err
	}
	return &Service{pool: pool, keys: keys, jobs: jobs}, nil
}

// Refund accepts a refund once, however often and by whichever way it is asked for. The
// merchant is the scope, so merchants cannot see each other's numbers; who asked is no part of the key and no
// part of the fingerprint, so the returns desk's message meets the customer's request.
func (s *Service) Refund(ctx context.Context, r Request) (idem.Result[Receipt], error) {
	order, err := r.Order()
	if err != nil {
		return idem.Result[Receipt]{}, err
	}
	return idem.Do(ctx, s.keys, CreateRefund.Key(r.Merchant, r.Number), idem.JSON(r.Body),
		func(ctx context.Context, tx pgx.Tx) (Receipt, error) { return s.accept(ctx, tx, r, order) })
}

// accept takes the money off the purchase, writes the refund and enqueues its payout, in the
// transaction that it is given. It calls nobody else.
func (s *Service) accept(ctx context.Context, tx pgx.Tx, r Request, o Order) (Receipt, error) {
	const take = `
UPDATE shop.purchase SET refunded_cents = refunded_cents + $3
WHERE merchant = $1 AND id = $2 AND refunded_cents + $3 <= paid_cents`
	tag, err := tx.Exec(ctx, take, r.Merchant, o.Purchase, o.AmountCents)
	if err != nil {
		return Receipt{}, err
	}
	if tag.RowsAffected() == 0 {
		return Receipt{}, ErrTooMuch // not idem.Final: when the bank refuses another refund, more is left
	}
	const open = `
INSERT INTO shop.refund (merchant, number, asked_by, purchase, account, amount_cents)
VALUES ($1, $2, $3, $4, $5, $6) RETURNING id`
	receipt := Receipt{Purchase: o.Purchase, AmountCents: o.AmountCents}
	err = tx.QueryRow(ctx, open, r.Merchant, r.Number, r.AskedBy, o.Purchase, o.Account, o.AmountCents).Scan(&receipt.RefundID)
	if err != nil {
		return Receipt{}, err
	}
	_, err = s.jobs.InsertTx(ctx, tx, Payout{Merchant: r.Merchant, RefundID: receipt.RefundID}, nil)
	return receipt, err
}

// Status is where a refund is, for a merchant who wants to know.
type Status struct {
	State      State   `json:"state"`
	BankSerial *string `json:"bank_serial,omitempty"`
	Reason     *string `json:"reason,omitempty"`
}

// ErrUnknownRefund means that there is no refund of this number.
var ErrUnknownRefund = errors.New("no such refund")

// Status reads where a refund is.
func (s *Service) Status(ctx context.Context, merchant, number string) (Status, error) {
	rows, _ := s.pool.Query(ctx, `SELECT state, bank_serial, reason FROM shop.refund WHERE merchant = $1 AND number = $2`, merchant, number)
	status, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Status])
	if errors.Is(err, pgx.ErrNoRows) {
		return status, fmt.Errorf("%w: %s", ErrUnknownRefund, number)
	}
	return status, err
}
