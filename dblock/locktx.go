package dblock

import (
	"context"
	"errors"
	"fmt"

	"github.com/pgonce/pgonce/internal/pg"
)

// TxConfig tunes [Client.LockTx] and [Client.TryLockTx]. A nil *TxConfig is ready to use.
type TxConfig struct {
	// Shared lets others have the lock too, as long as they all share it. Defaults to exclusive.
	Shared bool
}

// LockTx takes the key's lock in the caller's transaction, and waits for it until ctx ends. The
// lock lasts as long as the transaction: COMMIT and ROLLBACK let go of it, and so does ROLLBACK TO a savepoint that is
// older than the call. It excludes the locks of LockTx and of [Client.Acquire] on the same key, in every
// process of this database and schema.
//
// The wait leaves the transaction as it was: after ErrNotAcquired, too, its settings, its
// savepoints and what it has written are there, and it can go on. ctx is not passed to the connection, and its
// deadline replaces the role's lock_timeout and statement_timeout for the wait. On pgx the wait ends as ctx does. On
// database/sql the deadline is kept, but an earlier cancel is noticed only once the server has looked for a
// deadlock (deadlock_timeout, 1 s by default) and a second more; each such time the caller
// goes to the back of the queue. (What database/sql itself does when the ctx of BeginTx ends is another matter.)
//
// Taken again in the same transaction it is granted at once. But a transaction that has it shared and wants
// it exclusive can meet another one that does so too, which is a deadlock. A transaction that takes
// several keys should sort them. Who holds the key by Acquire would wait for itself, since this
// is another session to the server: with the ctx of [Lock.Context] that is [ErrReentrant], with another one it waits.
//
// There is no fencing token. What the transaction writes needs none: it is committed before the
// lock is let go of, or never. For effects outside the database, use [Client.Acquire].
//
// On a client of leases it excludes the leases of the same key, besides its like, and not the session locks of a client
// of New. There it waits in two steps: for its like in the server's queue, and then by asking for the lease now and then,
// while it keeps others from getting it. It needs READ COMMITTED ([ErrIsolation]), is exclusive, sees no deadlock with the holder of
// a lease, and clears a lease that has expired away by a connection of the pool's.
//
// Not promised: a new snapshot. Above READ COMMITTED the transaction goes on reading what was committed
// before its first statement, which may be this one, and so before the wait. And when a transaction of a
// lost tenure is fenced still, LockTx waits for it, and one that gives that up
// may have the lock's number until its transaction ends, which makes others wait for no reason.
//
// A lock that was free, or a try, has no savepoint: when the server fails at it ([ErrCapacity], for one), the transaction
// can only be rolled back. These locks count neither for [Config.MaxLocks] nor for [Config.Observe].
//
// Errors: [ErrInvalidKey], [ErrNotAcquired] (and the ctx's error), [ErrDeadlock] (and [ErrRetryTx]),
// [ErrReentrant], [ErrClosed], [ErrReadOnly] on a standby, [ErrTxUnusable], [ErrCapacity], [ErrUnavailable] when the transaction was
// lost with its connection.
//
// Cost: 1 round trip for a lock that is free. One that is not: 3 on pgx, 6 on database/sql.
// A shared one: 3 and 6 for one that is free. On a client of leases: 2 for one that is free. It writes nothing, and works in READ ONLY transactions.
func (c *Client[TX]) LockTx(ctx context.Context, tx TX, key Key, cfg *TxConfig) error {
	return c.inTx(ctx, "locktx", tx, key, cfg, true)
}

// TryLockTx is [Client.LockTx] without the wait: a lock that is not free is ErrNotAcquired at once.
// That can also be a shared one which somebody else is just taking, too.
//
// Cost: 1 round trip; for a shared lock 2 on pgx and 5 on database/sql.
func (c *Client[TX]) TryLockTx(ctx context.Context, tx TX, key Key, cfg *TxConfig) error {
	return c.inTx(ctx, "trylocktx", tx, key, cfg, false)
}

