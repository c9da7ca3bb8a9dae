package remit

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/statemachine"
)

// Order is a remittance as it is asked for.
type Order struct {
	ID          string `json:"id"`
	Account     string `json:"account"`
	AmountCents int64  `json:"amount_cents"`
}

// Create makes a remittance and enqueues its message, in one commit; again is no second one.
func (s *Service) Create(ctx context.Context, o Order) error {
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		res, err := s.flow.CreateTx(ctx, tx, o.ID, New, statemachine.Set("account", o.Account), statemachine.Set("amount_cents", o.AmountCents),
			statemachine.Match("amount_cents = $1", o.AmountCents))
		if err != nil || !res.Applied() {
			return err
		}
		_, err = s.jobs.InsertTx(ctx, tx, Message{Remittance: o.ID, Send: 1, AmountCents: o.AmountCents}, nil)
		return err
	})
}

// Reset has a remittance that was refused or returned sent anew, to an account: an operator's decision about sending number send, and so
// made once. It raises the number and enqueues the message in one commit.
func (s *Service) Reset(ctx context.Context, id string, send int, account, operator string) error {
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		res, err := s.flow.FireTx(ctx, tx, id, Renew, statemachine.Dedup(fmt.Sprintf("reset %d", send)), statemachine.Match("send = $1", send),
			statemachine.SetExpr("send", "send + 1"), statemachine.Set("account", account), statemachine.SetExpr("reason", "NULL"), statemachine.Actor(operator))
		if err != nil || !res.Applied() {
			return err
		}
		m := Message{Remittance: id, Send: send + 1}
		if err := tx.QueryRow(ctx, `SELECT amount_cents FROM remit.remittance WHERE id = $1`, id).Scan(&m.AmountCents); err != nil {
			return err
		}
		_, err = s.jobs.InsertTx(ctx, tx, m, nil)
		return err
	})
}

// Stop cancels a remittance that has not been sent, or blocks it as illegal.
func (s *Service) Stop(ctx context.Context, id string, illegal bool, operator string) error {
	event := Withdraw
	if illegal {
		event = Block
	}
	_, err := s.flow.Fire(ctx, id, event, statemachine.Actor(operator))
	return err
}

// Case is what cannot be decided automatically.
type Case struct {
	Remittance string    `json:"remittance"`
	Send       int       `json:"send"`
	Flag       Flag      `json:"flag"`
	Since      time.Time `json:"since"`
	Reference  string    `json:"reference"`
	Problem    string    `json:"problem"`
	Do         string    `json:"do"`
}

// Undecided lists what needs a person, with what to do: what the completer has given up, and what the bank has had no word about for
// Config.Overdue. The messages keep coming back meanwhile, so an enquiry that succeeds after all takes a case off the list.
func (s *Service) Undecided(ctx context.Context) ([]Case, error) {
	stuck, err := s.keys.Stuck(ctx, 1000)
	if err != nil {
		return nil, err
	}
	var now time.Time
	if err := s.pool.QueryRow(ctx, `SELECT now()`).Scan(&now); err != nil {
		return nil, err
	}
	var list []Case
	for _, k := range stuck {
		if k.Scope != scope || k.Op != s.op.Name || !k.Dead && now.Sub(k.Since) < s.cfg.Overdue {
			continue // the next attempt enquires
		}
		c := Case{Since: k.Since, Reference: k.Downstream, Problem: k.LastError}
		at := strings.LastIndexByte(k.ID, '/')
		c.Remittance = k.ID[:at]
		c.Send, _ = strconv.Atoi(k.ID[at+1:]) // it is one of our own keys
		r, err := s.read(ctx, c.Remittance)
		if err != nil {
			return list, err
		}
		c.Flag = r.Flag
		c.Do = advice(k, r)
		list = append(list, c)
	}
	const strays = `SELECT serial, reason, seen_at FROM remit.returned WHERE booked_at IS NULL AND seen_at < now() - $1::interval ORDER BY seen_at`
	rows, _ := s.pool.Query(ctx, strays, s.cfg.Overdue)
	var serial, reason string
	var since time.Time
	_, err = pgx.ForEachRow(rows, []any{&serial, &reason, &since}, func() error {
		list = append(list, Case{
			Since: since, Problem: fmt.Sprintf("the bank has returned %s (%s), and nothing is booked as paid under that number", serial, reason),
			Do: "compensate: the money is back and no remittance says so; find it on the bank's statement and book it by hand",
		})
		return nil
	})
	return list, err
}

// advice says what a person is to do about a key that does not come to an end by itself.
func advice(k idem.Stuck, r row) string {
	switch {
	case k.Step != "":
		return "decide by hand: ask the bank about " + k.Downstream + ". If it has paid, Decide with its serial number; if it has not and " +
			"refuses the reference from now on, Decide without one, and it is sent anew; if it cannot say, leave it as it is"
	case r.Reference == nil:
		return "roll back: the bank has not been called. Remove the cause and have it tried again, or refuse it (Store.Resolve)"
	}
	return "compensate: the bank has decided about the last reference, and the flag does not allow it to be booked. Look at the history " +
		"for who has moved it; if it was paid, have it recalled or book it by hand"
}

// Decide is a person's word about a call whose outcome nothing else can find out, by the reference that he has asked the bank about: it was
// paid under a serial number; or, without one, it was not paid and the bank refuses the reference from now on. If enquiries have got further
// meanwhile, it is [ErrNothingToDecide], or idem.ErrInFlight.
func (s *Service) Decide(ctx context.Context, id string, send int, reference, serial, operator, why string) error {
	key := s.key(id, send)
	stuck, err := s.keys.Stuck(ctx, 1000)
	if err != nil {
		return err
	}
	for _, k := range stuck {
		if k.ID != key.ID() || k.Op != s.op.Name || k.Scope != scope || k.Step == "" || k.Downstream != reference {
			continue
		}
		r := idem.Resolution{Step: k.Step, Outcome: idem.NeverHappened, Actor: operator, Reason: why}
		if serial != "" {
			r.Outcome = idem.Happened
			r.Value = told{Word: Word{Reference: reference, Code: codePaid, Serial: serial}, Enquired: true}
		}
		return s.keys.Resolve(ctx, key, r)
	}
	return fmt.Errorf("%w about reference %s of %s: it is decided, or an enquiry is under way", ErrNothingToDecide, reference, key.ID())
}

// ErrNothingToDecide means that a person's word is not needed, or not at this moment.
var ErrNothingToDecide = errors.New("nothing to decide")
