package urges

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/pgonce/pgonce/dblock"
)

// Urger takes urges. [Service] is the right one.
type Urger interface {
	Urge(ctx context.Context, ticket int64, user string) (Answer, error)
}

// patience is how long a request waits for its turn at a ticket.
const patience = 5 * time.Second

// UrgeHTTP answers POST /tickets/{ticket}/urges. The user is who was authenticated before: here, whoever X-User says.
func UrgeHTTP(u Urger, log *slog.Logger) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), patience)
		defer cancel()
		ticket, err := strconv.ParseInt(r.PathValue("ticket"), 10, 64)
		if err != nil {
			http.Error(w, "a ticket is a number", http.StatusBadRequest)
			return
		}
		a, err := u.Urge(ctx, ticket, r.Header.Get("X-User"))
		switch {
		case errors.Is(err, ErrUnknownTicket):
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		case errors.Is(err, ErrNoUser):
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		case err != nil:
			if !errors.Is(err, dblock.ErrNotAcquired) {
				log.Warn("not urged", "err", err)
			}
			w.Header().Set("Retry-After", "1") // it does no harm: who has urged is told so
			http.Error(w, "not available, ask again", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if a.Cached {
			w.Header().Set("X-Cached", "true")
		}
		if !a.Again {
			w.WriteHeader(http.StatusCreated)
		}
		_ = json.NewEncoder(w).Encode(struct {
			Message string `json:"message"`
			Answer
		}{a.Message(time.Local), a})
	}
}

// StatusHTTP answers GET /tickets/{ticket}/urges.
func (s *Service) StatusHTTP(w http.ResponseWriter, r *http.Request) {
	ticket, err := strconv.ParseInt(r.PathValue("ticket"), 10, 64)
	if err != nil {
		http.Error(w, "a ticket is a number", http.StatusBadRequest)
		return
	}
	all, err := s.Status(r.Context(), ticket)
	if err != nil {
		http.Error(w, "not available", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(all)
}
