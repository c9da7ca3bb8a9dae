package statemachine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// Outcome is what an event came to.
type Outcome int

// The outcomes. The zero Outcome is none of them.
const (
	_ Outcome = iota

	// Applied means that this call has moved the row. It is the one that effects belong to.
	Applied

	// AlreadyApplied means that the row is in the event's target and that this event has put it
	// there, or that the id of [Dedup] has been answered before.
	AlreadyApplied

	// Superseded means that the machine ignores the event in the row's state.
	Superseded
)

// String is the outcome's name.
func (o Outcome) String() string {
	switch o {
	case Applied:
		return "Applied"
	case AlreadyApplied:
		return "AlreadyApplied"
	case Superseded:
		return "Superseded"
	}
	return fmt.Sprintf("Outcome(%d)", int(o))
}

// Result is the answer to an event.
type Result[S StateType] struct {
	Outcome Outcome

	// From and To are the states before and after the move. For the repeat of a [Dedup] id they are those of
	// the first answer. Where nothing is known to have been moved, both are the row's state.
	From, To S

	// Seq and At are the move's number and time in the history: of this move, or of the first
	// answer to a [Dedup] id. Otherwise zero. Seq rises from move to move of a row; it has gaps.
	Seq int64
	At  time.Time

	// Version is the version column's value after the move, where one is bound.
	Version int64
}

// Applied reports whether this call has moved the row.
func (r Result[S]) Applied() bool { return r.Outcome == Applied }

// The outcomes as they are stored.
const (
	storedApplied int64 = 0
	storedAlready int64 = 1
	storedIgnored int64 = 2
)

// refusedVersion is what is decided when the version is not the expected one. The conditions of Where come after it. Those of Match
// count from -1 downwards.
const refusedVersion = 10

// move is what a statement says of a move: its own, or the one that a dedup id belongs to.
type move struct {
	from, to *string
	outcome  *int64
	version  *int64 // before it; of what a dedup id has found, after it
	seq      *int64
	at       *time.Time
}

// answer is the row that a statement returns.
type answer struct {
	move             // the outcome is nil for a refusal by the state; see refused
	locked   bool    // there is a row, and it was locked
	passed   *string // a row that was not locked: version and state, or "" if that takes another statement
	unlocked bool    // answered without a lock
	first    *string // the event that the dedup id belongs to; then the move is what it came to
	written  bool    // this statement has written the history, or the row where there is none
	rows     int64   // of many: how many rows have the id
	twin     bool    // of many: another id names the same row
	check    *int64  // of Create: always NULL; computing it fails when a trigger has diverted the row
	restored int64   // nobody's concern; computing it puts lock_timeout back
	known    *move   // what the statement has found of the dedup id
}

// refused says whether the row stays where it is, by its state or by a condition.
func (a *answer) refused() bool {
	return a.outcome == nil || *a.outcome < storedApplied || *a.outcome >= refusedVersion
}

// complete draws the conclusions from what was scanned, as far as the statement does not matter.
func (a *answer) complete() {
	a.written = a.to != nil
	if a.first != nil {
		a.move = *a.known
	}
	if version, state, ok := strings.Cut(value(a.passed), ":"); ok {
		a.unlocked, a.from = true, &state
		if n, err := strconv.ParseInt(version, 10, 64); err == nil {
			a.version = &n
		}
	}
}

// lost says that the row was to be answered without a lock when its lock was to be had, and not before.
func (a *answer) lost() bool { return a.passed != nil && !a.unlocked }

// result turns an answer into what the caller gets.
func (f *firing[K, S, TX]) result(a answer) (Result[S], error) {
	var res Result[S]
	switch {
	case a.first != nil && *a.first != f.event.name:
		return res, &DedupReusedError{Machine: f.b.m.name, ID: f.id, Event: f.event.name, First: *a.first, Seq: value(a.seq)}
	case !a.locked && a.from == nil:
		return res, fmt.Errorf("%w: %v in %s", ErrNotFound, f.id, f.b.table)
	case a.rows > 1:
		return res, fmt.Errorf("%w: table %s: column %q is not unique; add a unique index", ErrSchema, f.b.table, f.b.table.ID)
	case a.refused() && !a.unlocked:
		return res, f.refusal(&a)
	}
	res.From, _ = stateOf[S](value(a.from))
	res.To = res.From
	if a.to != nil {
		res.To, _ = stateOf[S](*a.to)
	}
	res.Seq, res.At, res.Version = value(a.seq), value(a.at), value(a.version)
	switch {
	case a.unlocked && slices.Contains(f.mv.ignored, res.From), a.outcome != nil && *a.outcome == storedIgnored:
		res.Outcome = Superseded
	case a.unlocked || a.first != nil || *a.outcome == storedAlready:
		res.Outcome = AlreadyApplied
	case *a.outcome == storedApplied && a.written:
		res.Outcome = Applied
		if a.version != nil {
			res.Version++
		}
	default: // an id that was there and is gone: somebody purges the history under our hands
		return Result[S]{}, fmt.Errorf("%w: its dedup id was removed meanwhile", ErrRetryTx)
	}
	return res, nil
}

