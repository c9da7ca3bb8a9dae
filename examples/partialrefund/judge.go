package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/partialrefund/refunds"
)

// entry is a refund as the database has it.
type entry struct {
	ApplyID     string
	Order       string
	Kind        refunds.Kind
	AmountCents int64
	State       refunds.State
	Serial      *string
	Agreement   *string
}

// books is what the refund service and the database say after a storm.
type books struct {
	payments []payment
	refunds  []entry
	orders   map[string]int64 // cents that were given back, as the orders have it
	effects  int              // distinct apply ids that were committed
}

func (s *storm) readBooks(ctx context.Context) (books, error) {
	b := books{payments: s.bank.ledger(), orders: map[string]int64{}}
	rows, _ := s.Pool.Query(ctx, `
SELECT r.apply_id, r.order_id, r.kind, r.amount_cents, r.state, r.serial, a.id
FROM partialrefund.refund r LEFT JOIN partialrefund.agreement a ON a.apply_id = r.apply_id WHERE starts_with(r.order_id, $1)`, s.id)
	var err error
	if b.refunds, err = pgx.CollectRows(rows, pgx.RowToStructByPos[entry]); err != nil {
		return b, err
	}
	orders, _ := s.Pool.Query(ctx, `SELECT id, refunded_cents FROM partialrefund.shop_order WHERE starts_with(id, $1)`, s.id)
	var (
		id    string
		cents int64
	)
	if _, err := pgx.ForEachRow(orders, []any{&id, &cents}, func() error { b.orders[id] = cents; return nil }); err != nil {
		return b, err
	}
	return b, s.Pool.QueryRow(ctx, `SELECT count(DISTINCT apply_id) FROM partialrefund.refund WHERE starts_with(order_id, $1)`, s.id).Scan(&b.effects)
}

// judge holds what was told against the database, and the database against the refund service's ledger.
func (s *storm) judge(answers []answer, b books) *demo.Verdict {
	v := &demo.Verdict{Name: "partialrefund", Effects: b.effects}
	known := map[string]entry{}
	for _, e := range b.refunds {
		known[e.ApplyID] = e
	}
	successes := 0
	for _, a := range answers {
		switch {
		case a.skipped:
		case a.status == http.StatusAccepted && a.kind <= agreeAlone:
			successes++
			s.judgeSuccess(v, a, known)
		case s.mayBeRefused(a):
			v.Conflicts++
		default:
			v.Failed++
			v.Wrong("request %d for %s ended with status %d: %+v", a.kind, s.applyID(a.order, a.n), a.status, a)
		}
	}
	v.Replays = successes - v.Effects
	s.judgeMoney(v, b, known)
	s.judgeRefusals(v, answers, b)
	return v
}

// mayBeRefused: what is more than what was left, and says so; another amount; an order that there is not.
func (s *storm) mayBeRefused(a answer) bool {
	switch a.kind {
	case apply:
		return a.status == http.StatusUnprocessableEntity && a.left >= 0 && a.left < amountOf(a.n)
	case agreeAlone:
		return a.status == http.StatusUnprocessableEntity && a.left >= 0 && a.left < aloneOf(a.order)
	case otherAmount:
		return a.status == http.StatusUnprocessableEntity
	case noOrder:
		return a.status == http.StatusNotFound
	case agree:
	}
	return false
}

// judgeSuccess: what was acknowledged is there; an agreement is about a refund that was there, or makes one if there was none.
func (s *storm) judgeSuccess(v *demo.Verdict, a answer, known map[string]entry) {
	e, found := known[a.receipt.ApplyID]
	r := a.receipt
	if !found || e.Order != s.order(a.order) || e.Order != r.Order || e.AmountCents != r.AmountCents || e.Kind != r.Kind {
		v.Wrong("%+v was acknowledged, the database has %+v", r, e)
	}
	switch a.kind {
	case apply:
		if r.ApplyID != s.applyID(a.order, a.n) || r.AmountCents != amountOf(a.n) || r.Joined {
			v.Wrong("%s was acknowledged as %+v", s.applyID(a.order, a.n), r)
		}
	case agree:
		if want := s.agreement(a).ID; !r.Joined || e.Kind == refunds.BySeller || e.Agreement == nil || *e.Agreement != want || r.AmountCents != amountOf(a.n) {
			v.Wrong("agreement %s should have joined a refund: %+v, %+v", want, r, e)
		}
	case agreeAlone:
		if r.Joined || e.Kind != refunds.BySeller || r.AmountCents != aloneOf(a.order) {
			v.Wrong("the agreement to what nobody asked for at %s was acknowledged as %+v", e.Order, r)
		}
	case otherAmount, noOrder:
	}
}

