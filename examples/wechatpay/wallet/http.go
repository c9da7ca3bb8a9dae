package wallet

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"

	"github.com/pgonce/pgonce/dblock"
)

// Caller takes callbacks. [Service] is the right one.
type Caller interface {
	Callback(ctx context.Context, c Callback) error
}

// CallbackHTTP answers POST /callbacks in the platform's words: what is not SUCCESS comes again, unless it is refused.
func CallbackHTTP(s Caller, log *slog.Logger) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var c Callback
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&c)
		if err != nil {
			err = ErrBadCallback
		} else {
			err = s.Callback(r.Context(), c)
		}
		switch {
		case err == nil:
			say(w, http.StatusOK, "SUCCESS", "")
		case errors.Is(err, ErrBadCallback):
			say(w, http.StatusBadRequest, "FAIL", err.Error())
		case errors.Is(err, ErrUnknownOrder):
			say(w, http.StatusNotFound, "FAIL", err.Error())
		case errors.Is(err, ErrNotPaid):
			say(w, http.StatusUnprocessableEntity, "FAIL", err.Error())
		default:
			if !errors.Is(err, dblock.ErrNotAcquired) {
				log.Warn("callback not taken", "err", err)
			}
			w.Header().Set("Retry-After", "1")
			say(w, http.StatusServiceUnavailable, "FAIL", "not available, call again")
		}
	}
}

// OrderHTTP answers GET /orders/{number}.
func (s *Service) OrderHTTP(w http.ResponseWriter, r *http.Request) {
	o, err := s.Order(r.Context(), r.PathValue("number"))
	switch {
	case errors.Is(err, ErrUnknownOrder):
		say(w, http.StatusNotFound, "FAIL", err.Error())
	case err != nil:
		say(w, http.StatusServiceUnavailable, "FAIL", "not available")
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(o)
	}
}

func say(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"code": code, "message": message})
}
