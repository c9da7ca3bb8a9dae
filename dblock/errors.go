package dblock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

var (
	// ErrInvalidKey means that a key cannot be used. Nothing was sent to the database. The error is
	// a [*KeyError].
	ErrInvalidKey = errors.New("invalid key")

	// ErrNotAcquired means that somebody else has the lock: now, for a verb that does not wait, or
	// until ctx ended; then the error matches the ctx's error too. Nothing is held.
	ErrNotAcquired = errors.New("not acquired")

	// ErrLost means that the lock is not ours any more, or may not be. The error is a [*LostError].
	ErrLost = errors.New("lock lost")

	// ErrNotHeld means that the lock was released before.
	ErrNotHeld = errors.New("lock is not held: it was released")

	// ErrReentrant means that the caller holds this lock already: ctx comes from its [Lock.Context].
	// It would wait for itself.
	ErrReentrant = errors.New("lock is held by this very caller; locks are not re-entrant")

	// ErrCollision means that two keys that this process uses at the same time have the same
	// number, so that they would exclude each other, or let one caller wait for itself.
	ErrCollision = errors.New("two keys have the same lock number: rename one")

	// ErrCapacity means that the lock would use up too much of the server's memory for locks, which all
	// its clients share ([Config.MaxLocks]), or that every connection for waiting is taken
	// ([Config.MaxWaiters]). Nothing is held.
	ErrCapacity = errors.New("no capacity for another lock")

	// ErrDeadlock means that the server found a cycle of waits and broke it here. Nothing is held.
	ErrDeadlock = errors.New("deadlock")

	// ErrClosed means that the client is closed, or was while the caller waited. Nothing is held.
	ErrClosed = errors.New("client is closed")

	// ErrReadOnly means that the database is a standby. Its locks exclude nobody on the primary.
	ErrReadOnly = errors.New("database is read-only: locks of a standby exclude nobody on the primary")

	// ErrSessionNotPinned means that something between here and the server, a pooler in transaction
	// mode, hands statements of one session to several server connections. Locks would be
	// left on connections of others. Connect directly, or in session mode.
	ErrSessionNotPinned = errors.New("sessions are not pinned to a server connection: connect directly, or by a pooler in session mode")

	// ErrUnsupported means that the server's advisory locks do not exclude, or that it is older than
	// Postgres 14.
	ErrUnsupported = errors.New("server not supported")

	// ErrSchema means that the library's tables are missing, too old, too new or out of reach. The
	// error says which, and what to run.
	ErrSchema = pg.ErrSchema

	// ErrUnavailable means that no connection could be had, or that it was lost. Nothing is held.
	ErrUnavailable = pg.ErrUnavailable
)

// KeyError says which part of a key cannot be used, and why. It matches [ErrInvalidKey].
type KeyError struct {
	Part   string // "space", "id"
	Reason string
}

func (e *KeyError) Error() string { return e.Part + " " + e.Reason }
func (*KeyError) Unwrap() error   { return ErrInvalidKey }

// LossKind says how a lock was lost.
type LossKind int

// The ways to lose a lock.
const (
	// LostSilence is no answer from the server in time. The server gives the lock to others soon.
	LostSilence LossKind = iota + 1

	// LostConnection is the end of the connection, or of the server's session behind it.
	LostConnection

	// LostFence is a transaction that could not be fenced, since the server says that the lock is
	// gone.
	LostFence

	// LostClosed is [Client.Close].
	LostClosed

	// LostTaken is a lease whose row is not there any more, or has expired by the server's clock: somebody else may
	// have the key.
	LostTaken
)

func (k LossKind) String() string {
	names := [...]string{"unknown", "silence", "connection", "fence", "closed", "taken"}
	if k < 0 || int(k) >= len(names) {
		return names[0]
	}
	return names[k]
}

// LostError says that a lock is lost, since when, and how. It matches [ErrLost] and its cause.
type LostError struct {
	Key   Key
	Token Token
	Kind  LossKind
	Held  time.Duration // from the grant until the loss was known
	Err   error         // what the connection said, if it did
}

func (e *LostError) Error() string {
	s := fmt.Sprintf("%v (%v) after %v", ErrLost, e.Kind, e.Held.Round(time.Millisecond))
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap makes errors.Is find the sentinel as well as the cause.
func (e *LostError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrLost}
	}
	return []error{ErrLost, e.Err}
}

// publicError is what the caller of a verb is told.
func publicError(err error) error {
	switch {
	case err == nil:
		return ErrNotAcquired
	case pg.Code(err) == pg.CodeOutOfMemory:
		return fmt.Errorf("%w: the server has no room for locks left; raise max_locks_per_transaction: %w", ErrCapacity, err)
	case pg.Code(err) == pg.CodeDeadlock:
		return fmt.Errorf("%w: %w", ErrDeadlock, err)
	case pg.Code(err) == pg.CodeLockTimeout:
		return unavailable(fmt.Errorf("a new session has waited for the advisory lock by which sessions join one after the other: %w", err))
	case pg.Rejected(err), errors.Is(err, ErrClosed), errors.Is(err, ErrSchema):
		return err
	}
	return unavailable(err)
}

// unavailable marks an error that came with the end of a connection, or instead of one.
func unavailable(err error) error {
	if errors.Is(err, ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// lossKind tells silence from an end of the connection, and from a lease that is not ours any more.
func lossKind(err error) LossKind {
	if errors.Is(err, errTaken) {
		return LostTaken
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return LostSilence
	}
	return LostConnection
}
