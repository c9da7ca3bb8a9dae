package statemachine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// State reads the state that a row is in. It is a statement about the moment; what has to be true of a
// row while it is moved belongs into the event.
//
// Errors: [ErrNotFound], [ErrUnknownState], [ErrInvalid], [ErrUnavailable], [ErrSchema]. Cost: one statement, no
// locks.
func (b *Binding[K, S, TX]) State(ctx context.Context, id K) (S, error) {
	return b.state(ctx, b.db.Pool(), id)
}

// StateTx is [Binding.State] in the caller's transaction.
func (b *Binding[K, S, TX]) StateTx(ctx context.Context, tx TX, id K) (S, error) {
	if isNil(tx) {
		return *new(S), fmt.Errorf("statemachine: state in %q: %w", b.m.name, &InvalidError{"transaction", "is nil"})
	}
	return b.state(ctx, b.db.Tx(tx), id)
}

func (b *Binding[K, S, TX]) state(ctx context.Context, q pg.Querier, id K) (s S, err error) {
	var text *string
	var rows int64
	if err = b.readable(ctx, q, id); err == nil {
		err = b.run(ctx, q, onState, &call{}, pg.Stmt{Args: []any{idArg(id)}, Dest: []any{&text}, Rows: &rows})
	}
	s, ok := stateOf[S](value(text))
	switch {
	case err != nil:
		err = b.unread(ctx, err)
	case rows == 0:
		err = fmt.Errorf("%w: %v in %s", ErrNotFound, id, b.table)
	case text == nil || !ok || !slices.Contains(b.m.states, s):
		err = &UnknownStateError{Machine: b.m.name, ID: id, State: value(text), Null: text == nil}
	default:
		return s, nil
	}
	return *new(S), fmt.Errorf("statemachine: state in %q: %w", b.m.name, err)
}

// readable refuses what would spoil a caller's transaction.
func (b *Binding[K, S, TX]) readable(ctx context.Context, q pg.Querier, id K) error {
	f := &firing[K, S, TX]{b: b, id: id, mv: &moves[S]{}, arg: idArg(id)}
	if reason := b.faultOfID(f.arg); reason != "" {
		return &InvalidError{"id", reason}
	}
	if err := b.faultOfScope(); err != nil {
		return err
	}
	return f.prepare(ctx, q, false)
}

// unread names the failure of a statement that only reads.
func (b *Binding[K, S, TX]) unread(ctx context.Context, err error) error {
	f := &firing[K, S, TX]{b: b}
	return lostInTx(ctx, f.explain(err))
}

// Transition is one row of a history.
type Transition[S StateType] struct {
	Seq     int64
	At      time.Time
	Event   string // of the machine, "(create)" or "(adopt)"
	Outcome Outcome

	// From and To are the states before and after. From is the zero value for what begins a history. What a release before
	// this one has called otherwise is here as it was.
	From, To S

	Version int64 // after the move, where a version column is bound
	Dedup   string
	Actor   string
	Meta    json.RawMessage // nil without
}

// History reads what has become of a row, in order: moves, and the answers that the ids of [Dedup] got without one. A row
// that does not exist, or has no history, has none here either.
//
// The rows are read while the loop runs, which holds a connection until it ends. An error ends it: [ErrInvalid], [ErrUnavailable],
// [ErrSchema]. Cost: one statement, no locks.
func (b *Binding[K, S, TX]) History(ctx context.Context, id K) iter.Seq2[Transition[S], error] {
	return func(yield func(Transition[S], error) bool) {
		err := b.readHistory(ctx, id, func(tr Transition[S]) bool { return yield(tr, nil) })
		if err != nil {
			yield(Transition[S]{}, fmt.Errorf("statemachine: history in %q: %w", b.m.name, err))
		}
	}
}

