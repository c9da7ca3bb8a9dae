package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/examples/refund/bank"
	"github.com/pgonce/pgonce/examples/refund/payment"
	"github.com/pgonce/pgonce/idem/idemtest"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertest"
	"github.com/riverqueue/river/rivertype"
)

// counter is a pool that counts what there is of a refund.
type counter struct{ *pgxpool.Pool }

func (c counter) refunds(ctx context.Context, number string) (n int64, err error) {
	var jobs int64
	err = c.QueryRow(ctx, `SELECT count(DISTINCT r.id), count(j.id) FROM shop.refund r
		LEFT JOIN shop_queue.river_job j ON j.args ->> 'refund_id' = r.id::text WHERE r.number = $1`, number).Scan(&n, &jobs)
	if err == nil && n != jobs {
		err = fmt.Errorf("%d refunds, %d payouts", n, jobs)
	}
	return n, err
}

// open is what each process opens.
func open(ctx context.Context, url string) (*pgxpool.Pool, *payment.Service, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, nil, err
	}
	cfg.MaxConns = 2
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	service, err := payment.NewService(ctx, pool)
	if err != nil {
		pool.Close()
	}
	return pool, service, err
}

const oneCent = `{"purchase": "p1", "account": "a", "amount_cents": 1}`

// accept asks for a refund over HTTP.
func accept(ctx context.Context, service *payment.Service, number string) (string, error) {
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/refunds", bytes.NewReader([]byte(oneCent)))
	r.Header.Set("X-Merchant", "m1")
	r.Header.Set("Idempotency-Key", number)
	w := httptest.NewRecorder()
	payment.AcceptHTTP(service, slog.New(slog.DiscardHandler))(w, r)
	if w.Code != http.StatusAccepted {
		return "", fmt.Errorf("status %d: %s", w.Code, w.Body)
	}
	return w.Header().Get("Location") + w.Body.String(), nil
}

// taken is how much was taken off the purchase.
func (s *shop) taken(t *testing.T) int64 {
	t.Helper()
	return s.db.Int(t, `SELECT refunded_cents FROM shop.purchase WHERE merchant = 'm1' AND id = 'p1'`)
}

// newCrashingShop has enough to give back.
func newCrashingShop(t *testing.T) *shop {
	t.Helper()
	s := newShop(t)
	s.db.Exec(t, `UPDATE shop.purchase SET paid_cents = 1000000`)
	return s
}

// Wherever the service dies, is cut off or frozen: one refund, one payout to be made, one answer.
func TestAcceptCrashesEverywhere(t *testing.T) {
	t.Parallel()
	s := newCrashingShop(t)
	idemtest.CrashEverywhere(t, s.db.URL, func(ctx context.Context, p *idemtest.Process, number string) (string, error) {
		pool, service, err := open(ctx, p.DatabaseURL())
		if err != nil {
			return "", err
		}
		defer pool.Close()
		return accept(ctx, service, number)
	}, counter{s.pool}.refunds, &idemtest.CrashConfig{Patience: 2 * time.Minute, Parallel: 3})
	if refunds := s.db.Int(t, `SELECT count(*) FROM shop.refund`); s.taken(t) != refunds {
		t.Errorf("%d cents were taken off the purchase for %d refunds", s.taken(t), refunds)
	}
}

// gateway passes requests on to the bank, each as a call of a process.
func gateway(p *idemtest.Process, url string) *httptest.Server {
	client := &http.Client{Transport: p.Transport(&http.Transport{DisableKeepAlives: true})}
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out, err := http.NewRequestWithContext(context.WithoutCancel(r.Context()), r.Method, url+r.URL.Path, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		resp, err := client.Do(out)
		if err != nil {
			panic(http.ErrAbortHandler) // the line is cut
		}
		defer func() { _ = resp.Body.Close() }()
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	}))
}

// payOut works on the payout of a refund, as the queue would have it done, until the refund is settled.
func payOut(ctx context.Context, pool *pgxpool.Pool, bankURL, number string) error {
	work := &payment.Payout{}
	job := &rivertype.JobRow{State: rivertype.JobStateRunning}
	var args []byte
	err := pool.QueryRow(ctx, `UPDATE shop_queue.river_job SET state = 'running' WHERE kind = 'refund.payout' AND finalized_at IS NULL
		AND args ->> 'refund_id' = (SELECT id::text FROM shop.refund WHERE number = $1) RETURNING id, args`, number).Scan(&job.ID, &args)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil // it is done
	}
	if err == nil {
		err = json.Unmarshal(args, work)
	}
	if err != nil {
		return err
	}
	queue, err := payment.NewPublisher(pool)
	if err != nil {
		return err
	}
	payouts, err := payment.NewPayouts(ctx, pool, payment.NewBank(bankURL, 20*time.Second))
	if err != nil {
		return err
	}
	return payouts.Work(rivertest.WorkContext(ctx, queue), &river.Job[payment.Payout]{JobRow: job, Args: *work})
}

// Wherever the worker dies, is cut off from its database or its bank, or frozen: money leaves once, under one serial number.
func TestPayoutCrashesEverywhere(t *testing.T) {
	t.Parallel()
	s := newCrashingShop(t)
	b, err := bank.Open(bank.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	life := func(ctx context.Context, p *idemtest.Process, number string) (string, error) {
		pool, service, err := open(ctx, p.DatabaseURL())
		if err != nil {
			return "", err
		}
		defer pool.Close()
		if _, err := accept(ctx, service, number); err != nil {
			return "", err
		}
		line := gateway(p, b.URL())
		defer line.Close()
		if err := payOut(ctx, pool, line.URL, number); err != nil {
			return "", err
		}
		status, err := service.Status(ctx, "m1", number)
		if err != nil || status.State != payment.Paid {
			return "", fmt.Errorf("not settled: %+v, %w", status, err)
		}
		return *status.BankSerial, nil
	}
	paid := func(_ context.Context, number string) (n int64, _ error) {
		for _, p := range b.Payments() {
			if p.Reference == payment.Reference("m1", number) {
				n++
			}
		}
		return n, nil
	}
	idemtest.CrashEverywhere(t, s.db.URL, life, paid, &idemtest.CrashConfig{Patience: 2 * time.Minute, Parallel: 3})
}
