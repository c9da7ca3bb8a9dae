package statemachine

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pgonce/pgonce/internal/pg"
)

// Every error of [Binding.Fire] and [Binding.FireTx] matches exactly one of these, or is
// the server's own (a constraint of the user's table, for one). With each of them nothing was
// changed, but for [ErrUnknownOutcome].
var (
	// ErrInvalid means that a definition, a table's name or the arguments of a call cannot be used.
	// Nothing was sent to the database, so a transaction is alive. The error is an
	// [*InvalidError], or joins several.
	ErrInvalid = errors.New("not usable")

	// ErrConflict means that the row is in a state which the event neither leaves nor leads to,
	// that it is not the row which a [Match] describes, or not at the version that was expected. A transaction is
	// alive. The error is a [*ConflictError], which says which of them.
	ErrConflict = errors.New("conflict")

	// ErrNotFound means that there is no such row, or none that this role may update. A
	// transaction is alive.
	ErrNotFound = errors.New("row not found")

	// ErrGuard means that a [Where] does not hold. A transaction is alive. The
	// error is a [*GuardError].
	ErrGuard = errors.New("guard does not hold")

	// ErrUnknownState means that the row is in a state that this machine does not have, or in
	// none. A transaction is alive. The error is an [*UnknownStateError].
	ErrUnknownState = errors.New("unknown state")

	// ErrDedupReused means that the id of a [Dedup] belongs to another event of the same row. A
	// transaction is alive. The error is a [*DedupReusedError].
	ErrDedupReused = errors.New("dedup id was used for another event")

	// ErrBusy means that somebody held the row for longer than [Binding.Fire] waits, or than lock_timeout
	// allows. The statement has failed, so a transaction can only be rolled back.
	ErrBusy = errors.New("row is busy")

	// ErrRetryTx means that the transaction cannot go on for a reason that a new one may not meet:
	// the row was changed since its snapshot (40001, above READ COMMITTED), a deadlock
	// (40P01), or a statement that a migration has made stale. Roll back and repeat the whole
	// transaction. [Binding.Fire] does so by itself, five times.
	ErrRetryTx = errors.New("transaction must be repeated")

	// ErrDiverted means that a trigger has swallowed the move, or made another one of it. The
	// statement has failed, so a transaction can only be rolled back. After [Binding.CreateTx] it may be alive.
	ErrDiverted = errors.New("a trigger diverted the move")

	// ErrTriggerRefused means that the trigger of [Binding.TriggerSQL] does not allow the move: the database holds another
	// version of the machine than this program, which the next attempt meets again. The statement has failed, so
	// unlike after [ErrConflict] a transaction can only be rolled back. The error is a [*TriggerError].
	ErrTriggerRefused = errors.New("trigger refused the move")

	// ErrReadOnly means that the database or the transaction does not accept writes.
	ErrReadOnly = errors.New("database is read-only")

	// ErrUnknownOutcome means that the answer to a statement outside a transaction never came: the move
	// may have been made or not. Firing again is safe with [Dedup], and wherever the
	// state tells.
	ErrUnknownOutcome = errors.New("outcome unknown")

	// ErrUnavailable means that no connection could be had, or that the caller's transaction was lost
	// with it. Nothing was done.
	ErrUnavailable = pg.ErrUnavailable

	// ErrSchema means that the user's table or the library's is missing, not as it has to be, or
	// out of reach. The error says which, and what to do.
	ErrSchema = pg.ErrSchema
)

// InvalidError says what cannot be used, and why. It matches [ErrInvalid].
type InvalidError struct {
	Part   string
	Reason string
}

func (e *InvalidError) Error() string { return e.Part + " " + e.Reason }
func (*InvalidError) Unwrap() error   { return ErrInvalid }

// IsRetryable reports whether the same call may be made again as it is, and may then succeed: nothing was changed,
// and the reason passes. Those are [ErrRetryTx], [ErrBusy] and [ErrUnavailable]. In a caller's
// transaction it is the whole transaction that has to be made again.
//
// It is false for [ErrUnknownOutcome]: there the move may have been made, and only [Dedup] or a state
// that tells makes it safe to fire again.
func IsRetryable(err error) bool {
	return errors.Is(err, ErrRetryTx) || errors.Is(err, ErrBusy) || errors.Is(err, ErrUnavailable)
}

// Reason is what a conflict is about.
type Reason int

// The reasons. The zero Reason is none of them.
const (
	_ Reason = iota

	// ReasonState means that the event does not leave the state that the row is in.
	ReasonState

	// ReasonMatch means that a [Match] does not hold: it is another event than it claims to be.
	ReasonMatch

	// ReasonVersion means that the row is not at the version of [ExpectVersion].
	ReasonVersion
)

