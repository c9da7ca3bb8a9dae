//go:build unix

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/examples/remittance/remit"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/statemachine"
	"github.com/pgonce/pgonce/statemachine/smtest"
)

// payoffs is a service in this process, with remittance r1 over 100 cents and a bank that answers by fn.
type payoffs struct {
	db      *pgtest.DB
	pool    *pgxpool.Pool
	service *remit.Service
}

// say is what a bank answers a question about a reference, or nothing.
type say func(path, reference string) *remit.Word

func newPayoffs(t *testing.T, fn say) *payoffs {
	t.Helper()
	db, g := newGround(t)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var asked remit.Word
		_ = json.NewDecoder(r.Body).Decode(&asked)
		word := fn(r.URL.Path, asked.Reference)
		if word == nil {
			http.Error(w, "internal error", http.StatusInternalServerError)
			return
		}
		word.Reference = asked.Reference
		_ = json.NewEncoder(w).Encode(word)
	}))
	t.Cleanup(srv.Close)
	cfg := db.Config(t)
	cfg.ConnConfig.RuntimeParams["application_name"] = "remit"
	pool := db.Open(t, cfg)
	service, err := remit.NewService(t.Context(), pool, srv.URL, remit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	db.Exec(t, `INSERT INTO remit.remittance (id, account, amount_cents) VALUES ('r1', 'a', 100)`)
	return &payoffs{db, g.pool, service}
}

var message = remit.Message{Remittance: "r1", Send: 1, AmountCents: 100}

func (p *payoffs) flag(t *testing.T, want remit.Flag) {
	t.Helper()
	if got := p.db.Int(t, `SELECT flag::bigint FROM remit.remittance`); remit.Flag(got) != want {
		t.Errorf("the flag is %d (%s), want %d (%s)", got, remit.Flag(got), want, want)
	}
}

// The bank pays and says 500: the flag is 7, which nothing but an enquiry leaves, and the bank is not called again.
func TestUnknownIsLeftByEnquiry(t *testing.T) {
	t.Parallel()
	var calls, enquiries atomic.Int64
	p := newPayoffs(t, func(path, _ string) *remit.Word {
		if path == "/payments" {
			calls.Add(1)
			return nil
		}
		switch enquiries.Add(1) {
		case 1:
			return nil
		case 2:
			return &remit.Word{Code: 1} // at it
		}
		return &remit.Word{Code: 4, Serial: "B1"}
	})
	for i, want := range []remit.Flag{remit.Unknown, remit.Unknown, remit.AtBank} {
		if _, err := p.service.Remit(t.Context(), message); !errors.Is(err, idem.ErrUnknownOutcome) {
			t.Fatalf("%d: %v", i, err)
		}
		p.flag(t, want)
		if err := p.service.Reset(t.Context(), "r1", 1, "b", "ann"); !errors.Is(err, statemachine.ErrConflict) {
			t.Errorf("%d: reset: %v", i, err)
		}
		if err := p.service.Stop(t.Context(), "r1", false, "ann"); !errors.Is(err, statemachine.ErrConflict) {
			t.Errorf("%d: cancel: %v", i, err)
		}
	}
	for _, replayed := range []bool{false, true} {
		res, err := p.service.Remit(t.Context(), message)
		if want := (remit.Outcome{Flag: remit.Paid, Serial: "B1"}); err != nil || res.Value != want || res.Replayed != replayed {
			t.Errorf("got %+v, %v", res, err)
		}
	}
	p.flag(t, remit.Paid)
	if calls.Load() != 1 || enquiries.Load() != 3 {
		t.Errorf("%d calls and %d enquiries, want 1 and 3", calls.Load(), enquiries.Load())
	}
}

// The bank does not know the reference, and refuses it from now on: it is called under another one, of the same sending.
func TestUnknownReferenceIsReplaced(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var paid, asked []string
	p := newPayoffs(t, func(path, reference string) *remit.Word {
		mu.Lock()
		defer mu.Unlock()
		if path == "/enquiries" {
			asked = append(asked, reference)
			return &remit.Word{Code: 12}
		}
		if paid = append(paid, reference); len(paid) == 1 {
			return nil
		}
		return &remit.Word{Code: 4, Serial: "B1"}
	})
	if _, err := p.service.Remit(t.Context(), message); !errors.Is(err, idem.ErrUnknownOutcome) {
		t.Fatal(err)
	}
	if res, err := p.service.Remit(t.Context(), message); err != nil || res.Value.Serial != "B1" {
		t.Fatalf("got %+v, %v", res, err)
	}
	if len(paid) != 2 || paid[0] == paid[1] || len(asked) != 1 || asked[0] != paid[0] {
		t.Errorf("called under %v, asked about %v", paid, asked)
	}
	p.flag(t, remit.Paid)
	if n := p.db.Int(t, `SELECT count(*) FROM remit.remittance WHERE send = 1 AND reference = $1`, paid[1]); n != 1 {
		t.Error("the row does not have the second reference in its first sending")
	}
}

