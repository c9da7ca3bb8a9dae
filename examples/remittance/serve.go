package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/examples/remittance/remit"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/statemachine"
)

const toTry = `
%[2]d workers and a bank that misbehaves are up, with an office at %[1]s. Press Ctrl-C to end it. Try:

  curl -si %[1]s/remittances -d '{"id": "r1", "account": "a", "amount_cents": 1250}'
      202: it is written down and its message is in the queue; again is no second one; another amount is 409
  curl -s %[1]s/remittances/r1
      its flag and its history: new, at the bank, paid; or by way of "no answer" and an enquiry
  curl -si -X POST %[1]s/remittances/r1/redeliver
      202: the message comes once more, and nothing happens
  curl -si %[1]s/remittances -d '{"id": "r2", "account": "closed-a", "amount_cents": 1250}'
      the bank refuses this account: flag 3. Then, to send it anew to another one:
  curl -si -X POST '%[1]s/remittances/r2/reset?send=1&account=b'
      204; for r1, which is paid, 409
  curl -si %[1]s/remittances -d '{"id": "r3", "account": "opaque-a", "amount_cents": 1250}'
      the bank pays and cannot say so: flag 7, and after some seconds it is in
  curl -s %[1]s/undecided
      what a person has to decide, and how
  curl -si -X POST '%[1]s/remittances/r3/decide?send=1&reference=REFERENCE&serial=B00000077'
      204, with the reference of that list: your word is on record, and the flag becomes 2
`

// leaveUp runs workers, a bank that misbehaves and an office for a person, until ctx ends.
func leaveUp(ctx context.Context, opt options, g *ground, out io.Writer) error {
	opt.messages = 0
	s, err := prepare(ctx, opt, g, right, out)
	if err != nil {
		return err
	}
	defer s.close()
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: s.office(), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	fmt.Fprintf(out, toTry, "http://"+l.Addr().String(), len(s.workers))
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// reply answers with status, or with what an error means.
func reply(w http.ResponseWriter, status int, answer any, err error) {
	switch {
	case errors.Is(err, statemachine.ErrConflict), errors.Is(err, remit.ErrNothingToDecide), errors.Is(err, idem.ErrInFlight):
		status = http.StatusConflict
	case errors.Is(err, statemachine.ErrNotFound), errors.Is(err, pgx.ErrNoRows):
		status = http.StatusNotFound
	case err != nil:
		status = http.StatusBadRequest
	}
	if err != nil {
		answer = map[string]string{"error": err.Error()}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if status != http.StatusNoContent {
		pretty := json.NewEncoder(w)
		pretty.SetIndent("", "  ")
		_ = pretty.Encode(answer)
	}
}

// office is where people ask for things.
func (s *storm) office() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, status int, do func(r *http.Request, id string) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			answer, err := do(r, r.PathValue("id"))
			reply(w, status, answer, err)
		})
	}
	handle("POST /remittances", http.StatusAccepted, func(r *http.Request, _ string) (any, error) {
		var o remit.Order
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<16)).Decode(&o); err != nil {
			return nil, err
		}
		return o, s.service.Create(r.Context(), o)
	})
	handle("GET /remittances/{id}", http.StatusOK, func(r *http.Request, id string) (any, error) {
		return s.service.Status(r.Context(), id)
	})
	handle("POST /remittances/{id}/redeliver", http.StatusAccepted, func(r *http.Request, id string) (any, error) {
		status, err := s.service.Status(r.Context(), id)
		if err != nil {
			return nil, err
		}
		m := remit.Message{Remittance: id, Send: status.Send, AmountCents: status.AmountCents}
		_, err = s.queue.Insert(r.Context(), m, nil)
		return m, err
	})
	handle("POST /remittances/{id}/reset", http.StatusNoContent, func(r *http.Request, id string) (any, error) {
		send, err := strconv.Atoi(r.FormValue("send"))
		if err != nil || r.FormValue("account") == "" {
			return nil, errors.New("want send and account")
		}
		return nil, s.service.Reset(r.Context(), id, send, r.FormValue("account"), "curl")
	})
	handle("POST /remittances/{id}/decide", http.StatusNoContent, func(r *http.Request, id string) (any, error) {
		send, err := strconv.Atoi(r.FormValue("send"))
		if err != nil {
			return nil, errors.New("want send, reference, and serial if it was paid")
		}
		return nil, s.service.Decide(r.Context(), id, send, r.FormValue("reference"), r.FormValue("serial"), "curl", "tried by hand")
	})
	handle("GET /undecided", http.StatusOK, func(r *http.Request, _ string) (any, error) { return s.service.Undecided(r.Context()) })
	return mux
}
