// Package smtest proves a machine of the user's own on a real database.
//
//	func TestOrders(t *testing.T) {
//		db := pgxdriver.New(pool)
//		orders, err := statemachine.Bind[int64](OrderFlow, db, statemachine.Table{Name: "orders"})
//		...
//		smtest.Run(t, db, orders, func(ctx context.Context, state OrderState) (int64, error) {
//			return insertOrder(ctx, pool, state) // with whatever else an order needs
//		}, nil)
//	}
//
// It is for tests and imports testing. It works on every client library that the drivers do.
package smtest

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pgonce/pgonce/internal/pg"
	sm "github.com/pgonce/pgonce/statemachine"
)

// Config tunes [Run]. A nil *Config is ready to use.
type Config[S sm.StateType] struct {
	// Options are what an event needs besides its Dedup id, which Run makes up where there has to be one: the columns that
	// a CHECK of the table wants, or the values of a Where. They hold for one row and for many, so ExpectVersion is not for
	// them. Defaults to none.
	Options func(from S, ev sm.Event[S]) []sm.Option

	// Racers is how many goroutines fire one event at one row. Defaults to 16.
	Racers int

	// MaxPaths bounds the paths that are walked, of which a machine with many states has very many. Every edge is on one
	// that is walked, bound or not. Defaults to 200.
	MaxPaths int

	// NoTrigger says that the database is not meant to keep other programs from moving rows, so it is not tried. By
	// default it is, and has to hold: see Binding.TriggerSQL.
	NoTrigger bool
}

// Run proves a machine over its table:
//
//   - it walks the paths from every initial state and compares the row and its history with each;
//   - it fires every event in every state, and again, by Fire and by FireMany, and compares what becomes of it with the machine;
//   - it races goroutines for every edge: one of them moves the row, the history has one line, the others are told so;
//   - it tries to write every state from every state in plain SQL: UPDATE, INSERT, INSERT ON CONFLICT, MERGE where the server has it, COPY on
//     pgx. What the machine has no edge for must be refused by the trigger, the rest must not be.
//
// create makes a row in a state, which is an initial one, and returns its id, by Binding.Create or by any other way. It commits. Where the machine has former
// states it is asked for rows in those too: as they were left by earlier releases, with set_config('pgonce.adopt', ...) in its transaction.
//
// Run needs a database for tests: its rows stay. It says in the test's log how much it has tried, and what it could not try.
func Run[K sm.ID, S sm.StateType, TX any](tb testing.TB, db pg.Driver[TX], b *sm.Binding[K, S, TX], create func(ctx context.Context, state S) (K, error), cfg *Config[S]) {
	tb.Helper()
	p := &proof[K, S, TX]{t: tb, db: db, b: b, m: b.Machine(), create: create}
	if cfg != nil {
		p.cfg = *cfg
	}
	if p.cfg.Racers < 2 {
		p.cfg.Racers = 16
	}
	if p.cfg.MaxPaths < 1 {
		p.cfg.MaxPaths = 200
	}
	ctx := tb.Context()
	if err := b.Validate(ctx); err != nil {
		tb.Errorf("smtest: %v", err)
		return
	}
	if !p.prepare(ctx) {
		return
	}
	p.walkAll(ctx)
	p.fireAll(ctx)
	p.raceAll(ctx)
	if !p.cfg.NoTrigger {
		p.writeAll(ctx)
	}
}

// proof is one Run.
type proof[K sm.ID, S sm.StateType, TX any] struct {
	t      testing.TB
	db     pg.Driver[TX]
	b      *sm.Binding[K, S, TX]
	m      *sm.Machine[S]
	cfg    Config[S]
	create func(ctx context.Context, state S) (K, error)

	fill    *strings.Replacer
	version int64 // major, of the server
	serial  int   // of the dedup ids
	stopped bool  // no rows can be made
}

// step is an event in a state.
type step[S sm.StateType] struct {
	from, to S
	event    sm.Event[S]
}

// row is a row of the table as it is now.
type row struct{ entity, state, all, copied string }

func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// prepare makes the statements fit the table.
func (p *proof[K, S, TX]) prepare(ctx context.Context) bool {
	t := p.b.Table()
	schema, name, _ := strings.Cut(t.Name, ".")
	table := quote(schema) + "." + quote(name)
	var columns, casts string
	err := p.db.Pool().Run(ctx, pg.Stmt{SQL: sqlCatalog, Args: []any{table}, Dest: []any{&columns, &casts, &p.version}})
	if err != nil {
		p.t.Errorf("smtest: look at %s: %v", table, err)
		return false
	}
	p.fill = strings.NewReplacer(`"public"."orders"`, table, `jsonb_build_array("id"::text, "state"::text)`, "jsonb_build_array("+casts+")",
		`"id", "state"`, columns, `"id"`, quote(t.ID), `"state"`, quote(t.State), `"`+pg.DefaultSchema+`"`, quote(t.Schema))
	return true
}

// key is a row for the statements: its id, and the state that is to be written.
func (p *proof[K, S, TX]) key(id K, state any) string {
	t := p.b.Table()
	v := reflect.ValueOf(id)
	var text string
	switch v.Kind() {
	case reflect.String:
		text = v.String()
	case reflect.Array:
		var b [16]byte
		reflect.Copy(reflect.ValueOf(&b).Elem(), v)
		text = hex.EncodeToString(b[:])
	default:
		text = strconv.FormatInt(v.Int(), 10)
	}
	data, _ := json.Marshal(map[string]any{t.ID: text, t.State: state}) // strings: it cannot fail
	return string(data)
}

func (p *proof[K, S, TX]) row(ctx context.Context, id K) (r row, err error) {
	err = p.db.Pool().Run(ctx, pg.Stmt{SQL: p.fill.Replace(sqlRow), Args: []any{p.key(id, nil)}, Dest: []any{&r.entity, &r.state, &r.all, &r.copied}})
	return r, err
}

// moves is the history of a row, a line each.
func (p *proof[K, S, TX]) moves(ctx context.Context, entity string) (lines []string, err error) {
	for scan, err := range p.db.Pool().Query(ctx, p.fill.Replace(sqlMoves), p.m.Name(), entity) {
		var event, from, to string
		if err == nil {
			err = scan(&event, &from, &to)
		}
		if err != nil {
			return nil, err
		}
		lines = append(lines, event+": "+from+" -> "+to)
	}
	return lines, nil
}

// options are those of one delivery.
func (p *proof[K, S, TX]) options(s step[S]) []sm.Option {
	var opts []sm.Option
	if p.cfg.Options != nil {
		opts = p.cfg.Options(s.from, s.event)
	}
	if p.m.NeedsDedup(s.event) {
		p.serial++
		opts = append(slices.Clone(opts), sm.Dedup(fmt.Sprintf("smtest %d", p.serial)))
	}
	return opts
}

// steps are the edges that leave a state.
func (p *proof[K, S, TX]) steps(from S) []step[S] {
	var out []step[S]
	for _, ev := range p.m.Allowed(from) {
		to, _ := p.m.Next(from, ev)
		out = append(out, step[S]{from, to, ev})
	}
	return out
}

// text is a state as the column has it, whatever String method it has for people.
func text[S sm.StateType](s S) string {
	if v := reflect.ValueOf(s); v.Kind() != reflect.String {
		return strconv.FormatInt(v.Int(), 10)
	}
	return reflect.ValueOf(s).String()
}
