package remit

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/statemachine"
)

// Work consumes messages, goes on with what others have left, and asks the bank for what it has returned, until ctx ends.
func (s *Service) Work(ctx context.Context, log *slog.Logger) error {
	queue, err := NewQueue(s.pool, s, log)
	if err != nil {
		return err
	}
	lasting := context.WithoutCancel(ctx)
	if err := queue.Start(lasting); err != nil {
		return err
	}
	var wg sync.WaitGroup
	var completed error
	wg.Go(func() { completed = s.keys.RunCompleter(ctx) })
	wg.Go(func() {
		tick := time.NewTicker(s.cfg.Returns)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if err := s.Bounce(ctx); err != nil && ctx.Err() == nil {
				log.Warn("returns not booked; the next look will", "err", err)
			}
		}
	})
	<-ctx.Done()
	wg.Wait()
	return errors.Join(completed, queue.StopAndCancel(lasting))
}

// Bounce asks the bank for what it has returned, and books each payment's return once. A payment whose own answer has been lost is not
// known as paid yet: its return waits.
func (s *Service) Bounce(ctx context.Context) error {
	returns, err := s.bank.Returns(ctx)
	if err != nil {
		return err
	}
	serials, reasons := make([]string, len(returns)), make([]string, len(returns))
	for i, r := range returns {
		serials[i], reasons[i] = r.Serial, r.Reason
	}
	const note = `
INSERT INTO remit.returned (serial, reason)
SELECT serial, reason FROM unnest($1::text[], $2::text[]) AS r (serial, reason) WHERE NOT EXISTS (SELECT FROM remit.returned k WHERE k.serial = r.serial)
ORDER BY serial ON CONFLICT DO NOTHING`
	if _, err := s.pool.Exec(ctx, note, serials, reasons); err != nil {
		return err
	}
	const open = `
SELECT m.id, r.serial, r.reason FROM remit.returned r JOIN remit.remittance m USING (serial) WHERE r.booked_at IS NULL AND m.flag = $1`
	rows, _ := s.pool.Query(ctx, open, Paid)
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[bounced])
	for _, b := range found {
		err = errors.Join(err, pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error { return s.bounce(ctx, tx, b) }))
	}
	return err
}

// bounced is a payment that has come back.
type bounced struct{ ID, Serial, Reason string }

// bounce books a return, if nobody else has.
func (s *Service) bounce(ctx context.Context, tx pgx.Tx, b bounced) error {
	tag, err := tx.Exec(ctx, `UPDATE remit.returned SET booked_at = now() WHERE serial = $1 AND booked_at IS NULL`, b.Serial)
	if err != nil || tag.RowsAffected() == 0 {
		return err
	}
	_, err = s.flow.FireTx(ctx, tx, b.ID, Bounce, statemachine.Match("serial = $1", b.Serial),
		statemachine.Set("reason", b.Reason), statemachine.Actor("bank"))
	return err
}