// judgeMoney: of each order no more left than was paid, of each apply id it left once, and the database says so.
func (s *storm) judgeMoney(v *demo.Verdict, b books, known map[string]entry) {
	left, paid := map[string]int64{}, map[string]int{}
	for _, p := range b.payments {
		e, found := known[p.Reference]
		if !found || e.State != refunds.Refunded || e.Serial == nil || *e.Serial != p.Serial || e.AmountCents != p.AmountCents {
			v.Wrong("%+v left, the database has %+v", p, e)
		}
		left[e.Order] += p.AmountCents
		paid[p.Reference]++
	}
	sum := map[string]int64{}
	for _, e := range b.refunds {
		want := 1
		if e.State == refunds.Refused {
			want = 0
		}
		if paid[e.ApplyID] != want || e.State != refunds.Refunded && e.State != refunds.Refused {
			v.Wrong("%s is %q and was paid %d times", e.ApplyID, e.State, paid[e.ApplyID])
		}
		if e.State == refunds.Refunded {
			sum[e.Order] += e.AmountCents
		}
	}
	for n := range s.orders {
		order := s.order(n)
		if cents := b.orders[order]; left[order] > s.paidFor() || left[order] != cents || sum[order] != cents {
			v.Wrong("%s: %d cents were paid, %d left, %d by the refunds, %d by the order", order, s.paidFor(), left[order], sum[order], cents)
		}
	}
}

// judgeRefusals: who was told that too little is left was told the truth. Where nothing is ever given back, as much was left at the end
// at most as anybody was told.
func (s *storm) judgeRefusals(v *demo.Verdict, answers []answer, b books) {
	for _, a := range answers {
		if a.kind > agreeAlone || a.status != http.StatusUnprocessableEntity || closed(a.order) {
			continue
		}
		if atEnd := s.paidFor() - b.orders[s.order(a.order)]; a.left < atEnd {
			v.Wrong("%s: told that %d are left, at the end %d were", s.order(a.order), a.left, atEnd)
		}
	}
}

// storming runs the storm and prints the report.
func storming(ctx context.Context, opt options, g *demo.Ground, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	s, err := prepare(ctx, opt, g, out, right)
	if err != nil {
		return err
	}
	defer s.Close()
	s.tell.Say("%d orders, %d refunds of each, asked for %d times, at %d instances, seed %d", s.orders, s.refunds, s.Duplicates, instances, s.Seed)
	all := s.gust(0, s.Duplicates, false)
	if err := errors.Join(s.blow(ctx, all), s.settle(ctx)); err != nil {
		return err
	}
	late, err := s.again(ctx, all)
	if err != nil {
		return err
	}
	took := s.tell.Took()
	s.Close() // the refund service too: what its slow calls still pay must be in its ledger
	b, err := s.readBooks(ctx)
	if err != nil {
		return err
	}
	all = append(all, late...)
	v := s.judge(all, b)
	s.report(v, all, b, took, out)
	return v.Err()
}

func (s *storm) report(v *demo.Verdict, answers []answer, b books, took time.Duration, out io.Writer) {
	joined, tooMuch, refused, cents := 0, 0, 0, int64(0)
	for _, a := range answers {
		if a.kind <= agreeAlone && a.status == http.StatusUnprocessableEntity {
			tooMuch++
		}
	}
	for _, e := range b.refunds {
		if e.Agreement != nil && e.Kind != refunds.BySeller {
			joined++
		}
		if e.State == refunds.Refused {
			refused++
		}
	}
	for _, p := range b.payments {
		cents += p.AmountCents
	}
	demo.Table(out, [][2]string{
		{"orders", fmt.Sprintf("%d, %s paid for each, in %.1f s", s.orders, demo.Euros(s.paidFor()), took.Seconds())},
		{"HTTP attempts", fmt.Sprint(s.Crowd.Attempts.Load())},
		{"  told to come again (503)", fmt.Sprint(s.Crowd.Busy.Load())},
		{"  broken connections", fmt.Sprint(s.Crowd.Broken.Load())},
		{"server processes terminated", fmt.Sprint(s.Faults.Terminated())},
		{"jobs delivered again", fmt.Sprint(s.Faults.Again())},
		{"", ""},
		{"refunds accepted", fmt.Sprint(b.effects)},
		{"  agreements that joined one", fmt.Sprint(joined)},
		{"  refused by the refund service", fmt.Sprint(refused)},
		{"money that left", fmt.Sprintf("%s in %d payments", demo.Euros(cents), len(b.payments))},
		{"told that too little is left", fmt.Sprint(tooMuch)},
	})
	fmt.Fprintf(out, "the refund service was %s\n", s.bank.Misbehaved())
	v.Print(out)
}
