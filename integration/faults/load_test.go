//go:build linux

package faults_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/statemachine"
)

// Effects are wide, so that a disk is soon full.
const tables = `
CREATE TABLE effect (name text NOT NULL, receipt text NOT NULL, wide text NOT NULL DEFAULT repeat('x', 1500));
CREATE TABLE booked (name text NOT NULL, receipt text NOT NULL, wide text NOT NULL DEFAULT repeat('x', 1500));
CREATE TABLE orders (id bigint PRIMARY KEY, state text NOT NULL, since timestamptz NOT NULL DEFAULT clock_timestamp())`

var (
	refund = idem.Op{Name: "refund.create", ReplayFor: idem.Forever, RememberFor: idem.Forever}
	remit  = idem.Op{Name: "remittance.send", ReplayFor: idem.Forever, RememberFor: idem.Forever}

	pay   = statemachine.NewEvent[string]("pay")
	lapse = statemachine.NewEvent[string]("lapse")
	order = statemachine.MustNew("order", statemachine.Initial("unpaid"), statemachine.Final("paid", "lapsed"),
		statemachine.From("unpaid").On(pay).To("paid"), statemachine.From("unpaid").After(time.Hour).On(lapse).To("lapsed"))
)

// service is a program with its stores.
type service struct {
	pool   *pgxpool.Pool
	keys   *idem.Store[pgx.Tx]
	orders *statemachine.Binding[int64, string, pgx.Tx]
	leases *dblock.Client[pgx.Tx]

	mu       sync.Mutex
	receipts map[string]string          // that clients were told, by key
	bank     map[string]map[string]bool // references under which each remittance was paid
	errs     map[string]int             // how often what was said
	strange  []error
}

func newService(t *testing.T, pool *pgxpool.Pool) *service {
	t.Helper()
	s := &service{pool: pool, receipts: map[string]string{}, bank: map[string]map[string]bool{}, errs: map[string]int{}}
	db := pgxdriver.New(pool)
	var err [3]error
	s.keys, err[0] = idem.New(db, &idem.Config{Lease: 3 * time.Second})
	s.orders, err[1] = statemachine.Bind[int64](order, db, statemachine.Table{Name: "orders", Since: "since"})
	s.leases, err[2] = dblock.NewLeases(t.Context(), db, &dblock.Config{TTL: 3 * time.Second})
	if err := errors.Join(err[:]...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.leases.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *service) refund(ctx context.Context, name string) (idem.Result[string], error) {
	return idem.Do(ctx, s.keys, refund.Key("m", name), idem.Bytes([]byte(name)), func(ctx context.Context, tx pgx.Tx) (string, error) {
		receipt := rand.Text()
		_, err := tx.Exec(ctx, `INSERT INTO effect VALUES ($1, $2)`, name, receipt)
		return receipt, err
	})
}

func (s *service) remit(ctx context.Context, name string) (idem.Result[string], error) {
	return idem.RunSteps(ctx, s.keys, remit.Key("m", name), idem.Bytes([]byte(name)), name, s.remitting(nil))
}

// remitting pays at a bank that pays each reference once. at is called there.
func (s *service) remitting(at func(context.Context)) func(context.Context, *idem.Run[pgx.Tx], string) (string, error) {
	return func(ctx context.Context, run *idem.Run[pgx.Tx], name string) (string, error) {
		if _, err := idem.Step(ctx, run, "pay", func(ctx context.Context, reference string) (string, error) {
			s.mu.Lock()
			if s.bank[name] == nil {
				s.bank[name] = map[string]bool{}
			}
			s.bank[name][reference] = true
			s.mu.Unlock()
			if at != nil {
				at(ctx)
			}
			return reference, nil
		}); err != nil {
			return "", err
		}
		return idem.StepTx(ctx, run, "book", func(ctx context.Context, tx pgx.Tx) (string, error) {
			receipt := rand.Text()
			_, err := tx.Exec(ctx, `INSERT INTO booked VALUES ($1, $2)`, name, receipt)
			return receipt, err
		})
	}
}

// once does one thing, and reports whether there is no sense in repeating it: it was acknowledged, as a rule.
func (s *service) once(ctx context.Context, i int) bool {
	name := strconv.Itoa(i)
	var receipt string
	var err error
	switch i % 4 {
	case 0, 1:
		var res idem.Result[string]
		res, err = s.refund(ctx, name)
		receipt = res.Value
	case 2:
		var res idem.Result[string]
		res, err = s.remit(ctx, name)
		receipt = res.Value
	case 3:
		if _, err = s.orders.Create(ctx, int64(i), "unpaid"); err == nil {
			_, err = s.orders.Fire(ctx, int64(i), pay)
		}
		if err == nil {
			err = s.guard(ctx, name)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		class := s.class(err)
		s.errs[class]++
		return class == "strange" // which no repeat makes better, and the audit reports
	}
	if first, ok := s.receipts[name]; ok && first != receipt {
		s.strange = append(s.strange, fmt.Errorf("%s was answered %q and %q", name, first, receipt))
	}
	s.receipts[name] = receipt
	return true
}

// guard takes a lease and gives it back.
func (s *service) guard(ctx context.Context, name string) error {
	lock, err := s.leases.TryAcquire(ctx, dblock.Key{Space: "order", ID: name}, nil)
	if err != nil {
		return err
	}
	return lock.Release(ctx)
}

// class is what an error says to the program that gets it.
func (s *service) class(err error) string {
	var full *pgconn.PgError
	switch {
	case errors.Is(err, idem.ErrUnknownOutcome), errors.Is(err, statemachine.ErrUnknownOutcome):
		return "unknown outcome"
	case errors.Is(err, idem.ErrUnavailable): // of all packages
		return "unavailable"
	case errors.As(err, &full) && full.Code == "53100":
		return "disk full"
	case errors.Is(err, idem.ErrInFlight), errors.Is(err, dblock.ErrLost), errors.Is(err, dblock.ErrNotAcquired), errors.Is(err, idem.ErrLeaseLost):
		return "busy"
	}
	s.strange = append(s.strange, err)
	return "strange"
}

// said is how often an error of a class was met.
func (s *service) said(class string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.errs[class]
}

func (s *service) acknowledged() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.receipts)
}

