package idem

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

const (
	longestWait     = 24 * time.Hour // in one statement
	pollPause       = 50 * time.Millisecond
	waitersFraction = 4 // of the pool's connections may wait on the server
	waitersNoLimit  = 8 // where the pool has no limit
)

// wait waits until whoever holds the key's lock is done, at most for what is left of Op.Wait. It returns
// the record if there is one now. If there is none, the caller takes the next attempt, with patience
// for the lock.
//
// It waits for the lock as a shared one, so that all waiters are woken at once when a record is there,
// and not one after the other. The attempt that follows waits for it as an exclusive one:
// waiters that took turns between a shared lock and a try for the exclusive one would keep each
// other from it for ever.
func (c *call[TX]) wait(ctx context.Context, attempt int) (rec record, patience time.Duration, err error) {
	left := c.left(ctx)
	if left <= 0 {
		return record{}, 0, c.waitForGhost(ctx, attempt)
	}
	if !c.enterServerQueue() { // the pool's connections are needed for other things
		return record{}, 0, c.interrupted(sleep(ctx, min(left, pollPause)), ctx)
	}
	rec, _, err = c.await(ctx, left)
	switch {
	case pg.Code(err) == pg.CodeLockTimeout:
		return record{}, 0, c.inFlight()
	case ctx.Err() == nil && (errors.Is(err, pg.ErrTxLost) || isStale(err)): // only the wait was lost; the next attempt finds out more
		return record{}, 0, nil
	case err != nil:
		return record{}, 0, pg.ExplainSchema(c.store.cfg.Schema, err)
	case rec.rows > 0:
		return rec, 0, nil
	}
	if c.op.Isolation != ReadCommitted {
		// The statement that waits would take the transaction's snapshot before the wait.
		c.leaveServerQueue()
		return record{}, 0, c.interrupted(sleep(ctx, min(left, pollPause)), ctx)
	}
	return record{}, c.left(ctx), nil
}

// waitForGhost gives a caller without patience another try if the holder may be the ghost of its own
// attempt before: a backend takes a moment to notice that its client has closed the connection.
func (c *call[TX]) waitForGhost(ctx context.Context, attempt int) error {
	if attempt == 1 || c.ghosts >= maxAttempts {
		return c.inFlight()
	}
	c.ghosts++
	return c.interrupted(pause(ctx, attempt), ctx)
}

func (c *call[TX]) interrupted(err error, ctx context.Context) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", c.inFlight(), context.Cause(ctx))
}

// left is how long this call may still wait for others.
func (c *call[TX]) left(ctx context.Context) time.Duration {
	if c.op.Wait == 0 {
		return 0
	}
	left := min(c.op.Wait-time.Since(c.began), longestWait)
	if end, ok := ctx.Deadline(); ok {
		left = min(left, time.Until(end))
	}
	return left
}

// await waits for the key's lock to be free, and reads the record. It is one round trip on
// pgx, and leaves nothing open.
func (c *call[TX]) await(ctx context.Context, most time.Duration) (rec record, standby bool, err error) {
	ctx = pg.WithNetTimeout(ctx, most+pg.NetTimeout(ctx))
	tx, err := c.store.db.Begin(ctx, pg.ReadCommitted,
		c.lockTimeoutStmt(most, &standby),
		pg.Stmt{SQL: sqlAwaitLock, Args: []any{c.lock()}},
		c.whoseStmt(&rec))
	if err != nil {
		return record{}, false, err
	}
	tx.Abandon(ctx)
	return rec, standby, nil
}

// patientStmts go before the guard, and wait for the lock that it tries.
func (c *call[TX]) patientStmts(most time.Duration) []pg.Stmt {
	return []pg.Stmt{
		{SQL: sqlKeepTimeouts, Dest: []any{new(string), new(string)}},
		c.lockTimeoutStmt(most, new(bool)),
		{SQL: sqlLock, Args: []any{c.lock()}},
		{SQL: sqlRestoreTimeouts, Dest: []any{new(string), new(string)}},
	}
}

func (c *call[TX]) lockTimeoutStmt(most time.Duration, standby *bool) pg.Stmt {
	ms := max(1, most.Milliseconds()) // 0 would be no limit
	return pg.Stmt{
		SQL:  sqlLockTimeout,
		Args: []any{strconv.FormatInt(ms, 10), c.server.checkInterval},
		Dest: []any{new(string), new(string), new(string), standby},
	}
}

// enterServerQueue counts this call among those that keep a connection only to wait, and says
// no when there are enough of them.
func (c *call[TX]) enterServerQueue() bool {
	most := int64(waitersNoLimit)
	if conns := c.store.db.MaxConns(); conns > 0 {
		most = int64(max(1, conns/waitersFraction))
	}
	if c.store.waiters.Add(1) > most {
		c.store.waiters.Add(-1)
		return false
	}
	c.waiting = true
	return true
}

func (c *call[TX]) leaveServerQueue() {
	if c.waiting {
		c.waiting = false
		c.store.waiters.Add(-1)
	}
}