func (b *Binding[K, S, TX]) readHistory(ctx context.Context, id K, yield func(Transition[S]) bool) error {
	q := b.db.Pool()
	if b.table.NoHistory {
		return &InvalidError{"History", "needs the history that NoHistory has turned off"}
	}
	if err := b.readable(ctx, q, id); err != nil {
		return err
	}
	sql, args, err := b.text(ctx, q, onHistory, &call{}, []any{idArg(id), b.m.name})
	if err != nil {
		return err
	}
	for scan, err := range q.Query(ctx, sql, args...) {
		var tr Transition[S]
		var from, to, meta string
		var stored int64
		if err == nil {
			err = scan(&tr.Seq, &tr.At, &tr.Event, &from, &to, &stored, &tr.Version, &tr.Dedup, &tr.Actor, &meta)
		}
		if err != nil {
			return b.unread(ctx, err)
		}
		tr.From, _ = stateOf[S](from)
		tr.To, _ = stateOf[S](to)
		tr.Outcome = map[int64]Outcome{storedApplied: Applied, storedAlready: AlreadyApplied, storedIgnored: Superseded}[stored]
		if meta != "" {
			tr.Meta = json.RawMessage(meta)
		}
		if !yield(tr) {
			return nil
		}
	}
	return nil
}

// BreakKind is what is wrong with a history.
type BreakKind int

// The kinds of breaks. The zero BreakKind is none of them.
const (
	_ BreakKind = iota

	// BreakInChain means that a move does not begin where the one before has ended: somebody has moved the row between them
	// without a history.
	BreakInChain

	// BreakAtRow means that the row is not where its last move has ended: somebody has moved it since.
	BreakAtRow

	// BreakAtStart means that a row without a history is not in an initial state: it was inserted or moved without one. [Binding.Adopt]
	// begins its history.
	BreakAtStart
)

// String is the kind's name.
func (k BreakKind) String() string {
	switch k {
	case BreakInChain:
		return "in the chain"
	case BreakAtRow:
		return "at the row"
	case BreakAtStart:
		return "at the start"
	}
	return fmt.Sprintf("BreakKind(%d)", int(k))
}

// Break is a place where a history and its row do not fit together.
type Break struct {
	Kind BreakKind
	ID   string // of the row, as the history has it

	// Seq, At and Event are those of the move that does not begin as it should, or after which the row was moved.
	Seq   int64
	At    time.Time
	Event string

	Want string // the state that the history leads to; "" for a row that has none
	Got  string // the state that was found instead; "" is NULL
}

// String says it in words.
func (b Break) String() string {
	switch b.Kind {
	case BreakInChain:
		return fmt.Sprintf("row %s: move %d (%s) begins in %q, the one before has ended in %q", b.ID, b.Seq, b.Event, b.Got, b.Want)
	case BreakAtRow:
		return fmt.Sprintf("row %s is in %q, its last move %d (%s) has ended in %q", b.ID, b.Got, b.Seq, b.Event, b.Want)
	}
	return fmt.Sprintf("row %s is in %q and has no history", b.ID, b.Got)
}

// VerifyHistory compares every row of the table with its history, and names each break: what somebody has moved by raw SQL, or a
// restore has brought together that does not belong together. It does not name rows that were deleted, and it
// cannot see a detour that led back to where it began.
//
// The rows are read while the loop runs; an error ends it: [ErrInvalid], [ErrUnavailable], [ErrSchema]. Cost: one statement, which
// reads the table and all of the machine's history in one snapshot, and sorts it; no locks. Up to the first row, and
// between two, it has an hour; for a large table run it by the scope.
func (b *Binding[K, S, TX]) VerifyHistory(ctx context.Context) iter.Seq2[Break, error] {
	return func(yield func(Break, error) bool) {
		err := b.readBreaks(ctx, func(br Break) bool { return yield(br, nil) })
		if err != nil {
			yield(Break{}, fmt.Errorf("statemachine: verify history of %q: %w", b.m.name, err))
		}
	}
}

// auditHour is how many network deadlines a look at all rows has, which reads and sorts before it answers: an hour.
const auditHour = 240

