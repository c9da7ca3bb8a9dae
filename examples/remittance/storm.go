package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/remittance/bank"
	"github.com/pgonce/pgonce/examples/remittance/original"
	"github.com/pgonce/pgonce/examples/remittance/remit"
	"github.com/riverqueue/river"
)

// applicationName is what workers are called by the server.
const applicationName = "remittance"

// ground is what a storm takes place on.
type ground struct {
	pool    *pgxpool.Pool
	url     string
	program string // what workers are started from
}

// storm is a flood of messages over workers that are killed.
type storm struct {
	options
	*ground
	*demo.Teller
	id      string // tells this storm's remittances from those of others in the same database
	way     string
	bank    *bank.Bank
	service *remit.Service // the operators'
	queue   *river.Client[pgx.Tx]
	jobs    *demo.Queue
	workers []*demo.Process
	faulty  faults

	total, done                int // messages sent, and answered
	renewals, decisions, stops int
}

func (s *storm) key(n int) string { return fmt.Sprintf("%s-%05d", s.id, n) }
func amountOf(n int) int64        { return int64(100 + n%900) }

// kind says what is to become of a remittance: what the bank does with its account, by the hundred, and opaque ones, which cost a person's
// time, by the 250.
func kind(n int) string {
	switch {
	case n%250 == 31:
		return bank.Opaque
	case n%20 == 13: // 5 %
		return bank.Closed
	case n%50 == 27: // 2 %
		return bank.Bouncing
	case n%20 == 6: // 5 %
		return bank.Tardy
	}
	return ""
}

// stopped says that an operator tries to stop this one, if it is not sent yet.
func stopped(n int) bool { return n%50 == 49 }

// renewed says that an operator resets this one when it was refused or returned, with another account.
func renewed(n int) bool { return n%3 != 0 }

// prepare starts a bank and the workers, and makes the remittances.
func prepare(ctx context.Context, opt options, g *ground, way string, out io.Writer) (s *storm, err error) {
	s = &storm{options: opt, ground: g, Teller: demo.NewTeller(out), way: way, id: fmt.Sprintf("%s-%d-%d", way, opt.Seed, time.Now().UnixNano())}
	s.jobs = &demo.Queue{Pool: g.pool, Schema: remit.QueueSchema, Where: `args ->> 'remittance' LIKE $1`, Arg: s.id + "-%"}
	if s.bank, err = bank.Open(bank.Config{Faults: opt.Faults, Seed: opt.Seed, Patience: patience, Slowness: slowness}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.queue, err = remit.NewPublisher(g.pool); err != nil {
		return s, err
	}
	if s.service, err = remit.NewService(ctx, g.pool, s.bank.URL(), hasty); err != nil {
		return s, err
	}
	for n := range opt.Workers {
		s.workers = append(s.workers, &demo.Process{
			Name:    fmt.Sprintf("worker %d", n+1),
			Command: []string{g.program, "work", "--way", way, "--bank-url", s.bank.URL(), fmt.Sprintf("--verbose=%t", opt.Verbose)},
			Env:     []string{"DATABASE_URL=" + g.url},
		})
	}
	if err = s.stock(ctx); err != nil {
		return s, err
	}
	return s, demo.StartAll(s.workers)
}

// stock makes the remittances.
func (s *storm) stock(ctx context.Context) error {
	table := pgx.Identifier{"remit", "remittance"}
	if s.way == wrong {
		table = pgx.Identifier{"original", "remittance"}
	}
	_, err := s.pool.CopyFrom(ctx, table, []string{"id", "account", "amount_cents"}, pgx.CopyFromSlice(s.messages, func(n int) ([]any, error) {
		return []any{s.key(n), fmt.Sprintf("%saccount-%d", kind(n), n), amountOf(n)}, nil
	}))
	return err
}

// close ends the workers and the bank. It may be called twice.
func (s *storm) close() {
	demo.StopAll(s.workers)
	s.bank.Close()
}

// publish sends every message several times, shuffled among its neighbours, so that its deliveries meet. One in a hundred is also sent with
// another amount.
func (s *storm) publish(ctx context.Context) error {
	const window = 40
	rng := rand.New(rand.NewPCG(s.Seed, 1<<32))
	for from := 0; from < s.messages; from += window {
		var batch []river.InsertManyParams
		for n := from; n < min(from+window, s.messages); n++ {
			m := remit.Message{Remittance: s.key(n), Send: 1, AmountCents: amountOf(n)}
			for range s.Duplicates {
				batch = append(batch, s.job(m))
			}
			if n%100 == 0 {
				m.AmountCents++
				batch = append(batch, s.job(m))
			}
		}
		rng.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
		if _, err := s.queue.InsertManyFast(ctx, batch); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
	}
	return nil
}

func (s *storm) job(m remit.Message) river.InsertManyParams {
	if s.way == wrong {
		return river.InsertManyParams{Args: original.Message{Message: m}}
	}
	return river.InsertManyParams{Args: m}
}

// look counts the messages, and what is under way: remittances in 1, 6, 7 or 8.
func (s *storm) look(ctx context.Context) (under int, err error) {
	const jobs = `SELECT count(*), count(*) FILTER (WHERE finalized_at IS NOT NULL) FROM remit_queue.river_job WHERE args ->> 'remittance' LIKE $1`
	if err := s.pool.QueryRow(ctx, jobs, s.jobs.Arg).Scan(&s.total, &s.done); err != nil {
		return 0, err
	}
	const rows = `SELECT count(*) FROM remit.remittance WHERE id LIKE $1 AND flag IN (1, 6, 7, 8)`
	err = s.pool.QueryRow(ctx, rows, s.jobs.Arg).Scan(&under)
	return under, err
}

// settle waits until every message is answered and nothing is under way, while things break and the operators do their work.
func (s *storm) settle(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for n := 1; ; n++ {
		under, err := s.look(ctx)
		if err != nil {
			return err
		}
		open := s.total - s.done
		if n%30 == 0 {
			s.Say("%d of %d messages answered; %d remittances under way", s.done, s.total, under)
		}
		if s.Faults {
			err = errors.Join(s.faulty.strike(ctx, s), s.jobs.Rescue(ctx, 2*patience))
		}
		if s.way == right {
			more, failed := s.operate(ctx)
			err, open = errors.Join(err, failed), open+more
		}
		if err != nil {
			return err
		}
		if open == 0 && under == 0 && (!s.Faults || s.faulty.kills == len(s.workers)) {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%d messages are not answered, %d remittances are under way", open, under), ctx.Err())
		case <-tick.C:
		}
	}
}