// String is the reason's name.
func (r Reason) String() string {
	switch r {
	case ReasonState:
		return "state"
	case ReasonMatch:
		return "match"
	case ReasonVersion:
		return "version"
	}
	return fmt.Sprintf("Reason(%d)", int(r))
}

// ConflictError says where the row is instead. It matches [ErrConflict].
type ConflictError struct {
	Machine string
	ID      any
	Event   string
	Reason  Reason

	State   string   // where the row is
	Sources []string // where the event would move it
	Allowed []string // the events that would move it from where it is
	Final   bool     // the state is final

	// InTarget says that the state is the event's own target, and that the history does not show that this
	// event has led there.
	InTarget bool

	// Expr is the [Match] that does not hold, as it was given.
	Expr string

	// WantVersion and Version differ, where it was [ExpectVersion] that failed. Version is 0 where the column is NULL.
	WantVersion, Version int64
}

func (e *ConflictError) Error() string {
	switch e.Reason {
	case ReasonVersion:
		if e.Version == e.WantVersion { // it was not the number that failed
			return fmt.Sprintf("%v: row %v has no version (NULL), so it is not at %d", ErrConflict, e.ID, e.WantVersion)
		}
		return fmt.Sprintf("%v: row %v is at version %d, not %d", ErrConflict, e.ID, e.Version, e.WantVersion)
	case ReasonMatch:
		return fmt.Sprintf("%v: row %v in %q is not what %q is about: Match(%q)", ErrConflict, e.ID, e.State, e.Event, e.Expr)
	}
	if e.Event == eventCreate {
		return fmt.Sprintf("%v: row %v is there already, in %q, and was not created so", ErrConflict, e.ID, e.State)
	}
	where := fmt.Sprintf("%v: row %v is %q, %q needs %s", ErrConflict, e.ID, e.State, e.Event, list(e.Sources))
	if e.InTarget {
		where += "; it is there by another event, or by none"
	}
	if e.Final && len(e.Allowed) == 0 {
		return where + "; that state is final"
	}
	return where + "; allowed there: " + list(e.Allowed)
}
func (*ConflictError) Unwrap() error { return ErrConflict }

// GuardError says which condition does not hold. It matches [ErrGuard].
type GuardError struct {
	Machine string
	ID      any
	Event   string
	State   string // where the row is
	Expr    string // as it was given to Where
}

func (e *GuardError) Error() string {
	return fmt.Sprintf("%v: row %v in %q: Where(%q)", ErrGuard, e.ID, e.State, e.Expr)
}
func (*GuardError) Unwrap() error { return ErrGuard }

// UnknownStateError says what the state column holds. It matches [ErrUnknownState].
type UnknownStateError struct {
	Machine string
	ID      any
	State   string
	Null    bool // the column is NULL
}

func (e *UnknownStateError) Error() string {
	if e.Null {
		return fmt.Sprintf("%v: row %v has NULL", ErrUnknownState, e.ID)
	}
	return fmt.Sprintf("%v: row %v has %q: is this an older release of the program?", ErrUnknownState, e.ID, e.State)
}
func (*UnknownStateError) Unwrap() error { return ErrUnknownState }

// DedupReusedError says what the id was used for. It matches [ErrDedupReused].
type DedupReusedError struct {
	Machine string
	ID      any
	Event   string
	First   string // the event that the id belongs to
	Seq     int64  // of the first, in the history
}

func (e *DedupReusedError) Error() string {
	return fmt.Sprintf("%v: row %v: it belongs to %q", ErrDedupReused, e.ID, e.First)
}
func (*DedupReusedError) Unwrap() error { return ErrDedupReused }

// TriggerError says what the database's trigger refused. It matches [ErrTriggerRefused] and unwraps to the server's error.
type TriggerError struct {
	Machine  string // as the database has it
	ID       any    // nil for a row of [Binding.FireManyTx]
	Event    string
	From, To string
	New      bool   // it was a row that began in To
	Table    string // where the row is: with partitions, the partition
	Err      error
}

func (e *TriggerError) Error() string {
	what := fmt.Sprintf("from %q to %q", e.From, e.To)
	if e.New {
		what = fmt.Sprintf("as a new row in %q", e.To)
	}
	row := "a row"
	if e.ID != nil {
		row = fmt.Sprintf("row %v", e.ID)
	}
	return fmt.Sprintf("%v: %s %s: the database's version of machine %q does not allow it; run the migration that TriggerSQL makes of this program's: %v",
		ErrTriggerRefused, row, what, e.Machine, e.Err)
}

// Unwrap makes errors.Is find the sentinel as well as the cause.
func (e *TriggerError) Unwrap() []error { return []error{ErrTriggerRefused, e.Err} }

func list(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}
