package dblock

import (
	"context"
	"fmt"

	"github.com/pgonce/pgonce/internal/pg"
)

// FenceTx makes the lock's protection last as long as the caller's transaction: until that ends, nobody gets
// the lock who is excluded by it, whatever becomes of this process, its lock and its connections. So a write
// of a holder who has lost the lock never lands: either FenceTx says [ErrLost], or the successor waits.
//
// Begin the transaction after Acquire, and call FenceTx before the first statement whose effect or answer depends on the
// lock. Rolling back to a savepoint from before the call drops the fence. It must run on the database that gave the lock.
//
// Errors: [ErrLost], [ErrNotHeld]; roll the transaction back then. A lock that was fenced is never handed over in memory.
//
// Cost: a round trip on the transaction's connection; two advisory locks until it ends. It never waits and writes nothing. The
// fence of a lease is a lock on its row, FOR KEY SHARE: it writes, so the transaction must not be READ ONLY, and may wait for
// somebody who finds the row expired, at most the TTL. Above READ COMMITTED it is refused with [ErrRetryTx] when the lease was
// lost after the transaction's snapshot.
func (l *Lock[TX]) FenceTx(ctx context.Context, tx TX) error {
	t := l.tenure
	if err := t.fence(ctx, l.client.db.Tx(tx)); err != nil {
		return fmt.Errorf("dblock: fence %s: %w", t.key, err)
	}
	return nil
}

func (t *tenure) fence(ctx context.Context, tx pg.Querier) error {
	e := t.engine
	e.mu.Lock()
	err := t.check()
	if err == nil {
		t.hold.fenced = true // before the fence is there: the hold may be given back while it is on its way
	}
	e.unlock()
	if err != nil {
		return err
	}
	held, err := t.hold.ground.fence(ctx, tx, t)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.unlock()
	if !held && t.over == nil { // the server knows better: all that was held there is gone
		t.hold.ground.lose(LostFence, nil)
	}
	return t.over // if it has ended meanwhile, the key may have been given away before the fence was there
}

// fence reports whether the session has its locks still, and keeps successors out if it has.
func (s *session) fence(ctx context.Context, tx pg.Querier, t *tenure) (held bool, err error) {
	n := t.hold.entry.number
	all, those := n^companionAny, n^companionExclusive
	if t.shared { // it holds up no shared ones
		those = all
	}
	var verdict string
	err = tx.Run(ctx, pg.Stmt{SQL: sqlFence, Args: []any{all, those, s.alone}, Dest: []any{&verdict}})
	return verdict == "ok", err
}
