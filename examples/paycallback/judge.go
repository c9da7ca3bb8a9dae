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
	"github.com/pgonce/pgonce/examples/paycallback/callback"
)

// entry is an order as the database has it.
type entry struct {
	ID          int64
	State       callback.State
	Transaction *string
	Moves       int // to paid, by the history
	Jobs        int // distinct, by the queue
	Enqueued    int // all of them
}

// books is what the database and the others say after a storm.
type books struct {
	orders []entry
	heard  map[string]map[int64]int
}

func readBooks(ctx context.Context, s *storm) (b books, err error) {
	b.heard = s.others.heard()
	rows, _ := s.pool.Query(ctx, `
SELECT o.id, o.state, o.transaction,
       (SELECT count(*) FROM pgonce.transition t WHERE t.machine = 'order' AND t.entity = o.id::text AND t.to_state = 'paid'),
       coalesce(j.kinds, 0), coalesce(j.jobs, 0)
FROM orders.purchase o LEFT JOIN (
    SELECT (args ->> 'order')::bigint AS id, count(DISTINCT kind) AS kinds, count(*) AS jobs FROM orders_queue.river_job GROUP BY 1) j USING (id)
WHERE o.shop = $1 ORDER BY o.id`, s.shop)
	b.orders, err = pgx.CollectRows(rows, pgx.RowToStructByPos[entry])
	return b, err
}

// report is the verdict over a storm.
type report struct {
	demo.Verdict
	storm *storm
	took  time.Duration

	doubles, never int // tellings after the first; orders that are paid and of which somebody was never told
}

// kinds are the jobs of an order.
var kinds = []string{callback.Notify{}.Kind(), callback.Push{}.Kind(), callback.Schedule{}.Kind()}

// judge holds the answers against the orders, and the orders against what the others were told.
func (s *storm) judge(calls []*call, b books) *report {
	r := &report{Verdict: demo.Verdict{Name: "paycallback"}, storm: s}
	for _, e := range b.orders {
		n := int(e.ID - s.first)
		want := entry{ID: e.ID, State: callback.Paid, Moves: 1, Jobs: len(kinds), Enqueued: len(kinds)}
		if s.closed(n) {
			want = entry{ID: e.ID, State: callback.Closed}
		}
		if e.State == callback.Paid {
			r.Effects++
		}
		transaction := ""
		if e.Transaction != nil {
			transaction = *e.Transaction
		}
		e.Transaction = nil
		if expected := map[bool]string{true: fmt.Sprintf("T%d", e.ID)}[want.State == callback.Paid]; e != want || transaction != expected {
			r.Wrong("order %d: got %+v by %q, want %+v by %q", n, e, transaction, want, expected)
		}
		s.judgeTellings(r, n, b.heard)
	}
	if len(b.orders) != s.size() {
		r.Wrong("%d orders are in the database, want %d", len(b.orders), s.size())
	}
	successes := 0
	for _, c := range calls {
		want := http.StatusOK
		switch {
		case s.closed(c.n) && c.forged != genuine:
			want = http.StatusUnprocessableEntity
		case s.closed(c.n):
			want = http.StatusConflict
		case c.forged != genuine:
			want = http.StatusUnprocessableEntity
		}
		refused := want != http.StatusOK
		switch {
		case refused && (c.status == http.StatusConflict || c.status == http.StatusUnprocessableEntity):
			r.Conflicts++
		case !refused && c.status == want:
			successes++
		default:
			r.Failed++
			r.Wrong("a callback for order %d (forgery %d) was answered with %d, want %d", c.n, c.forged, c.status, want)
		}
	}
	r.Replays = successes - r.Effects
	return r
}

// judgeTellings: each of the others was told of a paid order once, of a closed one never.
func (s *storm) judgeTellings(r *report, n int, heard map[string]map[int64]int) {
	want, missing := 1, false
	if s.closed(n) {
		want = 0
	}
	for _, kind := range kinds {
		got := heard[kind][s.first+int64(n)]
		if got > 1 {
			r.doubles += got - 1
		}
		missing = missing || got == 0 && want == 1
		if got != want {
			r.Wrong("order %d: %s was done %d times, want %d", n, kind, got, want)
		}
	}
	if missing {
		r.never++
	}
}

// storming runs the storm against the right way and prints the report.
func storming(ctx context.Context, opt options, g *ground, out io.Writer) error {
	r, err := measure(ctx, opt, g, right, out)
	if err != nil {
		return err
	}
	r.print(out)
	return r.Err()
}

// measure runs a whole storm.
func measure(ctx context.Context, opt options, g *ground, way string, out io.Writer) (*report, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	s, err := prepare(ctx, opt, g, way, out)
	if err != nil {
		return nil, err
	}
	defer s.close()
	s.Say("%d orders, seed %d", s.size(), s.Seed)
	calls, err := s.blow(ctx)
	if err != nil {
		return nil, err
	}
	took := s.Took()
	s.close() // the others too: what their slow calls still do must be counted
	b, err := readBooks(ctx, s)
	if err != nil {
		return nil, err
	}
	var r *report
	if way == right {
		r = s.judge(calls, b)
	} else {
		r = &report{Verdict: demo.Verdict{Name: "original"}, storm: s}
		for n := range s.size() {
			s.judgeTellings(r, n, b.heard)
		}
	}
	r.took = took
	return r, nil
}

// print shows the storm, what is wrong, and last the line that scripts read.
func (r *report) print(w io.Writer) {
	s := r.storm
	demo.Table(w, [][2]string{
		{"callbacks", fmt.Sprintf("for %d orders, in %.1f s", s.size(), r.took.Seconds())},
		{"HTTP attempts", fmt.Sprint(s.attempts.Load())},
		{"  broken connections", fmt.Sprint(s.lost.Load())},
		{"processes killed (SIGKILL)", fmt.Sprintf("%d of %d", s.kills, len(s.fleet()))},
		{"jobs delivered again", fmt.Sprint(s.again)},
		{"  and those taken from the dead", fmt.Sprint(s.jobs.Stuck.Load())},
		{"", ""},
		{"orders paid", fmt.Sprint(r.Effects)},
		{"told twice", fmt.Sprint(r.doubles)},
		{"paid, and somebody was never told", fmt.Sprint(r.never)},
		{"callbacks refused", fmt.Sprint(r.Conflicts)},
	})
	fmt.Fprintf(w, "the others were %s\n", s.others.Misbehaved())
	r.Print(w)
}

// showTheBug runs the original and then the right way, and compares.
func showTheBug(ctx context.Context, opt options, g *ground, out io.Writer) error {
	fmt.Fprintln(out, "== the original: a lock that lives for 5 ms, load, save, notify, push, schedule")
	bad, err := measure(ctx, opt, g, wrong, out)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "== no lock: FireTx and three jobs in one commit")
	good, err := measure(ctx, opt, g, right, out)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%-44s %12s %36s\n", "", "told twice", "paid, and somebody was never told")
	fmt.Fprintf(out, "%-44s %12d %36d\n", "original", bad.doubles, bad.never)
	fmt.Fprintf(out, "%-44s %12d %36d\n\n", "FireTx and InsertManyTx in one commit", good.doubles, good.never)
	good.print(out)
	if bad.doubles == 0 {
		err = errors.New("the original has told nobody twice in this storm, so it shows nothing; try a larger crowd")
	}
	return errors.Join(good.Err(), err)
}
