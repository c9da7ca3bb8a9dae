package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/examples/refund/payment"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// shop is a service in this process, with a purchase of 200 cents.
type shop struct {
	db      *pgtest.DB
	pool    *pgxpool.Pool
	service *payment.Service
}

func newShop(t *testing.T) *shop {
	t.Helper()
	db, g := newGround(t)
	db.Exec(t, `INSERT INTO shop.purchase (merchant, id, paid_cents) VALUES ('m1', 'p1', 200)`)
	service, err := payment.NewService(t.Context(), g.pool)
	if err != nil {
		t.Fatal(err)
	}
	return &shop{db, g.pool, service}
}

const reference = "X-Reference" // of the request, for tell

// bankSays starts a bank that answers by fn.
func bankSays(t *testing.T, fn http.HandlerFunc) *payment.Bank {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var asked struct{ Reference string }
		_ = json.Unmarshal(body, &asked)
		r.Header.Set(reference, asked.Reference)
		r.Body = io.NopCloser(bytes.NewReader(body))
		fn(w, r)
	}))
	t.Cleanup(srv.Close)
	return payment.NewBank(srv.URL, 8*time.Second) // for a loaded machine
}

// tell answers a request, with its reference where body is an object.
func tell(w http.ResponseWriter, r *http.Request, status int, body string) {
	w.WriteHeader(status)
	_, _ = io.WriteString(w, strings.Replace(body, `{"`, fmt.Sprintf(`{"reference": %q, "`, r.Header.Get(reference)), 1)) // the client may have given up
}

