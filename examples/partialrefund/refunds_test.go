package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jmoiron/sqlx"
	"github.com/pgonce/pgonce/examples/partialrefund/refunds"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// shop is a service in this process, with an order for which 1000 cents were paid.
type shop struct {
	*refunds.Service
	db   *pgtest.DB
	pool *pgxpool.Pool // closed, and checked, when the service is
}

func newShop(t *testing.T) *shop {
	t.Helper()
	db, g := newGround(t)
	db.Exec(t, `INSERT INTO partialrefund.shop_order (id, account, paid_cents) VALUES ('o1', 'a', 1000)`)
	pool := db.SQL(t)
	pool.SetMaxOpenConns(16)
	service, err := refunds.NewService(t.Context(), sqlx.NewDb(pool, "pgx"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Close(context.WithoutCancel(t.Context())) })
	return &shop{service, db, g.Pool}
}

func ask(id string, cents int64, kind refunds.Kind) refunds.Request {
	return refunds.Request{ID: id, Order: "o1", AmountCents: cents, Kind: kind}
}

// Of many refunds at once so many go through as fit, each of the others is told what is left, and repeats get the first answer.
func TestNeverMoreThanWasPaid(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	var accepted, refused atomic.Int64
	var wg sync.WaitGroup
	for n := range 10 {
		for range 2 {
			wg.Go(func() {
				_, err := s.Refund(t.Context(), ask(fmt.Sprint("a", n), 300, refunds.Customer))
				much, tooMuch := errors.AsType[*refunds.TooMuchError](err)
				switch {
				case err == nil:
					accepted.Add(1)
				case tooMuch && much.AskedCents == 300 && much.LeftCents >= 0 && much.LeftCents < 300 && errors.Is(err, refunds.ErrTooMuch):
					refused.Add(1)
				default:
					t.Errorf("a%d: %v", n, err)
				}
			})
		}
	}
	wg.Wait()
	if a, r := accepted.Load(), refused.Load(); a != 6 || r != 14 {
		t.Errorf("%d were accepted and %d refused, want 6 and 14", a, r)
	}
	if n := s.db.Int(t, `SELECT refunded_cents FROM partialrefund.shop_order`); n != 900 {
		t.Errorf("%d cents are given back", n)
	}
	_, err := s.Refund(t.Context(), ask("b", 101, refunds.Staff))
	if err == nil || !strings.HasSuffix(err.Error(), "asked for 101 cents, 100 are left") {
		t.Errorf("got %v", err)
	}
	if _, err := s.Refund(t.Context(), ask("b", 100, refunds.Staff)); err != nil {
		t.Errorf("the rest: %v", err)
	}
	if jobs := s.db.Int(t, `SELECT count(*) FROM partialrefund_queue.river_job`); jobs != 4 {
		t.Errorf("%d jobs, want 4", jobs)
	}
}

