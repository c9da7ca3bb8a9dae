// Package callback takes a payment provider's callbacks, which come twice: the shape to copy.
//
// There is no lock. One statement moves the order from unpaid to paid, and whoever's statement that was enqueues what follows, in
// the same transaction. Everybody else is told the same by the row: paid, by this very payment.
package callback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/statemachine"
	"github.com/riverqueue/river"
)

// Callback is what the provider says. Authentication, its signature, is left out.
type Callback struct {
	Order       int64  `json:"order"`
	AmountCents int64  `json:"amount_cents"`
	Transaction string `json:"transaction"` // the provider's number of the payment
}

// Service takes callbacks, over one pool.
type Service struct {
	pool   *pgxpool.Pool
	orders *Orders
	jobs   *river.Client[pgx.Tx]
	log    *slog.Logger
}

// NewService checks that the tables are there, and that the database holds everybody to the machine.
func NewService(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) (*Service, error) {
	orders, err := statemachine.Bind[int64](Flow, pgxdriver.New(pool), Table)
	if err != nil {
		return nil, err
	}
	jobs, err := NewPublisher(pool)
	if err != nil {
		return nil, err
	}
	return &Service{pool: pool, orders: orders, jobs: jobs, log: log}, orders.Verify(ctx)
}

// Paid takes a callback, once for each order however often it comes. It is true for the one that has moved the order.
//
// statemachine.ErrConflict: another amount, another payment of the same order, or an order in another state. [ErrOtherOrder].
// statemachine.ErrNotFound: no such order. These are for good. After any other error the provider is to call again.
func (s *Service) Paid(ctx context.Context, c Callback) (moved bool, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		res, err := s.orders.FireTx(ctx, tx, c.Order, Pay,
			statemachine.Match("amount_cents = $1 AND coalesce(transaction, $2) = $2", c.AmountCents, c.Transaction),
			statemachine.Set("transaction", c.Transaction), statemachine.SetExpr("paid_at", "statement_timestamp()"))
		if err != nil || !res.Applied() {
			return err
		}
		moved = true
		_, err = s.jobs.InsertManyTx(ctx, tx, []river.InsertManyParams{
			{Args: Notify{c.Order}}, {Args: Push{c.Order}}, {Args: Schedule{c.Order}},
		})
		return err
	})
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == "23505" {
		err = fmt.Errorf("%w: %s", ErrOtherOrder, c.Transaction)
	}
	return moved && err == nil, err
}

// ErrOtherOrder means that a payment has paid for another order.
var ErrOtherOrder = errors.New("the payment belongs to another order")

// ServeHTTP answers POST /callbacks: 200 means that the provider need not call again.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) { Answer(w, r, s.Paid, s.log) }

// Answer reads a callback, passes it on and answers it.
func Answer(w http.ResponseWriter, r *http.Request, take func(context.Context, Callback) (bool, error), log *slog.Logger) {
	var c Callback
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<16))
	if err == nil {
		err = json.Unmarshal(body, &c)
	}
	if err != nil || c.Order == 0 || c.AmountCents <= 0 || c.Transaction == "" {
		answer(w, http.StatusBadRequest, `want {"order": 1, "amount_cents": 1250, "transaction": "..."}`)
		return
	}
	_, err = take(r.Context(), c)
	var conflict *statemachine.ConflictError
	switch {
	case err == nil:
		answer(w, http.StatusOK, "success")
	case errors.As(err, &conflict) && conflict.Reason == statemachine.ReasonMatch, errors.Is(err, ErrOtherOrder):
		answer(w, http.StatusUnprocessableEntity, "this is not the payment that the order waits for, or was paid by")
	case errors.As(err, &conflict):
		answer(w, http.StatusConflict, "the order is "+conflict.State)
	case errors.Is(err, statemachine.ErrNotFound):
		answer(w, http.StatusNotFound, "no such order")
	default:
		log.Warn("callback not taken", "err", err)
		answer(w, http.StatusServiceUnavailable, "not available, call again")
	}
}

func answer(w http.ResponseWriter, status int, result string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"result": result}) // the provider may be gone; it will call again
}

// CloseAll gives orders up that nobody has paid.
func CloseAll(ctx context.Context, pool *pgxpool.Pool, ids []int64) error {
	orders, err := statemachine.Bind[int64](Flow, pgxdriver.New(pool), Table)
	if err != nil {
		return err
	}
	rows, err := orders.FireMany(ctx, ids, Close, statemachine.Actor("clock"))
	for _, r := range rows {
		err = errors.Join(err, r.Err)
	}
	return err
}
