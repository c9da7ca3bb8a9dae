package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/pgonce/pgonce/examples/internal/crowd"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/urging/urges"
)

// instances is how many of the service there are, each with locks, connections and a cache of its own.
const instances = 3

// storm is a crowd of users who urge.
type storm struct {
	options
	*crowd.Stage
	tell    *demo.Teller
	tickets []int64
	push    *pushService
	queue   *demo.Queue
	later   atomic.Int64 // by how much time was moved, for the clocks of the caches
}

// answer is what became of one request.
type answer struct {
	round, ticket, user int // the number of the ticket, or -1 for one that there is not
	status              int // 0 is no answer
	cached              bool
	told                urges.Answer
}

// prepare makes tickets and starts the push service and whatever serves.
func prepare(ctx context.Context, opt options, g *demo.Ground, out io.Writer, serve func(ctx context.Context, s *storm) error) (s *storm, err error) {
	s = &storm{options: opt, tell: demo.NewTeller(out)}
	s.Stage = &crowd.Stage{Ground: g, Name: "urging", Crowd: &crowd.Crowd{Workers: opt.Workers, Seed: opt.Seed}}
	s.Crowd.Progress = func(asked, of int) { s.tell.Say("%d of %d asked", asked, of) }
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	for n := range opt.tickets {
		assignee := fmt.Sprintf("assignee-%d", n)
		if s.undeliverable(n) {
			assignee = gone
		}
		var id int64
		if err := g.Pool.QueryRow(ctx, `INSERT INTO urging.ticket (assignee) VALUES ($1) RETURNING id`, assignee).Scan(&id); err != nil {
			return s, err
		}
		s.tickets = append(s.tickets, id)
	}
	s.queue = &demo.Queue{Pool: g.Pool, Schema: urges.QueueSchema, Where: `(args ->> 'ticket')::bigint = ANY($1)`, Arg: s.tickets}
	if opt.Faults {
		s.Faults = &crowd.Faults{Pool: g.Pool, Names: []string{"urging", "pgonce:%"}, Queue: s.queue, Rng: rand.New(rand.NewPCG(opt.Seed, 2))}
	}
	if s.push, err = openPushService(opt.Seed, opt.Faults); err != nil {
		return s, err
	}
	s.AtEnd(s.push.Close)
	return s, serve(ctx, s)
}

// undeliverable says that the push service does not know the assignee of the n-th ticket.
func (s *storm) undeliverable(n int) bool { return n == 4 }

// right starts the instances that do it right, and the workers of the queue.
func right(ctx context.Context, s *storm) error {
	log := demo.Logger(s.Verbose)
	for range instances {
		db, err := s.ConnectSQL()
		if err != nil {
			return err
		}
		clock := func() time.Time { return time.Now().Add(time.Duration(s.later.Load())) }
		service, err := urges.NewService(ctx, db, &urges.Config{Clock: clock, Logger: log})
		if err != nil {
			return err
		}
		s.AtEnd(func() { _ = service.Close(context.WithoutCancel(ctx)) })
		mux := http.NewServeMux()
		mux.Handle("POST /tickets/{ticket}/urges", urges.UrgeHTTP(service, log))
		mux.HandleFunc("GET /tickets/{ticket}/urges", service.StatusHTTP)
		if err := s.Listen(mux); err != nil {
			return err
		}
	}
	return s.deliver(ctx, log)
}

// deliver starts the workers of the queue.
func (s *storm) deliver(ctx context.Context, log *slog.Logger) error {
	pool, err := s.Connect(ctx)
	if err != nil {
		return err
	}
	pushes, err := urges.NewPushes(ctx, pool, s.push.URL(), patience)
	if err != nil {
		return err
	}
	queue, err := urges.NewQueue(pool, pushes, log)
	if err != nil {
		return err
	}
	return s.Work(ctx, queue)
}

// gust is who urges what in a round: the repeats of some users and all tickets are shuffled together, so that they meet. Now and then
// somebody urges a ticket that there is not.
func (s *storm) gust(round, duplicates int) []answer {
	const together = 2 // users, so that their repeats meet
	rng := rand.New(rand.NewPCG(s.Seed, uint64(round)<<32))
	var all []answer
	for from := 0; from < s.users; from += together {
		var batch []answer
		for user := from; user < min(from+together, s.users); user++ {
			for ticket := range s.tickets {
				for range duplicates {
					batch = append(batch, answer{round: round, ticket: ticket, user: user})
				}
			}
			batch = append(batch, answer{round: round, ticket: -1, user: user})
		}
		rng.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
		all = append(all, batch...)
	}
	return all
}

func userName(n int) string { return fmt.Sprintf("user-%03d", n) }

// blow sends a gust, while things break.
func (s *storm) blow(ctx context.Context, all []answer) error {
	return s.Blow(ctx, len(all), func(i int, url string) (*http.Request, error) {
		ticket := int64(-1)
		if n := all[i].ticket; n >= 0 {
			ticket = s.tickets[n]
		}
		req, err := http.NewRequest(http.MethodPost, fmt.Sprintf("%s/tickets/%d/urges", url, ticket), nil)
		if err == nil {
			req.Header.Set("X-User", userName(all[i].user))
		}
		return req, err
	}, func(i int, a crowd.Answer) {
		all[i].status, all[i].cached = a.Status, a.Header.Get("X-Cached") != ""
		if (a.Status == http.StatusOK || a.Status == http.StatusCreated) && json.Unmarshal(a.Body, &all[i].told) != nil {
			all[i].status = 0
		}
	})
}

// blowAll sends a gust for each window; next makes one of the other.
func (s *storm) blowAll(ctx context.Context, next func(ctx context.Context) error) (all []answer, err error) {
	for window := range s.windows {
		duplicates := s.Duplicates
		if window > 0 {
			if err := next(ctx); err != nil {
				return nil, err
			}
			s.tell.Say("every row made older by %v; all urge again", urges.Window)
			duplicates = min(2, duplicates)
		}
		gust := s.gust(window, duplicates)
		if err := s.blow(ctx, gust); err != nil {
			return nil, err
		}
		all = append(all, gust...)
	}
	return all, nil
}

// settle waits until every push is made or refused.
func (s *storm) settle(ctx context.Context) error {
	return demo.Await(ctx, "the pushes", func(ctx context.Context) (int, error) {
		if err := s.queue.Rescue(ctx, 2*time.Second); err != nil {
			return 0, err
		}
		return s.queue.Open(ctx)
	})
}

// age lets time pass: for the rows of these tickets and their jobs, and for the clocks of the caches, which count the time since they
// have asked.
func (s *storm) age(ctx context.Context, d time.Duration) error {
	const ours = `urge IN (SELECT id FROM urging.urge WHERE ticket = ANY($2))`
	err := demo.Age(ctx, s.Pool, d,
		demo.Aged{Schema: "urging", Table: "urge", Where: `ticket = ANY($2)`, Arg: s.tickets},
		demo.Aged{Schema: "urging", Table: "urger", Where: ours, Arg: s.tickets},
		demo.Aged{Schema: "pgonce", Table: "transition", Where: `machine = 'urge' AND entity IN (SELECT id::text FROM urging.urge WHERE ticket = ANY($2))`, Arg: s.tickets})
	s.later.Add(int64(d))
	return err
}
