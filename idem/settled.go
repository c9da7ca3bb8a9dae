package idem

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// block stores that the outcome of the key is unknown. It insists, because until that is
// stored, a repeat could execute the key again.
func (c *call[TX]) block(ctx context.Context) error {
	for n := 1; ; n++ {
		err := c.blockBy(ctx, c.store.db.Pool())
		if err == nil || errors.Is(err, errExecutedSince) || n == maxAttempts || pause(ctx, n) != nil {
			return err
		}
	}
}

// blockBy is one try, by the caller's connection or another.
func (c *call[TX]) blockBy(ctx context.Context, q pg.Querier) error {
	at, err := c.storeSettled(ctx, q, newAttempt(), stateUnknown, nil)
	if err == nil && at.IsZero() { // there is a record: ours, if the answer to the try before was lost
		var rec record
		switch err = q.Run(ctx, c.lookupStmt(&rec)); {
		case err != nil:
		case rec.rows == 0:
			err = errors.New("the record that was in the way has vanished")
		case rec.state != stateUnknown:
			err = errExecutedSince
		}
	}
	if err == nil {
		c.tell(Blocked, nil)
	}
	return err
}

// errExecutedSince means that a handler's own COMMIT has let somebody else execute the key.
var errExecutedSince = errors.New("another caller has executed the key since")

// blocked is the error of a handler that ended its transaction, after blocking its key.
func (c *call[TX]) blocked(ctx context.Context, cause error) error {
	return errBlocked(cause, c.block(ctx))
}

func errBlocked(cause, err error) error {
	if errors.Is(err, errExecutedSince) {
		return errors.Join(fmt.Errorf("%w: what it wrote may be committed, and %w: look for two effects", ErrTxEnded, err), unmarked(cause))
	}
	if err != nil {
		err = fmt.Errorf("the key could not be blocked, a repeat may execute it again: %w", err)
	}
	return errors.Join(fmt.Errorf("%w: what it wrote may be committed, so the key is blocked", ErrTxEnded), unmarked(cause), err)
}

// storeRefusal stores a refusal after the handler's transaction was rolled back. The key's
// lock went with it, so somebody else may have decided the key by now: then theirs stands. Should a
// handler be at work meanwhile, its INSERT will find ours, and its caller gets the refusal.
func (c *call[TX]) storeRefusal(ctx context.Context, attempt int64, data []byte) (record, error) {
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	at, err := c.storeSettled(tctx, c.store.db.Pool(), attempt, stateRefused, data)
	if err == nil && !at.IsZero() {
		return c.ownRecord(attempt, stateRefused, at, data), nil
	}
	if pg.Rejected(err) {
		return record{}, pg.ExplainSchema(c.store.cfg.Schema, err)
	}
	rec, lookErr := c.lookWhose(tctx)
	switch {
	case lookErr == nil && rec.rows > 0:
		rec.own = rec.attempt == attempt
		return rec, nil
	case err == nil && lookErr == nil:
		return record{}, fmt.Errorf("%w: the record that was in the way has vanished", pg.ErrTxLost)
	}
	return record{}, fmt.Errorf("%w: the refusal is not stored, nothing was done: %w", ErrUnavailable, errors.Join(err, lookErr))
}

// storeSettled inserts a record without an effect, outside any transaction, and returns when
// that was. If there is a record already, it stands, and the time is zero.
func (c *call[TX]) storeSettled(ctx context.Context, q pg.Querier, attempt, state int64, data []byte) (at time.Time, err error) {
	replay, remember := seconds(c.op.ReplayFor), seconds(c.op.RememberFor)
	if state == stateUnknown {
		replay, remember = seconds(Forever), seconds(Forever)
	}
	var rows int64
	err = q.Run(ctx, pg.Stmt{
		SQL: c.store.sql.insertSettled,
		Args: []any{
			attempt, replay, remember, state, c.fp.version,
			c.scope, c.digest, c.op.Name, c.recordID(), c.fp.sum, data,
		},
		Dest: []any{&at}, Rows: &rows,
	})
	return at, err
}

// recordID is the id in clear, or the empty text, which is the id of no key. A row without a NULL has no list of them, which
// takes 8 bytes.
func (c *call[TX]) recordID() string {
	if id := c.storedID(); id != nil {
		return *id
	}
	return ""
}

// storedID is the id in clear, or NULL.
func (c *call[TX]) storedID() *string {
	if c.store.cfg.HideIDs || c.op.HideID {
		return nil
	}
	return &c.key.id
}

func (c *call[TX]) insertStmt(attempt, state int64, start time.Time, result []byte) pg.Stmt {
	return pg.Stmt{SQL: c.store.sql.insert, Args: []any{
		attempt, start, seconds(c.op.ReplayFor), seconds(c.op.RememberFor), state,
		c.fp.version, c.scope, c.digest, c.op.Name, c.recordID(), c.fp.sum, result,
	}}
}

// ownRecord is the record that this call has just stored.
func (c *call[TX]) ownRecord(attempt, state int64, at time.Time, result []byte) record {
	return record{
		own: true, rows: 1, attempt: attempt, state: state, fpVersion: c.fp.version, fp: c.fp.sum,
		createdAt: at, result: result,
	}
}

// seconds is a duration for make_interval, negative for no end.
func seconds(d time.Duration) float64 {
	if d == Forever {
		return -1
	}
	return d.Seconds()
}