func (b *Binding[K, S, TX]) readBreaks(ctx context.Context, yield func(Break) bool) error {
	q := b.db.Pool()
	if b.table.NoHistory {
		return &InvalidError{"VerifyHistory", "needs the history that NoHistory has turned off"}
	}
	if err := b.faultOfScope(); err != nil {
		return err
	}
	sql, args, err := b.text(ctx, q, onBreaks, &call{}, []any{b.m.name, array(b.m.initial)})
	if err != nil {
		return err
	}
	for scan, err := range q.Query(pg.WithNetTimeout(ctx, auditHour*pg.NetTimeout(ctx)), sql, args...) {
		var br Break
		var kind int64
		var at *time.Time
		if err == nil {
			err = scan(&kind, &br.ID, &br.Seq, &at, &br.Event, &br.Want, &br.Got)
		}
		if err != nil {
			return b.unread(ctx, err)
		}
		br.Kind, br.At = BreakKind(kind), value(at)
		if !yield(br) {
			return nil
		}
	}
	return nil
}

// Statements are the texts that calls with the same options run. Their arguments are explained in the package's SQL files, where those
// that a text does not use are left out and the others move up;
// the arguments of the options come after those, in the order ExpectVersion, Where, Match, Set, and then those of the scope.
type Statements struct {
	Move     string // of Fire and FireTx for an event with one source, where the options allow it; Fire comes after it if it cannot tell. Or ""
	Fire     string // of Fire. FireTx sets no limit to the wait; an event that no other shares a target with does not look for the last move
	FireMany string // of FireMany, FireManyTx, and Sweep after Due
	Create   string
	Due      string // of Sweep; "" without Table.Since
}

// SQL shows what runs for calls with these options, for a reviewer or an administrator to read and to explain. The values of
// their arguments do not matter: a text depends on the shape of the options, is made once for each, and is then the same for every call. The table is looked at
// if it has not been.
//
// Errors: [ErrInvalid], [ErrUnavailable], [ErrSchema].
func (b *Binding[K, S, TX]) SQL(ctx context.Context, opts ...Option) (Statements, error) {
	f := &firing[K, S, TX]{b: b}
	c := &f.call
	c.apply(opts)
	f.checkOptions(nil)
	if len(c.findings) > 0 {
		return Statements{}, fmt.Errorf("statemachine: SQL of %q: %w", b.m.name, errors.Join(c.findings...))
	}
	var out Statements
	l, err := b.ready(ctx, b.db.Pool())
	for _, s := range f.shown(&out) {
		if err != nil || s.none {
			continue
		}
		var made *statement
		if err = l.known(s.c.sets); err == nil {
			made, err = l.statement(s.of, s.p, s.c)
		}
		if err == nil {
			*s.to = made.sql
		}
	}
	if err != nil {
		return Statements{}, fmt.Errorf("statemachine: SQL of %q: %w", b.m.name, err)
	}
	return out, nil
}

// shown is a statement, and where its text belongs.
type shown struct {
	to   *string
	of   template
	p    parts
	c    *call
	none bool // there is none
}

// shown are the statements for a call's options, with all the parts that any event needs.
func (f *firing[K, S, TX]) shown(out *Statements) []shown {
	b, c := f.b, &f.call
	whole := parts{history: !b.table.NoHistory, dedup: c.dedup != nil, unlocked: !c.lock && c.dedup == nil, wait: true, alone: c.dedup == nil && b.kind != idText}
	move := parts{history: whole.history, wait: true}
	for _, f.mv = range b.m.events {
		whole.untold = whole.untold || f.mv.shared
		if f.simple() {
			move.move, move.last, move.ignores = true, move.last || f.mv.shared, move.ignores || len(f.mv.ignored) > 0
		}
	}
	whole.last = whole.untold && whole.unlocked
	fire, create := onFireHistory, onCreateHistory
	if b.table.NoHistory {
		fire, create = onFire, onCreate
	}
	return []shown{
		{&out.Move, onMove, move, c, !move.move},
		{&out.Fire, fire, whole, c, false},
		{&out.FireMany, onMany, whole, c, false},
		{&out.Create, create, parts{}, &call{sets: c.sets}, false},
		{&out.Due, onDueFirst, parts{}, &call{}, b.table.Since == ""},
	}
}
