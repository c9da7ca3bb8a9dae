package idem

import (
	"context"
	"errors"
	"fmt"

	"github.com/pgonce/pgonce/internal/pg"
)

// Forget makes the library forget a key, and writes down that it did: a row of idem_forgotten has the key, what was known of
// it, the time, the database's session_user, the application_name and the reason, but not the result. Both are one commit.
//
// After that a repeat of the request EXECUTES AGAIN. That is what Forget is for: a refusal that was a
// mistake, a key that is blocked ([StateUnknown]) and whose effect, as somebody has made sure, is not
// there. If its effect is there, forgetting it doubles it.
//
// The reason is required, up to [MaxReason] bytes without control characters. A database's role is often shared by
// many people: name the person in it.
//
// A key that [RunSteps] has begun is not forgotten before it is finished or refused ([Store.Resolve]), since its steps may have paid already. Of
// a finished one no steps are left: a repeat calls them all again, under the same downstream keys as the first time, so that
// who honours them does nothing twice.
//
// Errors: [ErrInvalidKey] (also for the reason), [ErrNoRecord], [ErrInFlight] when somebody is executing the key, in steps too, or waits for it, [ErrUnfinished], [ErrReadOnly],
// [ErrSchema], [ErrUnavailable], [ErrUnknownOutcome] when the answer to COMMIT was lost: ask again, or [Store.Inspect].
//
// Cost on pgx: 2 round trips, one commit, one row deleted and one written. Locks: the key's advisory lock, until the
// commit. It tries for that for some 50 ms, and waits for a purge that is at the row.
func (s *Store[TX]) Forget(ctx context.Context, key Key, reason string) error {
	if err := key.check(); err != nil {
		return publish("forget", key, err)
	}
	if fault := pg.Fault(reason, MaxReason); fault != "" {
		return publish("forget", key, &KeyError{Part: "reason", Reason: fault})
	}
	err := s.forget(ctx, key, reason)
	for n := 1; errors.Is(err, ErrInFlight) && n < maxAttempts && pause(ctx, n) == nil; n++ {
		err = s.forget(ctx, key, reason) // a call that was answered lets go of the key a moment later
	}
	if err != nil {
		if pg.Rejected(err) {
			err = pg.ExplainSchema(s.cfg.Schema, err)
		}
		return publish("forget", key, err)
	}
	s.cfg.Logger.Warn("idem: a key was made to be forgotten; its request can be executed again", "key", key, "reason", reason)
	return nil
}

func (s *Store[TX]) forget(ctx context.Context, key Key, reason string) error {
	c, err := newCall(s, key, NoFingerprint())
	if err != nil {
		return err
	}
	if c.server, err = s.ready(ctx); err != nil {
		return err
	}
	var g guard
	l := &lease[TX]{call: c}
	tx, err := s.db.Begin(ctx, ReadCommitted, c.guardStmt(&g), l.leaseStmt())
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx) // after Commit it does nothing
	switch {
	case g.readOnly:
		return ErrReadOnly
	case !g.locked():
		return ErrInFlight
	case l.seen.rows > 0 && l.seen.left > 0:
		return fmt.Errorf("%w in steps", ErrInFlight)
	case l.seen.rows > 0:
		return fmt.Errorf("%w: nothing was forgotten; decide about it with Resolve", ErrUnfinished)
	}
	// None comes from here on: a lease is inserted under the key's lock, which is ours, and whoever had it before us has committed.
	var gone int64
	err = tx.Commit(ctx, pg.Stmt{SQL: pg.In(s.cfg.Schema, sqlForget), Args: []any{c.scope, c.digest, reason}, Rows: &gone})
	switch {
	case err != nil:
		return err
	case gone == 0:
		return fmt.Errorf("%w: nothing to forget", ErrNoRecord)
	}
	return nil
}
