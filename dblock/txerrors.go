package dblock

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/pgonce/pgonce/internal/pg"
)

// Facts about the caller's own transaction.
var (
	// ErrRetryTx means that the transaction cannot go on for a reason that a new one may not meet: a
	// deadlock (40P01), a row that has changed since its snapshot (40001, above READ COMMITTED), or one that
	// has moved to another partition. Roll back and repeat the whole transaction.
	ErrRetryTx = errors.New("transaction must be repeated")

	// ErrTxUnusable means that the transaction can only be rolled back: a statement in it had failed
	// before.
	ErrTxUnusable = errors.New("transaction can only be rolled back")

	// ErrReadOnlyTx means that rows were to be locked in a READ ONLY transaction, or on a standby: locking a row
	// is a write.
	ErrReadOnlyTx = errors.New("transaction is read-only: locking a row is a write")

	// ErrIsolation means that LockTx of a client of leases was called in a transaction above READ COMMITTED. That would not see
	// a lease that was granted after its first statement.
	ErrIsolation = errors.New("transaction must be READ COMMITTED to see who has a lease")

	// ErrRowMissing means that some of the rows are not there, or not for this role to see. The error is
	// a [*RowMissingError].
	ErrRowMissing = errors.New("row not found")

	// ErrInvalidTable means that a table, a mode or a row's key cannot be used. Nothing was sent
	// to the database.
	ErrInvalidTable = errors.New("invalid table or rows")
)

// RowMissingError says which rows [LockRowsTx] has not found. It matches [ErrRowMissing]. The other
// ones are locked.
type RowMissingError struct {
	Table string   // as in SQL
	Keys  []string // as text, in the order in which they were asked for
}

func (e *RowMissingError) Error() string {
	const most = 5
	keys, rest := e.Keys, ""
	if len(keys) > most {
		keys, rest = keys[:most], fmt.Sprintf(" and %d more", len(e.Keys)-most)
	}
	return fmt.Sprintf("%v: %s in %s%s: what is not there cannot be locked; insert it first, or lock a Key", ErrRowMissing, strings.Join(keys, ", "), e.Table, rest)
}
func (*RowMissingError) Unwrap() error { return ErrRowMissing }

// undoError is a savepoint that could not be gone back to.
type undoError struct{ undo, cause error }

func (e *undoError) Error() string {
	return fmt.Sprintf("%v: its savepoint could not be rolled back: %v, after: %v", ErrTxUnusable, e.undo, e.cause)
}
func (e *undoError) Unwrap() []error { return []error{ErrTxUnusable, e.undo, e.cause} }

// notAcquired is the end of a wait by the end of ctx.
func notAcquired(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return fmt.Errorf("%w: %w", ErrNotAcquired, cause)
	}
	return fmt.Errorf("%w: %w: %w", ErrNotAcquired, err, cause)
}

// explainTx says what an error of a statement means for the caller's transaction, and for its wait.
func explainTx(err error) error {
	if errors.Is(err, ErrTxUnusable) || errors.Is(err, ErrNotAcquired) {
		return err
	}
	switch code := pg.Code(err); code {
	case pg.CodeDeadlock:
		return fmt.Errorf("%w: %w: %w", ErrDeadlock, ErrRetryTx, err)
	case pg.CodeSerialization:
		return fmt.Errorf("%w: %w", ErrRetryTx, err)
	case pg.CodeFailedTx:
		return fmt.Errorf("%w: a statement in it had failed: %w", ErrTxUnusable, err)
	case pg.CodeReadOnlyTx:
		return fmt.Errorf("%w: %w", ErrReadOnlyTx, err)
	case pg.CodeOutOfMemory:
		return fmt.Errorf("%w: %w", ErrCapacity, err)
	case pg.CodeLockTimeout: // of NOWAIT
		return fmt.Errorf("%w: %w", ErrNotAcquired, err)
	}
	switch {
	case pg.Rejected(err), errors.Is(err, pg.ErrTxEnded):
		return err
	}
	return fmt.Errorf("%w: the transaction is lost: %w", ErrUnavailable, err)
}
