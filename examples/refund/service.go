package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
)

// createRefund is the operation whose repeats must not pay again. Money is remembered for ever.
var createRefund = idem.Op{Name: "refund.create", ReplayFor: idem.Forever, RememberFor: idem.Forever}

// errTooMuch means that less is left of the purchase than was asked back.
var errTooMuch = errors.New("the refund exceeds what is left of the purchase")

const maxBody = 64 << 10

// request is what a merchant posts to /refunds.
type request struct {
	Purchase    string `json:"purchase"`
	AmountCents int64  `json:"amount_cents"`
}

// receipt is the answer, the same for every repeat.
type receipt struct {
	RefundID    int64  `json:"refund_id"`
	Purchase    string `json:"purchase"`
	AmountCents int64  `json:"amount_cents"`
}

// service is the payment service: one handler over one pool.
type service struct {
	keys *idem.Store[pgx.Tx]
	log  *slog.Logger
}

// ServeHTTP answers POST /refunds. The header Idempotency-Key names the request, X-Merchant stands
// in for authentication and is the scope: merchants cannot see each other's keys.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		problem(w, http.StatusRequestEntityTooLarge, err)
		return
	}
	var in request
	if err := json.Unmarshal(body, &in); err != nil || in.AmountCents <= 0 {
		problem(w, http.StatusBadRequest, errors.New(`want {"purchase": "...", "amount_cents": 1250}`))
		return
	}
	merchant, id := r.Header.Get("X-Merchant"), r.Header.Get("Idempotency-Key")

	res, err := idem.Do(r.Context(), s.keys, createRefund.Key(merchant, id), idem.Bytes(body),
		func(ctx context.Context, tx pgx.Tx) (receipt, error) { return refund(ctx, tx, merchant, id, in) })
	if err != nil {
		s.refuse(w, err)
		return
	}
	if res.Replayed {
		w.Header().Set("Idempotent-Replayed", "true")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(res.Value) // the client may be gone; it will ask again
}

// refund takes the money off the purchase and pays it out, in the transaction it is given.
func refund(ctx context.Context, tx pgx.Tx, merchant, id string, in request) (receipt, error) {
	const take = `
UPDATE shop.purchase SET refunded_cents = refunded_cents + $3
WHERE merchant = $1 AND id = $2 AND refunded_cents + $3 <= paid_cents`
	tag, err := tx.Exec(ctx, take, merchant, in.Purchase, in.AmountCents)
	if err != nil {
		return receipt{}, err
	}
	if tag.RowsAffected() == 0 {
		return receipt{}, errTooMuch
	}
	const pay = `
INSERT INTO shop.payout (merchant, purchase, request, amount_cents) VALUES ($1, $2, $3, $4) RETURNING id`
	out := receipt{Purchase: in.Purchase, AmountCents: in.AmountCents}
	err = tx.QueryRow(ctx, pay, merchant, in.Purchase, id, in.AmountCents).Scan(&out.RefundID)
	return out, err
}

// refuse says which errors a client may repeat (409, 503) and which it may not.
func (s *service) refuse(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, idem.ErrInvalidKey):
		problem(w, http.StatusBadRequest, err)
	case errors.Is(err, idem.ErrInFlight):
		w.Header().Set("Retry-After", "1")
		problem(w, http.StatusConflict, err)
	case errors.Is(err, idem.ErrMismatch), errors.Is(err, errTooMuch):
		problem(w, http.StatusUnprocessableEntity, err)
	case errors.Is(err, idem.ErrExpired):
		problem(w, http.StatusGone, err)
	default:
		s.log.Debug("refund not made", "err", err)
		w.Header().Set("Retry-After", "1")
		problem(w, http.StatusServiceUnavailable, errors.New("not available, repeat with the same key"))
	}
}

// problem answers by RFC 9457.
func problem(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"status": status, "title": http.StatusText(status), "detail": err.Error()})
}

// serve runs the service until standard input closes, so that it cannot outlive whoever
// started it. It prints its address as its first line.
func serve(ctx context.Context, url, listen string) error {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return err
	}
	cfg.MaxConns = 12
	cfg.ConnConfig.RuntimeParams["application_name"] = serviceName
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer pool.Close()
	keys, err := idem.New(pgxdriver.New(pool), nil)
	if err != nil {
		return err
	}
	if err := keys.Validate(ctx); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("POST /refunds", &service{keys: keys, log: slog.Default()})
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = srv.Close()
	}()
	fmt.Printf("http://%s\n", l.Addr())
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
