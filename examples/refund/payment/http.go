package payment

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"github.com/pgonce/pgonce/idem"
)

const maxBody = 64 << 10

// AcceptHTTP answers POST /refunds with 202: the refund is accepted, and will be paid or
// refused. The header Idempotency-Key names the request; X-Merchant and X-Asked-By stand in
// for authentication.
//
// A service that is asked over HTTP alone needs none of this file: idemhttp.Handle does it. Here
// messages share the key, so what is compared and stored must not be that of HTTP.
func AcceptHTTP(refunds Refunder, log *slog.Logger) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			problem(w, http.StatusRequestEntityTooLarge, err)
			return
		}
		number, err := idempotencyKey(r)
		if err != nil {
			problem(w, http.StatusBadRequest, err)
			return
		}
		res, err := refunds.Refund(r.Context(), Request{
			Merchant: r.Header.Get("X-Merchant"), Number: number, AskedBy: r.Header.Get("X-Asked-By"), Body: body,
		})
		if err != nil {
			refuse(w, log, err)
			return
		}
		if res.Replayed {
			w.Header().Set("Idempotent-Replayed", "true")
		}
		w.Header().Set("Location", "/refunds/"+url.PathEscape(number))
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusAccepted)
		_ = json.NewEncoder(w).Encode(res.Value) // the client may be gone; it will ask again
	}
}

// idempotencyKey reads the header, which is a string in quotes by the draft and bare by habit. Both
// mean the same number: a message has no quotes.
func idempotencyKey(r *http.Request) (string, error) {
	values := r.Header.Values("Idempotency-Key")
	if len(values) != 1 {
		return "", errors.New("want one Idempotency-Key")
	}
	key := values[0]
	if inner, quoted := strings.CutPrefix(key, `"`); quoted {
		key = strings.TrimSuffix(inner, `"`)
		if len(key) == len(inner) {
			return "", errors.New("the Idempotency-Key has a quote that does not end")
		}
	}
	if strings.ContainsAny(key, "\"\\,;") {
		return "", errors.New("the Idempotency-Key has a character that two readers could understand differently")
	}
	return key, nil
}

// StatusHTTP answers GET /refunds/{number}.
func (s *Service) StatusHTTP(w http.ResponseWriter, r *http.Request) {
	status, err := s.Status(r.Context(), r.Header.Get("X-Merchant"), r.PathValue("number"))
	switch {
	case errors.Is(err, ErrUnknownRefund):
		problem(w, http.StatusNotFound, err)
	case err != nil:
		problem(w, http.StatusServiceUnavailable, errors.New("not available, ask again"))
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(status)
	}
}

// Permanent says that asking again with the same request would get the same refusal.
func Permanent(err error) bool {
	for _, permanent := range []error{ErrBadRequest, ErrTooMuch, idem.ErrInvalidKey, idem.ErrMismatch, idem.ErrExpired} {
		if errors.Is(err, permanent) {
			return true
		}
	}
	return false
}

// refuse tells a client whether to ask again with the same key (409, 503) or not.
func refuse(w http.ResponseWriter, log *slog.Logger, err error) {
	switch {
	case errors.Is(err, ErrBadRequest), errors.Is(err, idem.ErrInvalidKey):
		problem(w, http.StatusBadRequest, err)
	case errors.Is(err, idem.ErrExpired):
		problem(w, http.StatusGone, err)
	case Permanent(err):
		problem(w, http.StatusUnprocessableEntity, err)
	case errors.Is(err, idem.ErrInFlight):
		w.Header().Set("Retry-After", "1")
		problem(w, http.StatusConflict, err)
	default:
		log.Warn("refund not accepted", "err", err)
		w.Header().Set("Retry-After", "1")
		problem(w, http.StatusServiceUnavailable, errors.New("not available, ask again with the same key"))
	}
}

// problem answers by RFC 9457.
func problem(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"status": status, "title": http.StatusText(status), "detail": err.Error()})
}
