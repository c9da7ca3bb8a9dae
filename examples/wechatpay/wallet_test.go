package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/examples/wechatpay/wallet"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// till is two services in this process, an order, and a platform that answers when it is let.
type till struct {
	db       *pgtest.DB
	services [2]*wallet.Service
	asked    atomic.Int64
	let      chan struct{}
	overruns atomic.Int64
	lines    lockBook
}

func paid() wallet.Callback {
	return wallet.Callback{Number: "o1", Transaction: "t1", AmountCents: 100}
}

func newTill(t *testing.T, cfg wallet.Config) *till {
	t.Helper()
	db, _ := newGround(t)
	db.Exec(t, `INSERT INTO wechatpay.wallet_order (number, wallet, amount_cents) VALUES ('o1', 'w', 100)`)
	k := &till{db: db, let: make(chan struct{})}
	platform := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k.asked.Add(1)
		select {
		case <-k.let:
		case <-r.Context().Done():
		}
		_ = json.NewEncoder(w).Encode(paid()) // the client may have given up
	}))
	t.Cleanup(platform.Close)
	cfg.Observe = func(e dblock.Event) {
		if e.Kind == dblock.Overrun {
			k.overruns.Add(1)
		}
	}
	cfg.Logger = slog.New(&lineCounter{slog.DiscardHandler, &k.lines})
	pools := []*pgxpool.Pool{db.Pool(t), db.Pool(t)} // closed, and checked, when both services are
	for i, pool := range pools {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		service, err := wallet.NewService(t.Context(), pool, wallet.NewPlatform(platform.URL, client), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = service.Close(context.WithoutCancel(t.Context())) })
		k.services[i] = service
	}
	return k
}

// A holder that takes longer than expected, and longer than others wait for him, is reported and keeps the lock: who gives up
// waiting leaves him alone, and the platform is asked once.
func TestOverrunKeepsTheLock(t *testing.T) {
	t.Parallel()
	k := newTill(t, wallet.Config{MaxWait: 50 * time.Millisecond, Expect: time.Millisecond})
	// The first one has to get the lock within the wait, on a loaded machine too.
	done := make(chan error, 1)
	go func() {
		for {
			err := k.services[0].Callback(t.Context(), paid())
			if !errors.Is(err, dblock.ErrNotAcquired) {
				done <- err
				return
			}
		}
	}()
	pgtest.Eventually(t, "the platform is asked", func() bool { return k.asked.Load() == 1 })
	for range 3 {
		for _, s := range k.services {
			if err := s.Callback(t.Context(), paid()); !errors.Is(err, dblock.ErrNotAcquired) {
				t.Errorf("while another one has the lock: %v", err)
			}
		}
	}
	pgtest.Eventually(t, "the overrun is told and logged", func() bool {
		k.lines.mu.Lock()
		defer k.lines.mu.Unlock()
		return k.overruns.Load() == 1 && k.lines.lines == 1
	})
	close(k.let)
	if err := <-done; err != nil {
		t.Errorf("the holder: %v", err)
	}
	if n := k.asked.Load(); n != 1 {
		t.Errorf("the platform was asked %d times", n)
	}
	if n := k.db.Int(t, `SELECT count(*) FROM wechatpay_queue.river_job`); n != 1 {
		t.Errorf("%d messages", n)
	}
}

// The state and the message are one commit: many callbacks make one message. Callbacks that are not true are refused, before and
// after.
func TestCallbacksMakeOneMessage(t *testing.T) {
	t.Parallel()
	k := newTill(t, wallet.Config{MaxWait: time.Minute})
	close(k.let)
	lies := []wallet.Callback{{Number: "o1", Transaction: "t1", AmountCents: 101}, {Number: "o1", Transaction: "t2", AmountCents: 100}}
	refused := func() {
		t.Helper()
		for _, lie := range lies {
			if err := k.services[0].Callback(t.Context(), lie); !errors.Is(err, wallet.ErrNotPaid) {
				t.Errorf("%+v: %v", lie, err)
			}
		}
	}
	refused()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := k.services[i%2].Callback(t.Context(), paid()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	refused()
	if n := k.db.Int(t, `SELECT count(*) FROM wechatpay_queue.river_job`); n != 1 {
		t.Errorf("%d messages", n)
	}
	unknown := wallet.Callback{Number: "o2", Transaction: "t", AmountCents: 1}
	if err := k.services[0].Callback(t.Context(), unknown); !errors.Is(err, wallet.ErrUnknownOrder) {
		t.Errorf("an unknown order: %v", err)
	}
	if err := k.services[0].Callback(t.Context(), wallet.Callback{}); !errors.Is(err, wallet.ErrBadCallback) {
		t.Errorf("nothing: %v", err)
	}
}

// Only who has a lock can release it: what an earlier holder does once more is not about the next one's.
func TestOnlyTheOwnerReleases(t *testing.T) {
	t.Parallel()
	_, g := newGround(t)
	locks, err := dblock.New(t.Context(), pgxdriver.New(g.Pool), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = locks.Close(context.WithoutCancel(t.Context())) }()
	key := dblock.Key{Space: "wechatpay.order", ID: "o1"}
	first, err := locks.Acquire(t.Context(), key, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	second, err := locks.Acquire(t.Context(), key, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = first.Release(t.Context()) // once more
	if err := second.Err(); err != nil {
		t.Errorf("the second holder: %v", err)
	}
	if _, err := locks.TryAcquire(t.Context(), key, nil); !errors.Is(err, dblock.ErrNotAcquired) {
		t.Errorf("a third: %v", err)
	}
	if err := second.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

// The two machines keep to each other: nobody makes an order paid that was not consumed, by plain SQL neither.
func TestStatesGoTogether(t *testing.T) {
	t.Parallel()
	db, g := newGround(t)
	pool := g.Pool
	db.Exec(t, `INSERT INTO wechatpay.wallet_order (number, wallet, amount_cents) VALUES ('o1', 'w', 100)`)
	for _, update := range []string{
		`UPDATE wechatpay.wallet_order SET payment = 'paid', paid_at = now()`,
		`UPDATE wechatpay.wallet_order SET consumption = 'consumed', transaction = 't1'`,
		`UPDATE wechatpay.wallet_order SET consumption = 'enqueued'`,
	} {
		_, err := pool.Exec(t.Context(), update)
		if refusal, found := errors.AsType[*pgconn.PgError](err); !found || refusal.Code != "23514" {
			t.Errorf("%s: %v, want it refused", update, err)
		}
	}
}
