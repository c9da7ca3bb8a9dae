package remit

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/statemachine"
)

// told is what came of the step at the bank.
type told struct {
	Word     Word   `json:"word"`
	Enquired bool   `json:"enquired"` // by an enquiry, or by a person who has looked
	NotSent  string `json:"not_sent"` // why the bank was not called
}

// send is what a worker does, and what a completer goes on with.
//
// The row is read once, at the beginning of an attempt. A worker that was frozen and has lost the key meanwhile fires its event for the row as
// it was then, is refused, and does not get as far as the bank.
func (s *Service) send(ctx context.Context, run *idem.Run[pgx.Tx], m Message) (Outcome, error) {
	before, err := s.read(ctx, m.Remittance)
	if err != nil {
		return Outcome{}, err
	}
	t, err := idem.Step(ctx, run, "bank",
		func(ctx context.Context, reference string) (told, error) { return s.call(ctx, m, before, reference) },
		idem.AtMostOnce(func(ctx context.Context, reference string) (told, idem.Outcome, error) {
			return s.enquire(ctx, m, reference)
		}))
	if err != nil {
		return Outcome{}, err
	}
	return idem.StepTx(ctx, run, "book", func(ctx context.Context, tx pgx.Tx) (Outcome, error) { return s.book(ctx, tx, m, t) })
}

// call moves the flag to "at the bank", under the reference that the bank is then called with. Any error leaves the outcome unknown: it is
// not called again before an enquiry.
func (s *Service) call(ctx context.Context, m Message, before row, reference string) (told, error) {
	event := Send
	opts := []statemachine.Option{
		statemachine.Set("reference", reference), statemachine.Dedup(reference), statemachine.Actor("worker"),
		statemachine.Match("send = $1", m.Send), statemachine.Where("reference IS NOT DISTINCT FROM $1", before.Reference),
	}
	if before.Flag == Unknown || before.Flag == AtBank {
		event = Resend
	}
	res, err := s.flow.Fire(ctx, m.Remittance, event, opts...)
	var conflict *statemachine.ConflictError
	switch {
	case errors.As(err, &conflict) && (conflict.State == textOf(Cancel) || conflict.State == textOf(Illegal)):
		return told{NotSent: err.Error()}, nil
	case err != nil:
		return told{}, err
	case !res.Applied():
		return told{}, fmt.Errorf("%s: somebody else has gone on with it", m.Remittance)
	}
	word, err := s.bank.Pay(ctx, Transfer{
		Reference: reference, Account: before.Account, AmountCents: before.AmountCents, Purpose: fmt.Sprintf("%s/%d", m.Remittance, m.Send),
	})
	switch {
	case err == nil && word.decided():
		return told{Word: word}, nil
	case err == nil && word.Code == codeAtIt:
		return told{}, fmt.Errorf("%w: it is at it", errNoWord) // the flag says so already
	case err == nil:
		err = fmt.Errorf("%w: it says %+v", errNoWord, word)
	}
	// The flag is for people to see; the next attempt enquires in any case. So it does not matter if this fails.
	_, _ = s.flow.Fire(context.WithoutCancel(ctx), m.Remittance, NoAnswer, statemachine.Match("reference = $1", reference))
	return told{}, err
}

// enquire finds out what became of a call, and is asked again until it knows. No answer is no knowledge.
func (s *Service) enquire(ctx context.Context, m Message, reference string) (told, idem.Outcome, error) {
	word, err := s.bank.Enquire(ctx, reference)
	switch {
	case err != nil:
		return told{}, idem.Unsure, err
	case word.decided():
		return told{Word: word, Enquired: true}, idem.Happened, nil
	case word.Code == codeUnknown || word.Code == codeBlocked:
		return told{}, idem.NeverHappened, nil // and never will: the bank refuses this reference from now on
	case word.Code == codeAtIt:
		_, err := s.flow.Fire(ctx, m.Remittance, FoundOpen, statemachine.Match("reference = $1", reference))
		if errors.Is(err, statemachine.ErrConflict) {
			err = nil // the flag says so already
		}
		return told{}, idem.Unsure, err
	}
	return told{}, idem.Unsure, fmt.Errorf("%w: asked about %s, it says %+v", errNoWord, reference, word)
}

// book commits the bank's word: flag and serial number in one statement, together with the fact that this is done.
func (s *Service) book(ctx context.Context, tx pgx.Tx, m Message, t told) (Outcome, error) {
	if t.NotSent != "" {
		return Outcome{NotSent: true, Reason: t.NotSent}, nil
	}
	event, column, value := Confirm, "serial", t.Word.Serial
	switch {
	case t.Word.Code == codePaid && t.Enquired:
		event = FoundPaid
	case t.Word.Code == codeRefused:
		event, column, value = Refuse, "reason", t.Word.Reason
		if t.Enquired {
			event = FoundNot
		}
	}
	res, err := s.flow.FireTx(ctx, tx, m.Remittance, event, statemachine.Match("send = $1", m.Send),
		statemachine.Set(column, value), statemachine.Set("reference", t.Word.Reference), statemachine.Meta(t.Word))
	return Outcome{Flag: res.To, Serial: t.Word.Serial, Reason: t.Word.Reason}, err
}

func textOf(f Flag) string { return fmt.Sprint(int16(f)) }