// work runs a queue. Payouts have a pool of their own, so that its connections can be told from the queue's.
func (s *shop) work(t *testing.T, bank *payment.Bank) {
	t.Helper()
	cfg := s.db.Config(t)
	cfg.ConnConfig.RuntimeParams["application_name"] = "payouts"
	payouts, err := payment.NewPayouts(t.Context(), s.db.Open(t, cfg), bank)
	if err != nil {
		t.Fatal(err)
	}
	queue, err := payment.NewQueue(s.pool, s.service, payouts, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := queue.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := queue.StopAndCancel(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
}

func (s *shop) ask(t *testing.T, number string, cents int) {
	t.Helper()
	body := fmt.Appendf(nil, `{"purchase": "p1", "account": "a", "amount_cents": %d}`, cents)
	_, err := s.service.Refund(t.Context(), payment.Request{Merchant: "m1", Number: number, AskedBy: "test", Body: body})
	if err != nil {
		t.Fatal(err)
	}
}

// deliver enqueues the payout of refund number once more.
func (s *shop) deliver(t *testing.T, number string) {
	t.Helper()
	jobs, err := payment.NewPublisher(s.pool)
	if err != nil {
		t.Fatal(err)
	}
	id := s.db.Int(t, `SELECT id FROM shop.refund WHERE number = $1`, number)
	if _, err := jobs.Insert(t.Context(), payment.Payout{Merchant: "m1", RefundID: id}, nil); err != nil {
		t.Fatal(err)
	}
}

func (s *shop) awaitJobs(t *testing.T) {
	t.Helper()
	pgtest.Eventually(t, "every job is done", func() bool {
		return s.db.Int(t, `SELECT count(*) FROM shop_queue.river_job WHERE finalized_at IS NULL`) == 0
	})
}

func TestHTTPAnswers(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	handler := payment.AcceptHTTP(s.service, slog.New(slog.DiscardHandler))
	const order = `{"purchase": "p1", "account": "a", "amount_cents": %d}`
	for _, tc := range []struct {
		merchant, key, body string
		status              int
		replayed            bool
	}{
		{"m1", "k1", fmt.Sprintf(order, 100), http.StatusAccepted, false},
		{"m1", "k1", fmt.Sprintf(order, 100), http.StatusAccepted, true},
		{"m1", "k1", `{"amount_cents":100,"account":"a","purchase":"p1"}`, http.StatusAccepted, true}, // says the same
		{"m1", `"k1"`, fmt.Sprintf(order, 100), http.StatusAccepted, true},                            // as the draft has it
		{"m1", `"k1`, fmt.Sprintf(order, 100), http.StatusBadRequest, false},
		{"m1", `"k1", "k2"`, fmt.Sprintf(order, 100), http.StatusBadRequest, false},
		{"m1", "k1", fmt.Sprintf(order, 101), http.StatusUnprocessableEntity, false},
		{"m1", "k2", fmt.Sprintf(order, 101), http.StatusUnprocessableEntity, false}, // only 200 were paid
		{"m2", "k1", fmt.Sprintf(order, 1), http.StatusUnprocessableEntity, false},   // another merchant's number and purchase
		{"m1", "", fmt.Sprintf(order, 1), http.StatusBadRequest, false},
		{"", "k4", fmt.Sprintf(order, 1), http.StatusBadRequest, false},
		{"m1", "k5", fmt.Sprintf(order, -1), http.StatusBadRequest, false},
		{"m1", "k6", `nonsense`, http.StatusBadRequest, false},
		{"m1", "k7", `{"purchase": "p1", "account": "a", "amount_cents": 1, "amount_cents": 2}`, http.StatusBadRequest, false},
		{"m1", "k8", strings.Repeat("x", 1<<17), http.StatusRequestEntityTooLarge, false},
	} {
		w, r := httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/refunds", strings.NewReader(tc.body))
		r.Header.Set("X-Merchant", tc.merchant)
		r.Header.Set("Idempotency-Key", tc.key)
		handler(w, r)
		if replayed := w.Header().Get("Idempotent-Replayed") == "true"; w.Code != tc.status || replayed != tc.replayed {
			t.Errorf("%s %s %.60s: got %d, replayed %t; want %d, %t", tc.merchant, tc.key, tc.body, w.Code, replayed, tc.status, tc.replayed)
		}
	}
	if refunds, jobs := s.db.Int(t, `SELECT count(*) FROM shop.refund`), s.db.Int(t, `SELECT count(*) FROM shop_queue.river_job`); refunds != 1 || jobs != 1 {
		t.Errorf("%d refunds and %d jobs, want one of each", refunds, jobs)
	}
}

// A merchant who polls sees the refund accepted, then paid.
func TestStatus(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.ask(t, "k1", 100)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /refunds/{number}", s.service.StatusHTTP)
	get := func(merchant, number string) (int, string) {
		w, r := httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/refunds/"+number, nil)
		r.Header.Set("X-Merchant", merchant)
		mux.ServeHTTP(w, r)
		return w.Code, strings.TrimSpace(w.Body.String())
	}
	if code, body := get("m1", "k1"); code != http.StatusOK || body != `{"state":"requested"}` {
		t.Errorf("got %d %s", code, body)
	}
	s.work(t, bankSays(t, func(w http.ResponseWriter, r *http.Request) { tell(w, r, http.StatusOK, `{"serial": "B7"}`) }))
	s.awaitJobs(t)
	if code, body := get("m1", "k1"); code != http.StatusOK || body != `{"state":"paid","bank_serial":"B7"}` {
		t.Errorf("got %d %s", code, body)
	}
	for _, other := range [][2]string{{"m1", "k2"}, {"m2", "k1"}} {
		if code, body := get(other[0], other[1]); code != http.StatusNotFound {
			t.Errorf("%v: got %d %s", other, code, body)
		}
	}
}

// While the bank is asked no transaction is open, and it is asked under one reference however often.
func TestBankIsAskedOutsideTransactions(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	var calls, open atomic.Int64
	var references sync.Map
	s.ask(t, "k1", 100)
	s.work(t, bankSays(t, func(w http.ResponseWriter, r *http.Request) {
		var order payment.Transfer
		_ = json.NewDecoder(r.Body).Decode(&order)
		references.Store(order.Reference, true)
		open.Add(s.db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'payouts' AND xact_start IS NOT NULL`))
		if calls.Add(1) < 4 {
			http.Error(w, "not now", http.StatusInternalServerError)
			return
		}
		tell(w, r, http.StatusOK, `{"serial": "B1"}`)
	}))
	s.awaitJobs(t)
	if calls.Load() != 4 || open.Load() != 0 {
		t.Errorf("%d calls, want 4; %d open transactions meanwhile, want 0", calls.Load(), open.Load())
	}
	n := 0
	references.Range(func(reference, _ any) bool {
		n++
		if reference != payment.Reference("m1", "k1") {
			t.Errorf("asked under %s", reference)
		}
		return true
	})
	if n != 1 {
		t.Errorf("%d references for one refund", n)
	}
}

// Two deliveries that ask the bank at the same time are both told the same, and settle once: a refusal
// gives the money back once.
func TestRefusalGivesBackOnce(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.ask(t, "other", 100) // so that there is something to give back too much of
	s.db.Exec(t, `DELETE FROM shop_queue.river_job`)
	s.ask(t, "k1", 40)
	s.deliver(t, "k1")
	var together sync.WaitGroup
	together.Add(2)
	s.work(t, bankSays(t, func(w http.ResponseWriter, r *http.Request) {
		together.Done() // a third call would panic
		together.Wait()
		tell(w, r, http.StatusUnprocessableEntity, `{"reason": "account closed"}`)
	}))
	s.awaitJobs(t)
	s.deliver(t, "k1") // settled: the bank is not asked
	s.awaitJobs(t)
	if n := s.db.Int(t, `SELECT refunded_cents FROM shop.purchase`); n != 100 {
		t.Errorf("%d cents are off the purchase, want 100", n)
	}
	if n := s.db.Int(t, `SELECT count(*) FROM shop.refund WHERE state = 'refused' AND reason = 'account closed' AND number = 'k1'`); n != 1 {
		t.Error("the refund is not refused")
	}
	if n := s.db.Int(t, `SELECT count(*) FROM pgonce.transition WHERE machine = 'refund'`); n != 1 {
		t.Errorf("%d transitions, want 1", n)
	}
}

// A bank that says two things about one reference is a matter for a person: the first word
// stands, and the job is put aside.
func TestContradictionIsPutAside(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.ask(t, "k1", 100)
	s.deliver(t, "k1")
	var calls atomic.Int64
	var together sync.WaitGroup
	together.Add(2)
	s.work(t, bankSays(t, func(w http.ResponseWriter, r *http.Request) {
		n := calls.Add(1)
		together.Done()
		together.Wait()
		if n == 1 {
			tell(w, r, http.StatusOK, `{"serial": "B1"}`)
			return
		}
		tell(w, r, http.StatusUnprocessableEntity, `{"reason": "account closed"}`)
	}))
	s.awaitJobs(t)
	if n := s.db.Int(t, `SELECT count(*) FROM shop_queue.river_job WHERE state = 'cancelled'`); n != 1 {
		t.Errorf("%d jobs were put aside, want 1", n)
	}
	if n := s.db.Int(t, `SELECT count(*) FROM pgonce.transition WHERE machine = 'refund'`); n != 1 {
		t.Errorf("%d transitions, want 1", n)
	}
}

// A bank whose answer cannot be read has said nothing.
func TestUnreadableAnswersAreNoAnswers(t *testing.T) {
	t.Parallel()
	for _, answer := range []string{"", "{", `{"serial": ""}`, `{"reason": "x"}`, `["serial"]`} {
		b := bankSays(t, func(w http.ResponseWriter, r *http.Request) { tell(w, r, http.StatusOK, answer) })
		if d, err := b.Pay(t.Context(), payment.Transfer{}); err == nil {
			t.Errorf("%q was taken for %+v", answer, d)
		}
	}
	b := bankSays(t, func(w http.ResponseWriter, r *http.Request) { tell(w, r, http.StatusUnprocessableEntity, `{"x": ""}`) })
	if d, err := b.Pay(t.Context(), payment.Transfer{}); err == nil {
		t.Errorf("a refusal without a reason was taken for %+v", d)
	}
}

// A bank that answers twice: its second answer is read as that to the next request on the connection, which
// it knows nothing of.
func TestSecondAnswerIsNoAnswerToTheNext(t *testing.T) {
	t.Parallel()
	var first atomic.Value
	b := bankSays(t, func(w http.ResponseWriter, r *http.Request) {
		first.CompareAndSwap(nil, r.Header.Get(reference))
		r.Header.Set(reference, first.Load().(string))
		tell(w, r, http.StatusOK, `{"serial": "B1"}`)
	})
	if d, err := b.Pay(t.Context(), payment.Transfer{Reference: "R1"}); err != nil || d.Serial != "B1" {
		t.Errorf("got %+v, %v", d, err)
	}
	if d, err := b.Pay(t.Context(), payment.Transfer{Reference: "R2"}); err == nil {
		t.Errorf("the answer about R1 was taken for one about R2: %+v", d)
	}
}

// A message for another amount is put aside with the reason, and not acknowledged as done.
func TestForgedMessageIsPutAside(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.ask(t, "k1", 100)
	jobs, err := payment.NewPublisher(s.pool)
	if err != nil {
		t.Fatal(err)
	}
	forged := payment.Message{Request: payment.Request{
		Merchant: "m1", Number: "k1", AskedBy: "desk", Body: []byte(`{"purchase": "p1", "account": "a", "amount_cents": 101}`),
	}}
	if _, err := jobs.Insert(t.Context(), forged, nil); err != nil {
		t.Fatal(err)
	}
	s.work(t, bankSays(t, func(w http.ResponseWriter, r *http.Request) { tell(w, r, http.StatusOK, `{"serial": "B1"}`) }))
	s.awaitJobs(t)
	rows, _ := s.pool.Query(t.Context(), `SELECT metadata -> 'output' FROM shop_queue.river_job WHERE state = 'cancelled' AND kind = $1`, forged.Kind())
	output, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[payment.Outcome])
	if err != nil || !strings.Contains(output.Refused, "another request") {
		t.Errorf("got %+v, %v", output, err)
	}
}

// The reference is what the bank knows a payment by: changing how it is made pays everything
// that is under way once more.
func TestReferenceIsFrozen(t *testing.T) {
	t.Parallel()
	if got := payment.Reference("m1", "k1"); got != "R4be076c1c81122cfaf2939c889a92a3d03" {
		t.Errorf("got %s", got)
	}
	if payment.Reference("ab", "c") == payment.Reference("a", "bc") {
		t.Error("two pairs run together")
	}
	if n := len(payment.Reference(strings.Repeat("m", 255), strings.Repeat("k", 255))); n != 35 {
		t.Errorf("%d characters", n)
	}
}
