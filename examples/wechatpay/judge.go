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
	"github.com/pgonce/pgonce/examples/wechatpay/wallet"
)

// entry is an order as the database has it.
type entry struct {
	Number      string
	Payment     wallet.Payment
	Consumption wallet.Consumption
	Transaction *string
	Credits     []int64 // what its wallet got
	Messages    int     // that the service has put into the queue
}

// books is what the database says after a storm.
type books struct {
	entries map[string]entry
	effects int // distinct orders whose wallet has the money
}

func (s *storm) readBooks(ctx context.Context) (books, error) {
	b := books{entries: map[string]entry{}}
	rows, _ := s.Pool.Query(ctx, `
SELECT o.number, o.payment, o.consumption, o.transaction,
       coalesce((SELECT array_agg(c.amount_cents) FROM wechatpay.credit c WHERE c.number = o.number), '{}'),
       (SELECT count(*)::int FROM pgonce.transition t WHERE t.machine = 'wallet consumption' AND t.entity = o.number AND t.event = 'enqueue' AND t.from_state = 'not consumed')
FROM wechatpay.wallet_order o WHERE starts_with(o.number, $1)`, s.id)
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[entry])
	if err != nil {
		return b, err
	}
	for _, e := range all {
		b.entries[e.Number] = e
	}
	return b, s.Pool.QueryRow(ctx, `SELECT count(DISTINCT number) FROM wechatpay.credit WHERE starts_with(number, $1)`, s.id).Scan(&b.effects)
}

// judge holds what the platform was told against the database, and the database against what was paid.
func (s *storm) judge(answers []answer, b books) *demo.Verdict {
	v := &demo.Verdict{Name: "wechatpay", Effects: b.effects}
	successes := 0
	for _, a := range answers {
		refused := map[kind]int{
			dearer: http.StatusUnprocessableEntity, unpaid: http.StatusUnprocessableEntity,
			otherTrade: http.StatusUnprocessableEntity, unknown: http.StatusNotFound,
		}
		switch {
		case a.kind == honest && a.status == http.StatusOK:
			successes++
		case a.kind != honest && a.status == refused[a.kind]:
			v.Conflicts++
		default:
			v.Failed++
			v.Wrong("%s (kind %d) ended with status %d", s.number(a.n), a.kind, a.status)
		}
	}
	v.Replays = successes - v.Effects
	for n := range s.orders {
		s.judgeOrder(v, n, b.entries[s.number(n)])
	}
	s.judgeLocks(v)
	return v
}

// judgeOrder: who has paid has the money in his wallet, once; who has not has nothing.
func (s *storm) judgeOrder(v *demo.Verdict, n int, e entry) {
	switch number := s.number(n); {
	case neverPaid(n):
		if e.Payment != wallet.Unpaid || e.Consumption != wallet.NotConsumed || len(e.Credits) > 0 {
			v.Wrong("%s was never paid, the database has %+v", number, e)
		}
	case len(e.Credits) != 1 || e.Credits[0] != amountOf(n):
		v.Wrong("%s: the wallet got %v, want %d once", number, e.Credits, amountOf(n))
	case e.Payment != wallet.Paid || e.Consumption != wallet.Consumed || e.Transaction == nil || *e.Transaction != "T-"+number:
		v.Wrong("%s is paid and consumed, the database has %+v", number, e)
	case e.Messages != 1:
		v.Wrong("%s was enqueued %d times", number, e.Messages)
	}
}

// judgeLocks: one question at a time for an order, unless its lock was lost; and whoever took longer than expected was told
// of, and kept the lock, or the first would not hold.
func (s *storm) judgeLocks(v *demo.Verdict) {
	s.wire.mu.Lock()
	defer s.wire.mu.Unlock()
	s.locks.mu.Lock()
	defer s.locks.mu.Unlock()
	for number, n := range s.wire.overlaps {
		if !s.locks.lost[number] {
			v.Wrong("%s: the platform was asked %d times while it was being asked, and the lock was not lost", number, n)
		}
	}
	if s.wire.slow > 0 && (s.locks.overruns == 0 || s.locks.lines == 0) {
		v.Wrong("%d questions were slow, %d overruns were told and %d logged", s.wire.slow, s.locks.overruns, s.locks.lines)
	}
	if s.Crowd.Workers > 1 && s.orders > 1 && s.wire.most < 2 {
		v.Wrong("different orders were never at the platform at the same time")
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
	s.tell.Say("%d orders are called back %d times each, at %d instances, seed %d", s.orders, s.Duplicates, instances, s.Seed)
	all := s.gust(0, s.Duplicates)
	if err := errors.Join(s.blow(ctx, all), s.settle(ctx)); err != nil {
		return err
	}
	late, err := s.again(ctx)
	if err != nil {
		return err
	}
	took := s.tell.Took()
	s.Close()
	b, err := s.readBooks(ctx)
	if err != nil {
		return err
	}
	v := s.judge(append(all, late...), b)
	s.report(v, took, out)
	return v.Err()
}

func (s *storm) report(v *demo.Verdict, took time.Duration, out io.Writer) {
	demo.Table(out, [][2]string{
		{"orders called back", fmt.Sprintf("%d by %d at a time, in %.1f s", s.orders, s.Crowd.Workers, took.Seconds())},
		{"HTTP attempts", fmt.Sprint(s.Crowd.Attempts.Load())},
		{"  told to come again (503)", fmt.Sprint(s.Crowd.Busy.Load())},
		{"  broken connections", fmt.Sprint(s.Crowd.Broken.Load())},
		{"server processes terminated", fmt.Sprint(s.Faults.Terminated())},
		{"jobs delivered again", fmt.Sprint(s.Faults.Again())},
		{"", ""},
		{"questions to the platform", fmt.Sprint(s.wire.all)},
		{"  of different orders at a time", fmt.Sprintf("up to %d", s.wire.most)},
		{"locks held for longer than expected", fmt.Sprintf("%d told, %d logged", s.locks.overruns, s.locks.lines)},
		{"orders whose lock was lost", fmt.Sprint(len(s.locks.lost))},
		{"wallets that got their money", fmt.Sprint(v.Effects)},
		{"callbacks refused", fmt.Sprint(v.Conflicts)},
	})
	fmt.Fprintf(out, "the platform was %s\n", s.platform.Misbehaved())
	v.Print(out)
}
