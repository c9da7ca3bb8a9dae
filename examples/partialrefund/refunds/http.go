package refunds

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/pgonce/pgonce/idem"
)

// Refunder accepts refunds and agreements. [Service] is the right one.
type Refunder interface {
	Refund(ctx context.Context, r Request) (idem.Result[Receipt], error)
	Agree(ctx context.Context, r Request) (idem.Result[Receipt], error)
}

// Routes answers POST /orders/{order}/refunds and POST /agreements.
func Routes(s Refunder, log *slog.Logger) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders/{order}/refunds", func(w http.ResponseWriter, r *http.Request) {
		var ask Request
		if json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&ask) != nil {
			problem(w, http.StatusBadRequest, ErrBadRequest)
			return
		}
		ask.ID, ask.Order, ask.Kind = r.Header.Get("Idempotency-Key"), r.PathValue("order"), Kind(r.Header.Get("X-Asked-By"))
		res, err := s.Refund(r.Context(), ask)
		answer(w, log, res, err)
	})
	mux.HandleFunc("POST /agreements", func(w http.ResponseWriter, r *http.Request) {
		var ask Request
		if json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&ask) != nil {
			problem(w, http.StatusBadRequest, ErrBadRequest)
			return
		}
		res, err := s.Agree(r.Context(), ask)
		answer(w, log, res, err)
	})
	return mux
}

func answer(w http.ResponseWriter, log *slog.Logger, res idem.Result[Receipt], err error) {
	if err != nil {
		refuse(w, log, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if res.Replayed {
		w.Header().Set("Idempotent-Replayed", "true")
	}
	w.WriteHeader(http.StatusAccepted)
	_ = json.NewEncoder(w).Encode(res.Value)
}

// Permanent says that asking again will not help: the request is at fault. (More may be left of an order tomorrow; that is for a person
// to try.)
func Permanent(err error) bool {
	for _, permanent := range []error{ErrBadRequest, ErrUnknownOrder, ErrTooMuch, idem.ErrInvalidKey, idem.ErrMismatch, idem.ErrExpired} {
		if errors.Is(err, permanent) {
			return true
		}
	}
	return false
}

func refuse(w http.ResponseWriter, log *slog.Logger, err error) {
	switch {
	case errors.Is(err, ErrBadRequest), errors.Is(err, idem.ErrInvalidKey):
		problem(w, http.StatusBadRequest, err)
	case errors.Is(err, ErrUnknownOrder):
		problem(w, http.StatusNotFound, err)
	case Permanent(err):
		problem(w, http.StatusUnprocessableEntity, err)
	default:
		if !errors.Is(err, idem.ErrInFlight) {
			log.Warn("refund not accepted", "err", err)
		}
		w.Header().Set("Retry-After", "1")
		problem(w, http.StatusServiceUnavailable, errors.New("not available, ask again with the same id"))
	}
}

// problem answers by RFC 9457. What is left of the order is a member of its own, for programs.
func problem(w http.ResponseWriter, status int, err error) {
	body := map[string]any{"status": status, "title": http.StatusText(status), "detail": err.Error()}
	if much, found := errors.AsType[*TooMuchError](err); found {
		body["left_cents"] = much.LeftCents
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// Status is an order, for whoever wants to know.
type Status struct {
	PaidCents     int64        `json:"paid_cents" db:"paid_cents"`
	RefundedCents int64        `json:"refunded_cents" db:"refunded_cents"` // paid out, or on its way
	Refunds       []RefundLine `json:"refunds" db:"-"`
}

// RefundLine is a refund of an order.
type RefundLine struct {
	ApplyID     string  `json:"apply_id" db:"apply_id"`
	Kind        Kind    `json:"kind" db:"kind"`
	AmountCents int64   `json:"amount_cents" db:"amount_cents"`
	State       State   `json:"state" db:"state"`
	Agreement   *string `json:"agreement" db:"agreement"`
}

// StatusHTTP answers GET /orders/{order}.
func (s *Service) StatusHTTP(w http.ResponseWriter, r *http.Request) {
	var all []Status
	order := r.PathValue("order")
	err := s.db.SelectContext(r.Context(), &all, `SELECT paid_cents, refunded_cents FROM partialrefund.shop_order WHERE id = $1`, order)
	if err == nil && len(all) == 0 {
		problem(w, http.StatusNotFound, fmt.Errorf("%w: %s", ErrUnknownOrder, order))
		return
	}
	if err == nil {
		err = s.db.SelectContext(r.Context(), &all[0].Refunds, `
SELECT r.apply_id, r.kind, r.amount_cents, r.state, a.id AS agreement
FROM partialrefund.refund r LEFT JOIN partialrefund.agreement a ON a.apply_id = r.apply_id WHERE r.order_id = $1 ORDER BY r.asked_at`, order)
	}
	if err != nil {
		problem(w, http.StatusServiceUnavailable, errors.New("not available"))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(all[0])
}
