package statemachine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/pgonce/pgonce/internal/pg"
)

// Binding is a machine over the rows of one table. It holds no connection and runs no goroutine
// of its own. Safe for concurrent use.
//
//	type Orders = statemachine.Binding[int64, OrderState, pgx.Tx]
type Binding[K ID, S StateType, TX any] struct {
	m     *Machine[S]
	db    pg.Driver[TX]
	table resolved
	kind  idKind
	fixed map[string]fixed // by event
	scope []any            // the arguments of Table.Scope
	found *atomic.Pointer[layout]
}

// fixed are the arguments that an event has in every statement: Postgres' text form of arrays, which
// every client library can carry; and the source and the target of an only edge.
type fixed struct{ sources, targets, idle, ignored, source, target string }

// Bind connects a machine to a table, over pgxdriver.New(pool), sqldriver.New(db) or
// sqlxdriver.New(db). The type of the ids has to be written, the others follow:
//
//	orders, err := statemachine.Bind[int64](OrderFlow, db, statemachine.Table{Name: "orders"})
//
// It does not touch the database; the first call looks at the table, or [Binding.Validate] before
// that.
//
// Errors: [ErrInvalid], joined, for names that cannot be; and for a machine that needs a history where
// [Table.NoHistory] says that there is none. It is needed by an event that shares a target with
// another event or with creation, because the state does not tell which of them has led there; and
// by an event with a target among its sources, which has to be fired with [Dedup].
func Bind[K ID, S StateType, TX any](m *Machine[S], db pg.Driver[TX], t Table) (*Binding[K, S, TX], error) {
	switch {
	case m == nil:
		return nil, fmt.Errorf("statemachine: bind: %w", &InvalidError{"machine", "is nil"})
	case db == nil:
		return nil, fmt.Errorf("statemachine: bind: %w",
			&InvalidError{"driver", "is nil: pass pgxdriver.New(pool), sqldriver.New(db) or sqlxdriver.New(db)"})
	}
	if err := db.Err(); err != nil {
		return nil, fmt.Errorf("statemachine: bind: %w: %w", ErrInvalid, err)
	}
	table, findings := t.resolve()
	table.named = m.columns()
	b := &Binding[K, S, TX]{m: m, db: db, table: table, kind: kindOf[K](), fixed: map[string]fixed{}, found: new(atomic.Pointer[layout])}
	for _, name := range m.order {
		mv := m.events[name]
		fx := fixed{sources: array(mv.sources), targets: array(mv.targets), idle: array(mv.idle), ignored: array(mv.ignored)}
		if len(mv.edges) == 1 {
			fx.source, fx.target = textOf(mv.sources[0]), textOf(mv.targets[0])
		}
		b.fixed[name] = fx
		if reason := mv.needsHistory(); t.NoHistory && reason != "" {
			findings = append(findings, &InvalidError{Part: fmt.Sprintf("event %q", name), Reason: reason + ": unset NoHistory"})
		}
		if t.Since == "" && slices.ContainsFunc(mv.edges, func(e edge[S]) bool { return e.after > 0 }) {
			findings = append(findings, &InvalidError{Part: fmt.Sprintf("event %q", name), Reason: "has an After, which needs Table.Since"})
		}
	}
	if len(findings) > 0 {
		return nil, fmt.Errorf("statemachine: bind %q to %q: %w", m.name, t.Name, errors.Join(findings...))
	}
	return b, nil
}

// needsHistory says why the state alone does not tell whether an event was applied, or nothing.
func (mv *moves[S]) needsHistory() string {
	switch {
	case mv.overlap:
		return "has a target among its sources, so it needs Dedup and a history"
	case mv.shared:
		return "leads to a state that a row can be in without it, so a repeat is only known from the history"
	}
	return ""
}

// array is a text[] as text.
func array[S StateType](states []S) string { return arrayOf(texts(states)) }

func arrayOf(texts []string) string {
	var b strings.Builder
	b.WriteByte('{')
	for i, s := range texts {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('"')
		b.WriteString(strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s))
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}

// In is the binding for the rows in a scope: it gives [Table.Scope] its arguments, $1 being the first. It shares everything else with b, and
// costs nothing.
//
//	res, err := orders.In(tenant).Fire(ctx, id, Pay)
//
// A binding with such a scope refuses every call that lacks it, or has another number of arguments
// ([ErrInvalid]).
func (b *Binding[K, S, TX]) In(args ...any) *Binding[K, S, TX] {
	scoped := *b
	scoped.scope = slices.Clone(args)
	return &scoped
}

// faultOfScope says what a call in this scope lacks.
func (b *Binding[K, S, TX]) faultOfScope() error {
	if got, want := len(b.scope), b.table.scopeArgs; got != want {
		return &InvalidError{"scope", fmt.Sprintf("%q has %d arguments here, it takes %d: use In", b.table.Scope, got, want)}
	}
	return nil
}

// Machine is the machine that was bound.
func (b *Binding[K, S, TX]) Machine() *Machine[S] { return b.m }

// Validate checks that the table has the columns that it should have, of types that fit, and that this code can
// work with the library's schema ([ErrSchema]). Call it at start. Two round trips, one without a
// history.
func (b *Binding[K, S, TX]) Validate(ctx context.Context) error {
	if _, err := b.inspect(ctx, b.db.Pool()); err != nil {
		return fmt.Errorf("statemachine: validate %q: %w", b.m.name, err)
	}
	return nil
}

// ready is Validate for the first call; the calls after that pay nothing. In a transaction it has
// to be asked there: the pool may have no other connection.
func (b *Binding[K, S, TX]) ready(ctx context.Context, q pg.Querier) (*layout, error) {
	if l := b.found.Load(); l != nil {
		return l, nil
	}
	return b.inspect(ctx, q)
}

func (b *Binding[K, S, TX]) inspect(ctx context.Context, q pg.Querier) (*layout, error) {
	l, err := inspect(ctx, q, b.table, b.kind, isNumber[S]())
	if err == nil && !b.table.NoHistory {
		err = pg.CheckSchema(ctx, q, b.table.Schema)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, errors.Join(context.Cause(ctx), err)
	case err != nil && pg.Code(err) == "" && !errors.Is(err, ErrSchema) && !errors.Is(err, ErrUnavailable):
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	case err != nil:
		return nil, err
	}
	b.found.Store(l)
	return l, nil
}

// Table is the table that was bound, with its defaults filled in.
func (b *Binding[K, S, TX]) Table() Table {
	t := b.table.Table
	t.Name = b.table.schema + "." + b.table.name
	return t
}