func (c *Client[TX]) inTx(ctx context.Context, verb string, tx TX, key Key, cfg *TxConfig, wait bool) error {
	var none TX
	err := key.Validate()
	if err == nil && any(tx) == any(none) {
		err = errors.New("nil transaction")
	}
	if err == nil {
		err = c.admits(ctx, key)
	}
	if err == nil {
		l := txLock{tx: c.db.Tx(tx), key: key, number: c.engine.number(key), wait: wait}
		if cfg != nil {
			l.mode = *cfg
		}
		err = c.engine.kind.lockTx(ctx, l)
	}
	if err != nil {
		return fmt.Errorf("dblock: %s %s: %w", verb, key, err)
	}
	return nil
}

// admits refuses who would wait for himself, and everybody when the client is closed.
func (c *Client[TX]) admits(ctx context.Context, key Key) error {
	e := c.engine
	outer := outerOf(ctx)
	e.mu.Lock()
	defer e.unlock()
	switch {
	case e.closed:
		return ErrClosed
	case e.holds(outer, key):
		return ErrReentrant
	}
	return nil
}

// txLock is one call of LockTx or TryLockTx.
//
// The companions are what a transaction holds, shared, that is fenced for a holder of the key. When the holder is
// lost and the key is free, that transaction may still be writing. So whoever takes the key
// has to come by a companion: an exclusive one by that of all, and by holding it it also refuses a fence that comes late;
// a shared one by that of exclusive tenures, which it cannot hold without excluding its like.
type txLock struct {
	tx     pg.TxQuerier
	key    Key
	number int64
	mode   TxConfig
	wait   bool
}

func (advisory) lockTx(ctx context.Context, l txLock) error {
	if l.mode.Shared {
		return l.shared(ctx)
	}
	return l.exclusive(ctx)
}

func (l txLock) exclusive(ctx context.Context) error {
	companion := l.number ^ companionMask(false)
	err := l.try(ctx, sqlTryTx, l.number, companion)
	if !l.wait || !errors.Is(err, ErrNotAcquired) {
		return err
	}
	return l.await(ctx, bounded{tx: l.tx}, sqlWaitTx, l.number, companion)
}

func (l txLock) shared(ctx context.Context) error {
	err := l.try(ctx, sqlTrySharedTx, l.number)
	if l.wait && errors.Is(err, ErrNotAcquired) {
		err = l.await(ctx, bounded{tx: l.tx}, sqlWaitSharedTx, l.number)
	}
	if err != nil {
		return err
	}
	companion := l.number ^ companionMask(true)
	if l.wait {
		return l.await(ctx, bounded{tx: l.tx, probe: true}, sqlAwaitTx, companion)
	}
	return l.probe(ctx, companion)
}

// try takes what is free.
func (l txLock) try(ctx context.Context, sql string, numbers ...any) error {
	if ctx.Err() != nil {
		return notAcquired(ctx)
	}
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	var standby, got bool
	err := l.tx.Run(tctx, pg.Stmt{SQL: sql, Args: numbers, Dest: []any{&standby, &got}})
	switch {
	case err != nil:
		return explainTx(err)
	case standby:
		return ErrReadOnly
	case !got:
		return ErrNotAcquired
	}
	return nil
}

// probe tells whether a companion is free.
func (l txLock) probe(ctx context.Context, companion int64) error {
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	var free bool
	err := l.tx.RunAll(tctx, pg.Stmt{SQL: sqlSavepoint},
		pg.Stmt{SQL: sqlProbeTx, Args: []any{companion}, Dest: []any{&free}},
		pg.Stmt{SQL: sqlRollbackTo}, pg.Stmt{SQL: sqlRelease})
	switch {
	case err != nil:
		return explainTx(bounded{tx: l.tx}.undo(ctx, err))
	case !free:
		return ErrNotAcquired
	}
	return nil
}

// await waits in the server's queue.
func (l txLock) await(ctx context.Context, b bounded, sql string, numbers ...any) error {
	if err := b.run(ctx, pg.Stmt{SQL: sql, Args: numbers}); err != nil {
		return explainTx(err)
	}
	return nil
}