// run does one thing after the other, again and again until each is acknowledged, and stops beginning when it is told to. The
// wait between two attempts is over when the load is.
func (s *service) run(ctx context.Context, stop <-chan struct{}) {
	const workers = 8
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; ; i += workers {
				select {
				case <-stop:
					return
				default:
				}
				for !s.once(ctx, i) {
					select {
					case <-ctx.Done():
						return
					case <-time.After(20 * time.Millisecond):
					}
				}
			}
		})
	}
	wg.Wait()
}

// audit compares what clients were told with what is there, when everything that was begun has ended.
func (s *service) audit(t *testing.T) (lost, doubled, alone int) {
	t.Helper()
	effects := map[string]string{}
	rows, _ := s.pool.Query(t.Context(), `SELECT name, receipt FROM effect UNION ALL SELECT name, receipt FROM booked
		UNION ALL SELECT id::text, '' FROM orders WHERE state = 'paid'`)
	var name, receipt string
	if _, err := pgx.ForEachRow(rows, []any{&name, &receipt}, func() error {
		if _, twice := effects[name]; twice {
			doubled++
		}
		effects[name] = receipt
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for name, receipt := range s.receipts {
		if there, ok := effects[name]; !ok || there != receipt {
			lost++
		}
	}
	for _, references := range s.bank {
		if len(references) > 1 {
			doubled++
		}
	}
	alone = int(number(t, s.pool, `SELECT count(*) FROM (SELECT name FROM effect UNION ALL SELECT name FROM booked) e
		FULL JOIN (SELECT id FROM pgonce.idem_record) r ON r.id = e.name WHERE r.id IS NULL OR e.name IS NULL`))
	for b, err := range s.orders.VerifyHistory(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		t.Log(b)
		alone++
	}
	doubled += int(number(t, s.pool, `SELECT count(*) FROM (SELECT 1 FROM pgonce.transition WHERE event = 'pay' AND outcome = 0 GROUP BY entity HAVING count(*) > 1) AS twice`))
	for _, err := range s.strange {
		t.Error(err)
	}
	return lost, doubled, alone
}
