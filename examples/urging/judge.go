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
	"github.com/pgonce/pgonce/examples/urging/urges"
)

// window is an urge as the database has it, with its place among those of its ticket.
type window struct {
	ID, Ticket int64
	Round      int // from 0, by time
	EndsAt     time.Time
	State      urges.State
	Receipt    *string
	Users      []string
	LatestIsIt bool // latest_at is that of the last sub-record
}

// books is what the database and the push service say after a storm.
type books struct {
	windows  []window
	effects  int               // distinct sub-records
	receipts map[string]string // what was pushed, by reference
}

const sqlWindows = `
SELECT u.id, u.ticket, (row_number() OVER (PARTITION BY u.ticket ORDER BY u.opened_at) - 1)::int, u.ends_at, u.state, u.receipt,
       coalesce((SELECT array_agg(r.user_id) FROM urging.urger r WHERE r.urge = u.id), '{}'),
       u.latest_at IS NOT DISTINCT FROM (SELECT max(r.at) FROM urging.urger r WHERE r.urge = u.id)
FROM urging.urge u WHERE u.ticket = ANY($1)`

func (s *storm) readBooks(ctx context.Context) (books, error) {
	b := books{receipts: s.push.receipts()}
	rows, _ := s.Pool.Query(ctx, sqlWindows, s.tickets)
	var err error
	if b.windows, err = pgx.CollectRows(rows, pgx.RowToStructByPos[window]); err != nil {
		return b, err
	}
	const distinct = `
SELECT count(DISTINCT (u.ticket, u.opened_at, r.user_id)) FROM urging.urger r JOIN urging.urge u ON u.id = r.urge WHERE u.ticket = ANY($1)`
	return b, s.Pool.QueryRow(ctx, distinct, s.tickets).Scan(&b.effects)
}

// judge holds what users were told against the database, and the database against what was pushed.
func (s *storm) judge(answers []answer, b books) *demo.Verdict {
	v, rounds := &demo.Verdict{Name: "urging", Effects: b.effects}, s.windows
	known := map[[2]int]window{} // by round and ticket
	number := map[int64]int{}
	for n, id := range s.tickets {
		number[id] = n
	}
	for _, w := range b.windows {
		known[[2]int{w.Round, number[w.Ticket]}] = w
		s.judgeWindow(v, w, rounds, number[w.Ticket], b.receipts)
	}
	if want := rounds * len(s.tickets); len(b.windows) != want {
		v.Wrong("%d urges are in the database, want one for each of %d tickets and %d windows", len(b.windows), len(s.tickets), rounds)
	}
	if want := rounds * len(s.tickets) * s.users; b.effects != want {
		v.Wrong("%d sub-records are in the database, want %d", b.effects, want)
	}
	s.judgeAnswers(v, answers, known, func(round int) time.Duration { return time.Duration(rounds-1-round) * urges.Window })
	return v
}

// judgeWindow: one sub-record for each user, and one push.
func (s *storm) judgeWindow(v *demo.Verdict, w window, rounds, ticket int, receipts map[string]string) {
	if w.Round >= rounds {
		v.Wrong("ticket %d has more than one urge in a window", ticket)
	}
	users := map[string]bool{}
	for _, user := range w.Users {
		if users[user] {
			v.Wrong("%s is twice in urge %d", user, w.ID)
		}
		users[user] = true
	}
	if len(users) != s.users {
		v.Wrong("%d users are in urge %d, want %d", len(users), w.ID, s.users)
	}
	if !w.LatestIsIt {
		v.Wrong("the latest time of urge %d is not that of its last user", w.ID)
	}
	receipt, pushed := receipts[fmt.Sprintf("urge-%d", w.ID)]
	switch {
	case s.undeliverable(ticket) && (pushed || w.State != urges.Undeliverable):
		v.Wrong("nobody could be told of urge %d, the database says %q", w.ID, w.State)
	case !s.undeliverable(ticket) && (!pushed || w.State != urges.Pushed || w.Receipt == nil || *w.Receipt != receipt):
		v.Wrong("urge %d was pushed under %q, the database has %q", w.ID, receipt, w.State)
	}
}