// The CHECK holds whoever writes.
func TestCheckIsTheLastLine(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	_, err := s.pool.Exec(t.Context(), `UPDATE partialrefund.shop_order SET refunded_cents = 1001`)
	if err == nil || !strings.Contains(err.Error(), "23514") {
		t.Errorf("got %v", err)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	if _, err := s.Refund(t.Context(), ask("a1", 100, refunds.Customer)); err != nil {
		t.Fatal(err)
	}
	again, err := s.Refund(t.Context(), ask("a1", 100, refunds.Staff)) // whoever asks
	if err != nil || !again.Replayed || again.Value.Kind != refunds.Customer {
		t.Errorf("again: %+v, %v", again, err)
	}
	for name, tc := range map[string]struct {
		request refunds.Request
		want    error
	}{
		"another amount": {ask("a1", 101, refunds.Customer), idem.ErrMismatch},
		"another order":  {refunds.Request{ID: "a1", Order: "o2", AmountCents: 100, Kind: refunds.Customer}, idem.ErrMismatch},
		"unknown order":  {refunds.Request{ID: "a2", Order: "o2", AmountCents: 100, Kind: refunds.Customer}, refunds.ErrUnknownOrder},
		"nothing":        {ask("a2", 0, refunds.Customer), refunds.ErrBadRequest},
		"too large":      {ask("a2", 1<<62, refunds.Customer), refunds.ErrBadRequest},
		"negative":       {ask("a2", -1, refunds.Customer), refunds.ErrBadRequest},
		"by nobody":      {ask("a2", 1, ""), refunds.ErrBadRequest},
		"without an id":  {ask("", 1, refunds.Customer), refunds.ErrBadRequest},
	} {
		if _, err := s.Refund(t.Context(), tc.request); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	if _, err := s.Agree(t.Context(), refunds.Request{ID: "n", Order: "o2", AmountCents: 1}); !errors.Is(err, refunds.ErrUnknownOrder) {
		t.Errorf("an agreement about an unknown order: %v", err)
	}
	if n := s.db.Int(t, `SELECT count(*) FROM partialrefund.refund`); n != 1 {
		t.Errorf("%d refunds", n)
	}
}

// Agreements at once join one refund each of those that they could be about, and only what is beyond them makes one. A repeat joins
// nothing else.
func TestAgreementsJoin(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for n := range 3 {
		if _, err := s.Refund(t.Context(), ask(fmt.Sprint("a", n), 100, refunds.Customer)); err != nil {
			t.Fatal(err)
		}
	}
	agreed := map[string]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for n := range 4 {
		for range 3 {
			wg.Go(func() {
				res, err := s.Agree(t.Context(), ask(fmt.Sprint("n", n), 100, ""))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				id := res.Value.ApplyID
				if first, known := agreed[fmt.Sprint("n", n)]; known && first != id {
					t.Errorf("n%d joined %s, then %s", n, first, id)
				}
				if res.Value.Joined == strings.HasPrefix(id, "agree-") {
					t.Errorf("%+v", res.Value)
				}
				agreed[fmt.Sprint("n", n)] = id
			})
		}
	}
	wg.Wait()
	joined := map[string]bool{}
	for _, id := range agreed {
		joined[id] = true
	}
	if len(joined) != 4 || !joined["a0"] || !joined["a1"] || !joined["a2"] {
		t.Errorf("joined: %v", agreed)
	}
	if n := s.db.Int(t, `SELECT refunded_cents FROM partialrefund.shop_order`); n != 400 {
		t.Errorf("%d cents are given back, want 400", n)
	}
	if n := s.db.Int(t, `SELECT count(*) FROM partialrefund.refund WHERE state = 'agreed'`); n != 3 {
		t.Errorf("%d refunds are agreed to, want 3", n)
	}
}

// What the refund service refuses is back on the order, once, however often the job is delivered; an agreement that comes after that
// makes no other refund.
func TestRefusedIsGivenBack(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	if _, err := s.Refund(t.Context(), ask("a1", 700, refunds.Customer)); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnprocessableEntity)
		_, _ = w.Write([]byte(`{"reference": "a1", "reason": "account closed"}`)) // the client may have gone
	}))
	t.Cleanup(srv.Close)
	queue, err := refunds.NewQueue(s.pool, s.Service, refunds.NewPayouts(s.Service, refunds.NewBank(srv.URL, 0)), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := queue.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = queue.StopAndCancel(context.WithoutCancel(t.Context())) }()
	done := func() bool {
		return s.db.Int(t, `SELECT count(*) FROM partialrefund_queue.river_job WHERE finalized_at IS NULL`) == 0
	}
	pgtest.Eventually(t, "the job", done)
	s.db.Exec(t, `UPDATE partialrefund_queue.river_job SET state = 'available', finalized_at = NULL`)
	pgtest.Eventually(t, "the job, once more", done)
	if n := s.db.Int(t, `SELECT refunded_cents FROM partialrefund.shop_order`); n != 0 {
		t.Errorf("%d cents are given back", n)
	}
	res, err := s.Agree(t.Context(), ask("n1", 700, ""))
	if err != nil || !res.Value.Joined || res.Value.ApplyID != "a1" {
		t.Errorf("the agreement: %+v, %v", res.Value, err)
	}
}
