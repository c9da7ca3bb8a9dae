//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/examples/paycallback/callback"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/statemachine"
	"github.com/pgonce/pgonce/statemachine/smtest"
)

func newService(t *testing.T) (*pgtest.DB, *ground, *callback.Service) {
	t.Helper()
	db, g := newGround(t)
	service, err := callback.NewService(t.Context(), g.pool, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	db.Exec(t, `INSERT INTO orders.purchase (id, shop, amount_cents) VALUES (1, 's', 1250), (2, 's', 1250), (3, 's', 1250)`)
	if err := callback.CloseAll(t.Context(), g.pool, []int64{3}); err != nil {
		t.Fatal(err)
	}
	return db, g, service
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	db, _, service := newService(t)
	for i, tc := range []struct {
		body   string
		status int
	}{
		{`{"order": 1, "amount_cents": 1251, "transaction": "T1"}`, http.StatusUnprocessableEntity},
		{`{"order": 1, "amount_cents": 1250, "transaction": "T1"}`, http.StatusOK},
		{`{"order": 1, "amount_cents": 1250, "transaction": "T1"}`, http.StatusOK},
		{`{"order": 1, "amount_cents": 1251, "transaction": "T1"}`, http.StatusUnprocessableEntity},
		{`{"order": 1, "amount_cents": 1250, "transaction": "T2"}`, http.StatusUnprocessableEntity}, // paid twice by the customer: for a person
		{`{"order": 2, "amount_cents": 1250, "transaction": "T1"}`, http.StatusUnprocessableEntity}, // has paid for order 1
		{`{"order": 3, "amount_cents": 1250, "transaction": "T3"}`, http.StatusConflict},
		{`{"order": 4, "amount_cents": 1250, "transaction": "T4"}`, http.StatusNotFound},
		{`{"order": 1, "amount_cents": -1, "transaction": "T1"}`, http.StatusBadRequest},
		{`{"order": 1, "amount_cents": 1250}`, http.StatusBadRequest},
		{`nonsense`, http.StatusBadRequest},
		{strings.Repeat("x", 1<<17), http.StatusBadRequest},
	} {
		w := httptest.NewRecorder()
		service.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/callbacks", strings.NewReader(tc.body)))
		if w.Code != tc.status {
			t.Errorf("%d: %.60s: got %d %s, want %d", i, tc.body, w.Code, w.Body, tc.status)
		}
	}
	if n := db.Int(t, `SELECT count(*) FROM orders_queue.river_job`); n != 3 {
		t.Errorf("%d jobs, want 3", n)
	}
}

// Between the commit and the push there is nothing but the database: the service is gone, no worker runs, and nothing is lost. What undoes the
// transition undoes the jobs.
func TestNothingIsLostBetweenCommitAndPush(t *testing.T) {
	t.Parallel()
	db, g, service := newService(t)
	db.Exec(t, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$;
		CREATE TRIGGER refuse BEFORE INSERT ON orders_queue.river_job FOR EACH ROW WHEN (NEW.kind = 'schedule') EXECUTE FUNCTION refuse()`)
	paid := callback.Callback{Order: 1, AmountCents: 1250, Transaction: "T1"}
	if moved, err := service.Paid(t.Context(), paid); err == nil || moved || errors.Is(err, statemachine.ErrConflict) {
		t.Fatalf("without the third job: %t, %v", moved, err)
	}
	if n := db.Int(t, `SELECT count(*) FROM orders.purchase WHERE state = 'paid'`) + db.Int(t, `SELECT count(*) FROM orders_queue.river_job`); n != 0 {
		t.Fatalf("%d rows are left of what was rolled back", n)
	}
	db.Exec(t, `DROP TRIGGER refuse ON orders_queue.river_job`)
	if moved, err := service.Paid(t.Context(), paid); err != nil || !moved {
		t.Fatalf("%t, %v", moved, err)
	}
	o, err := openOthers(false, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	queue, err := callback.NewQueue(g.pool, callback.NewOthers(o.URL(), 8*time.Second), slog.New(slog.DiscardHandler))
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
	pgtest.Eventually(t, "every job is done", func() bool {
		return db.Int(t, `SELECT count(*) FROM orders_queue.river_job WHERE finalized_at IS NULL`) == 0
	})
	if got, want := fmt.Sprint(o.heard()), "map[notify:map[1:1] push:map[1:1] schedule:map[1:1]]"; got != want {
		t.Errorf("told %s, want %s", got, want)
	}
}

// The machine holds, by every way to write.
func TestMachineHolds(t *testing.T) {
	t.Parallel()
	_, g := newGround(t)
	db := pgxdriver.New(g.pool)
	flow, err := statemachine.Bind[int64](callback.Flow, db, callback.Table)
	if err != nil {
		t.Fatal(err)
	}
	smtest.Run(t, db, flow, func(ctx context.Context, _ callback.State) (id int64, err error) {
		err = g.pool.QueryRow(ctx, `INSERT INTO orders.purchase (shop, amount_cents) VALUES ('s', 100) RETURNING id`).Scan(&id)
		return id, err
	}, &smtest.Config[callback.State]{
		Options: func(_ callback.State, ev statemachine.Event[callback.State]) []statemachine.Option {
			if ev == callback.Pay {
				return []statemachine.Option{statemachine.SetExpr("transaction", "'T' || id"), statemachine.SetExpr("paid_at", "statement_timestamp()")}
			}
			return nil
		},
		Racers: 4,
	})
}