// judgeAnswers: everybody was told of the right urge, and the first time not that he had urged already; "next" is the end of the
// window, which age has moved since.
func (s *storm) judgeAnswers(v *demo.Verdict, answers []answer, known map[[2]int]window, aged func(round int) time.Duration) {
	first, successes := map[[3]int]int{}, 0
	for _, a := range answers {
		who := fmt.Sprintf("%s at ticket %d, round %d", userName(a.user), a.ticket, a.round)
		w := known[[2]int{a.round, a.ticket}]
		switch {
		case a.ticket < 0 && a.status == http.StatusNotFound:
			v.Conflicts++
		case a.ticket >= 0 && (a.status == http.StatusOK || a.status == http.StatusCreated):
			successes++
			if a.told.Urge != w.ID || !a.told.Next.Equal(w.EndsAt.Add(aged(a.round))) {
				v.Wrong("%s: told urge %d, next at %v; the database has %d, %v", who, a.told.Urge, a.told.Next, w.ID, w.EndsAt)
			}
			if a.told.Again != (a.status == http.StatusOK) || a.cached && !a.told.Again {
				v.Wrong("%s: status %d, again: %t", who, a.status, a.told.Again)
			}
			if !a.told.Again {
				first[[3]int{a.round, a.ticket, a.user}]++
			}
		default:
			v.Failed++
			v.Wrong("%s: ended with status %d", who, a.status)
		}
	}
	for who, n := range first {
		if n > 1 {
			v.Wrong("%s at ticket %d, round %d: told %d times that it was his first", userName(who[2]), who[1], who[0], n)
		}
	}
	v.Replays = successes - v.Effects
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
	s.tell.Say("%d users urge %d tickets, %d times each, at %d instances, seed %d", s.users, len(s.tickets), s.Duplicates, instances, s.Seed)
	all, err := s.blowAll(ctx, func(ctx context.Context) error { return errors.Join(s.settle(ctx), s.age(ctx, urges.Window)) })
	if err == nil {
		err = s.settle(ctx)
	}
	if err != nil {
		return err
	}
	took := s.tell.Took()
	s.Close() // the push service too: what its slow calls still push must be in its ledger
	b, err := s.readBooks(ctx)
	if err != nil {
		return err
	}
	v := s.judge(all, b)
	s.report(v, all, b, took, out)
	return v.Err()
}

func (s *storm) report(v *demo.Verdict, answers []answer, b books, took time.Duration, out io.Writer) {
	cached, again := 0, 0
	for _, a := range answers {
		if a.cached {
			cached++
		}
		if a.told.Again {
			again++
		}
	}
	demo.Table(out, [][2]string{
		{"users, tickets, windows", fmt.Sprintf("%d, %d, %d, in %.1f s", s.users, len(s.tickets), s.windows, took.Seconds())},
		{"HTTP attempts", fmt.Sprint(s.Crowd.Attempts.Load())},
		{"  told to come again (503)", fmt.Sprint(s.Crowd.Busy.Load())},
		{"  broken connections", fmt.Sprint(s.Crowd.Broken.Load())},
		{"server processes terminated", fmt.Sprint(s.Faults.Terminated())},
		{"jobs delivered again", fmt.Sprint(s.Faults.Again())},
		{"", ""},
		{"urges", fmt.Sprint(len(b.windows))},
		{"sub-records", fmt.Sprint(b.effects)},
		{"pushes", fmt.Sprint(len(b.receipts))},
		{"told \"already urged\"", fmt.Sprint(again)},
		{"  of them without the database", fmt.Sprint(cached)},
		{"tickets that there are not, refused", fmt.Sprint(v.Conflicts)},
	})
	fmt.Fprintf(out, "the push service was %s\n", s.push.Misbehaved())
	v.Print(out)
}
