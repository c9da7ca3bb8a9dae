package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/examples/remittance/remit"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/statemachine"
	"github.com/riverqueue/river"
)

// operate is what people do: they stop remittances that are not sent yet, reset what was refused or returned, and decide what nothing else can.
// It says how much there still is to do.
func (s *storm) operate(ctx context.Context) (left int, err error) {
	if err := s.stop(ctx); err != nil {
		return 0, err
	}
	resets, err := s.renew(ctx)
	if err != nil {
		return 0, err
	}
	decisions, err := s.decide(ctx)
	return resets + decisions, err
}

// stop cancels the next one, or blocks it.
func (s *storm) stop(ctx context.Context) error {
	for ; s.stops < s.messages; s.stops++ {
		if !stopped(s.stops) {
			continue
		}
		err := s.service.Stop(ctx, s.key(s.stops), s.stops%100 == 99, "ann")
		if errors.Is(err, statemachine.ErrConflict) {
			err = nil // it is sent
		}
		s.stops++
		return err
	}
	return nil
}

// renew resets what was refused or returned, once, with another account.
func (s *storm) renew(ctx context.Context) (int, error) {
	rows, _ := s.pool.Query(ctx, `SELECT id FROM remit.remittance WHERE id LIKE $1 AND flag IN (3, 5) AND send = 1`, s.jobs.Arg)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return 0, err
	}
	n := 0
	for _, id := range ids {
		var i int
		if _, err := fmt.Sscanf(id[len(s.id):], "-%d", &i); err != nil {
			return n, err
		}
		if !renewed(i) {
			continue
		}
		if err := s.service.Reset(ctx, id, 1, fmt.Sprintf("another-%d", i), "bob"); err != nil {
			return n, err
		}
		s.renewals++
		var again []river.InsertManyParams // and the queue delivers it as often as the first
		for range s.Duplicates - 1 {
			again = append(again, s.job(remit.Message{Remittance: id, Send: 2, AmountCents: amountOf(i)}))
		}
		if len(again) > 0 {
			if _, err := s.queue.InsertManyFast(ctx, again); err != nil {
				return n, err
			}
		}
		n++
	}
	return n, nil
}

// decide does what the list for a person says: it looks at the bank's ledger, which is on paper, and puts on record what it finds there.
func (s *storm) decide(ctx context.Context) (int, error) {
	cases, err := s.service.Undecided(ctx)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, c := range cases {
		serial := ""
		for _, e := range s.bank.Entries() {
			if e.Reference == c.Reference && !e.Back {
				serial = e.Serial
			}
		}
		if serial == "" {
			continue // not on paper: as long as the bank does not say that it refuses the reference, nobody may say so
		}
		if s.decisions == 0 {
			s.Say("for a person: %s, sending %d, is at %d (%s). %s", c.Remittance, c.Send, c.Flag, c.Flag, c.Do)
		}
		err := s.service.Decide(ctx, c.Remittance, c.Send, c.Reference, serial, "carol", "the statement of today says so")
		if errors.Is(err, idem.ErrInFlight) || errors.Is(err, remit.ErrNothingToDecide) {
			continue // an enquiry is under way
		}
		if err != nil {
			return n, err
		}
		s.decisions++
		n++
	}
	return n, nil
}