// While the bank is asked no transaction is open: one of a call before may still be on its way out, one of this call would stay.
func TestBankIsAskedOutsideTransactions(t *testing.T) {
	t.Parallel()
	var open atomic.Int64
	var p *payoffs
	p = newPayoffs(t, func(path, _ string) *remit.Word {
		began := time.Now()
		for p.db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'remit' AND xact_start IS NOT NULL`) > 0 {
			if time.Since(began) > 10*time.Second {
				open.Add(1)
				break
			}
		}
		if path == "/payments" {
			return nil
		}
		return &remit.Word{Code: 8, Reason: "account closed"}
	})
	_, _ = p.service.Remit(t.Context(), message)
	res, err := p.service.Remit(t.Context(), message)
	if err != nil || res.Value.Flag != remit.Failed || open.Load() != 0 {
		t.Errorf("got %+v, %v; %d transactions were open", res, err, open.Load())
	}
}

// A reset raises the number once, and a message of the old sending has no effect any more.
func TestResetSendsAnewOnce(t *testing.T) {
	t.Parallel()
	var references sync.Map
	var calls atomic.Int64
	p := newPayoffs(t, func(_, reference string) *remit.Word {
		references.Store(reference, true)
		if calls.Add(1) == 1 {
			return &remit.Word{Code: 8, Reason: "account closed"}
		}
		return &remit.Word{Code: 4, Serial: "B1"}
	})
	if res, err := p.service.Remit(t.Context(), message); err != nil || res.Value.Flag != remit.Failed {
		t.Fatalf("got %+v, %v", res, err)
	}
	for range 2 {
		if err := p.service.Reset(t.Context(), "r1", 1, "b", "ann"); err != nil {
			t.Fatal(err)
		}
	}
	p.flag(t, remit.Reset)
	if n := p.db.Int(t, `SELECT count(*) FROM remit_queue.river_job`); n != 1 {
		t.Errorf("%d messages, want 1", n)
	}
	if res, err := p.service.Remit(t.Context(), message); err != nil || !res.Replayed || res.Value.Flag != remit.Failed {
		t.Errorf("the old message: %+v, %v", res, err)
	}
	second := message
	second.Send = 2
	if res, err := p.service.Remit(t.Context(), second); err != nil || res.Value.Serial != "B1" {
		t.Errorf("got %+v, %v", res, err)
	}
	p.flag(t, remit.Paid)
	if calls.Load() != 2 {
		t.Errorf("%d calls, want 2", calls.Load())
	}
	for _, bad := range []remit.Message{{Remittance: "r1", Send: 3, AmountCents: 100}, {Remittance: "r1", Send: 1, AmountCents: 101}, {Remittance: "r2", Send: 1, AmountCents: 1}} {
		if _, err := p.service.Remit(t.Context(), bad); !errors.Is(err, remit.ErrBadMessage) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// What was cancelled is not sent, and the message is answered.
func TestCancelledIsNotSent(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	p := newPayoffs(t, func(string, string) *remit.Word { calls.Add(1); return nil })
	if err := p.service.Stop(t.Context(), "r1", false, "ann"); err != nil {
		t.Fatal(err)
	}
	res, err := p.service.Remit(t.Context(), message)
	if err != nil || !res.Value.NotSent || calls.Load() != 0 {
		t.Errorf("got %+v, %v after %d calls", res, err, calls.Load())
	}
	p.flag(t, remit.Cancel)
}

// What the bank cannot say is listed for a person after a while, with what to do; his word about another reference is none.
func TestUndecidedIsListed(t *testing.T) {
	t.Parallel()
	p := newPayoffs(t, func(string, string) *remit.Word { return &remit.Word{Code: 99} })
	_, _ = p.service.Remit(t.Context(), message)
	if list, err := p.service.Undecided(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("at once: %+v, %v", list, err)
	}
	p.db.Exec(t, `UPDATE pgonce.idem_lease SET created_at = created_at - interval '2 hours'`)
	p.db.Exec(t, `INSERT INTO remit.returned (serial, reason, seen_at) VALUES ('B9', 'no such person', now() - interval '2 hours')`)
	list, err := p.service.Undecided(t.Context())
	if err != nil || len(list) != 2 || list[0].Flag != remit.Unknown || !strings.HasPrefix(list[0].Do, "decide by hand") || !strings.HasPrefix(list[1].Do, "compensate") {
		t.Fatalf("got %+v, %v", list, err)
	}
	if err := p.service.Decide(t.Context(), "r1", 1, "another", "B7", "ann", "test"); !errors.Is(err, remit.ErrNothingToDecide) {
		t.Errorf("another reference: %v", err)
	}
	if err := p.service.Decide(t.Context(), "r1", 1, list[0].Reference, "B7", "ann", "test"); err != nil {
		t.Fatal(err)
	}
	if res, err := p.service.Remit(t.Context(), message); err != nil || res.Value.Serial != "B7" {
		t.Errorf("got %+v, %v", res, err)
	}
	p.flag(t, remit.Paid)
}

// The machine holds, by every way to write.
func TestMachineHolds(t *testing.T) {
	t.Parallel()
	_, g := newGround(t)
	db := pgxdriver.New(g.pool)
	flow, err := statemachine.Bind[string](remit.Flow, db, remit.Table)
	if err != nil {
		t.Fatal(err)
	}
	var n atomic.Int64
	smtest.Run(t, db, flow, func(ctx context.Context, _ remit.Flag) (string, error) {
		id := fmt.Sprint("m", n.Add(1))
		_, err := g.pool.Exec(ctx, `INSERT INTO remit.remittance (id, account, amount_cents) VALUES ($1, 'a', 100)`, id)
		return id, err
	}, &smtest.Config[remit.Flag]{
		Options: func(_ remit.Flag, ev statemachine.Event[remit.Flag]) []statemachine.Option {
			switch ev {
			case remit.Send, remit.Resend:
				return []statemachine.Option{statemachine.Set("reference", "ref")}
			case remit.Confirm, remit.FoundPaid:
				return []statemachine.Option{statemachine.SetExpr("serial", "'S' || id")}
			case remit.Refuse, remit.FoundNot, remit.Bounce:
				return []statemachine.Option{statemachine.Set("reason", "why")}
			case remit.Renew:
				return []statemachine.Option{statemachine.SetExpr("send", "send + 1")}
			}
			return nil
		},
		Racers: 3, MaxPaths: 40,
	})
}