// refusal says why the row stays where it is.
func (f *firing[K, S, TX]) refusal(a *answer) error {
	m, text := f.b.m, value(a.from)
	state, ok := stateOf[S](text)
	if a.from == nil || !ok || !slices.Contains(m.states, state) {
		return &UnknownStateError{Machine: m.name, ID: f.id, State: text, Null: a.from == nil}
	}
	target := slices.Contains(f.mv.idle, state)
	conflict := &ConflictError{
		Machine: m.name, ID: f.id, Event: f.event.name, Reason: ReasonState, State: text, Sources: texts(f.mv.sources), Final: m.IsFinal(state), InTarget: target,
	}
	for _, ev := range m.Allowed(state) {
		conflict.Allowed = append(conflict.Allowed, ev.name)
	}
	meant := slices.Contains(f.mv.sources, state) || target || slices.Contains(f.mv.ignored, state)
	switch by := value(a.outcome); {
	case meant && by < 0:
		conflict.Reason, conflict.Expr = ReasonMatch, f.call.match[-by-1].text
	case by == refusedVersion:
		conflict.Reason, conflict.WantVersion, conflict.Version = ReasonVersion, *f.call.version, value(a.version)
	case by > refusedVersion:
		return &GuardError{Machine: m.name, ID: f.id, Event: f.event.name, State: text, Expr: f.call.where[by-refusedVersion-1].text}
	}
	return conflict
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// The SQLSTATE codes that this package decides by, beside those of the seam.
const (
	codeReadOnly        = "25006"
	codeCheck           = "23514"
	codeInvalidText     = "22P02"
	codeSeveralRows     = "21000"
	codeUndefinedColumn = "42703"
	codeNoOperator      = "42883"
	codeUndefinedType   = "42704"
	codeWrongType       = "42804"
)

// explain turns the server's answer into the package's facts.
func (f *firing[K, S, TX]) explain(err error) error {
	switch code := pg.Code(err); {
	case code == pg.CodeSerialization, code == pg.CodeDeadlock, code == pg.CodeStalePlan, code == pg.CodeNoSuchStatement:
		return fmt.Errorf("%w: %w", ErrRetryTx, err)
	case code == pg.CodeLockTimeout:
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case code == codeSeveralRows && !f.many: // a statement on many rows counts them
		return fmt.Errorf("%w: table %s: column %q is not unique: add a unique index (unless a statement of a trigger has failed): %w", ErrSchema, f.b.table, f.b.table.ID, err)
	case code == codeCheck:
		return f.explainTrigger(err)
	case code == codeReadOnly:
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	case code == codeInvalidText && strings.Contains(err.Error(), "pgonce: diverted"):
		return fmt.Errorf("%w: %w", ErrDiverted, err)
	case code == pg.CodeNoPrivilege:
		return fmt.Errorf("%w: this role lacks a right on %s or on the history, or a row security policy refuses the row: %w", ErrSchema, f.b.table, err)
	case tableChanged(err):
		f.b.found.Store(nil)
		return pg.ExplainSchema(f.b.table.Schema, err)
	}
	return err
}

// tableChanged says whether a statement was refused because the table is not what it was; or
// because an expression of the caller's is wrong, which looks the same.
func tableChanged(err error) bool {
	switch pg.Code(err) {
	case pg.CodeUndefinedTable, pg.CodeNoSuchSchema, codeUndefinedColumn, codeUndefinedType, codeWrongType, codeNoOperator:
		return true
	}
	return false
}

// lostInTx names the loss of a connection with an open transaction on it: nothing is left of that.
func lostInTx(ctx context.Context, err error) error {
	switch {
	case err == nil || isOurs(err):
		return err
	case errors.Is(err, pg.ErrNotSent):
		return unfit(err)
	case pg.Rejected(err):
		return cancelled(ctx, err)
	case ctx.Err() != nil:
		err = errors.Join(context.Cause(ctx), err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// unfit names an argument that is none for the client library: nothing was sent, so a transaction is alive.
func unfit(err error) error {
	return fmt.Errorf("%w: %w", &InvalidError{"argument of an option", "does not fit its column or its place in the expression"}, err)
}

// cancelled adds why the server cancelled a statement: a client library that answers the end of ctx with a
// cancel request, and waits for what becomes of it, knows that nothing was done.
func cancelled(ctx context.Context, err error) error {
	if pg.Code(err) == pg.CodeQueryCanceled && ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return err
}

// lostOutside names the loss of a connection on which a statement was under way.
func lostOutside(ctx context.Context, err error) error {
	switch {
	case isOurs(err):
		return err
	case errors.Is(err, pg.ErrNotSent):
		return unfit(err)
	case pg.Rejected(err):
		return cancelled(ctx, err)
	case ctx.Err() != nil:
		err = errors.Join(context.Cause(ctx), err)
	}
	return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
}

// isOurs says whether an error has its name already.
func isOurs(err error) bool {
	for _, known := range []error{ErrInvalid, ErrSchema, ErrUnavailable, pg.ErrOutcomeUnknown} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// publish turns the seam's facts into the exported ones and says what it is about.
func (b *Binding[K, S, TX]) publish(ev Event[S], err error) error {
	switch {
	case errors.Is(err, pg.ErrTxLost):
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	case errors.Is(err, pg.ErrOutcomeUnknown):
		err = fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	}
	return fmt.Errorf("statemachine: fire %q of %q: %w", ev.name, b.m.name, err)
}
