package idem

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// SeenTx remembers a key in the caller's transaction and says whether it was known before: all
// that a consumer of messages needs whose effect is in that transaction too. seen is true only
// when the transaction that remembered the key has committed, or is this one.
//
// seen is true for a key that a handler of Do has refused, too. It is false for exactly one transaction that commits. While another transaction is about to remember
// the key, it is [ErrInFlight], at once, and the caller's transaction stays usable: roll it
// back, and let the message come again. It waits for nobody but a refusal that is being stored in this
// moment. There is no result, and no fingerprint; [Op.RememberFor] applies. [Do] gets [ErrExpired] for
// the key, as for any that is done and has no result.
//
// A transaction that takes several keys should sort them (slices.SortFunc with [Key.Compare]), so that
// two of them cannot refuse each other for ever.
//
// Errors: [ErrInvalidKey], [ErrInFlight], [ErrReentrant], [ErrTxUnusable], [ErrRetryTx], [ErrUnknownOutcome], [ErrReadOnly],
// [ErrSchema], [ErrUnavailable].
//
// Cost: 1 round trip on pgx; on database/sql 1 for a new key and 2 for a known one. A new key writes one
// row. Locks: one advisory lock until the caller's transaction ends.
func (s *Store[TX]) SeenTx(ctx context.Context, tx TX, key Key) (seen bool, err error) {
	c, err := newCall(s, key, NoFingerprint())
	var none TX
	if err == nil && any(tx) == any(none) {
		err = errors.New("nil transaction")
	}
	var rec record
	if err != nil {
		return false, publish("seen", key, err)
	}
	if rec, err = c.seen(ctx, tx); err != nil {
		err = publish("seen", key, err)
	}
	c.ended(rec, err)
	return err == nil && !rec.own, err
}

// seen inserts the record if the key's lock is free. Whoever else inserts this record holds the lock
// until its transaction ends. So the INSERT waits for nobody, and a record in its way is committed,
// or our own.
func (c *call[TX]) seen(ctx context.Context, handle TX) (rec record, err error) {
	frame := c.inside(ctx)
	leave, err := c.enterTx(frame, handle)
	if err != nil {
		return record{}, err
	}
	defer leave()
	tx := c.store.db.Tx(handle)
	if err := c.store.readyTx(ctx, tx); err != nil {
		return record{}, c.explain(err)
	}
	var inserted int64
	insert := pg.Stmt{
		SQL: c.store.sql.seen,
		Args: []any{
			c.lock(), newAttempt(), seconds(c.op.ReplayFor), seconds(c.op.RememberFor), stateDone, fpNone,
			c.scope, c.digest, c.op.Name, c.recordID(),
		},
		Rows: &inserted,
	}
	if c.store.db.Pipelined() {
		err = tx.RunAll(ctx, insert, c.lookupStmt(&rec))
	} else if err = tx.Run(ctx, insert); err == nil && inserted == 0 {
		err = tx.Run(ctx, c.lookupStmt(&rec))
	}
	switch {
	case err != nil:
		return record{}, c.explain(err)
	case inserted == 1:
		return record{own: true}, nil
	case rec.rows == 0:
		return record{}, c.inFlight()
	case rec.state == stateUnknown:
		return record{}, fmt.Errorf("%w: first at %s", ErrUnknownOutcome, rec.createdAt.UTC().Format(time.RFC3339))
	}
	return rec, nil
}
