package idem

import (
	"context"
	"fmt"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

const (
	resolveWithin = 20 * time.Second       // then the outcome is reported as unknown
	resolveWait   = 500 * time.Millisecond // for the lock, before something is done about its holder
	resolvePause  = 50 * time.Millisecond  // between attempts to connect
)

// resolve finds out what became of a commit whose answer was lost.
//
// The lost transaction held the key's lock, and a transaction lets go of its locks after its
// commit has become visible. So whoever gets the lock afterwards, on a fresh connection, and
// then looks with a fresh snapshot, sees the outcome: the record with our attempt, or, on a
// primary, proof that there is none. In that case nothing of the transaction is left, and it is
// safe to run again.
//
// It does not heed the end of ctx: an effect may be out there, and its caller wants to know.
func (e *execution[TX]) resolve(ctx context.Context, result []byte, lost error) (record, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resolveWithin)
	defer cancel()
	e.turn.pass() // this may take long, and others may find out sooner
	for {
		rec, standby, err := e.call.await(ctx, resolveWait)
		switch {
		case err == nil && rec.rows > 0 && rec.attempt == e.attempt:
			e.call.tell(Resolved, nil)
			return e.call.ownRecord(e.attempt, stateDone, rec.createdAt, result), nil
		case err == nil && rec.rows > 0:
			return rec, nil
		case err == nil && !standby:
			return record{}, fmt.Errorf("%w: resolved after: %v", pg.ErrTxLost, lost) //nolint:errorlint // it is known now
		case pg.Code(err) == pg.CodeLockTimeout:
			err = e.terminate(ctx)
		}
		if !e.again(ctx, err) {
			return record{}, fmt.Errorf("%w; then: %v", lost, err) //nolint:errorlint // what the last try met is no fact about the outcome
		}
	}
}

// again pauses before the next look, and says no when there is no time or no sense in one.
func (e *execution[TX]) again(ctx context.Context, err error) bool {
	if pg.Rejected(err) && !isStale(err) {
		return false
	}
	timer := time.NewTimer(resolvePause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// terminate ends our old backend, which still holds the lock because nobody has told it that
// its client is gone. If it is somebody else who holds the lock, ours is over, and the next
// look will tell.
func (e *execution[TX]) terminate(ctx context.Context) error {
	var n int64
	return e.call.store.db.Pool().Run(ctx, pg.Stmt{
		SQL:  sqlTerminate,
		Args: []any{e.guard.pid, e.guard.start, e.call.lock()},
		Dest: []any{&n},
	})
}
