package statemachine

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pgonce/pgonce/internal/pg"
)

// template is one of the statements on the user's table. The number is what its text is kept by.
type template byte

const (
	onFire template = iota
	onFireHistory
	onMove
	onMany
	onLock
	onKnown
	onCreate
	onCreateHistory
	onCreated
	onCreation
	onDue
	onDueFirst
	onDueAmong
	onUnadopted
	onUnadoptedFirst
	onAdopt
	onState
	onHistory
	onBreaks
)

var templates = [...]string{
	onFire: sqlFire, onFireHistory: sqlFireHistory, onMove: sqlMove, onMany: sqlMany, onLock: sqlLock, onKnown: sqlKnown,
	onCreate: sqlCreate, onCreateHistory: sqlCreateHistory, onCreated: sqlCreated, onCreation: sqlCreation,
	onDue: sqlDue, onDueFirst: sqlDueFirst, onDueAmong: sqlDueAmong, onUnadopted: sqlUnadopted, onUnadoptedFirst: sqlUnadoptedFirst,
	onAdopt: sqlAdopt, onState: sqlState, onHistory: sqlHistory, onBreaks: sqlBreaks,
}

// statement is the text of a call and the numbers, in its template, of the arguments that it has; those of options and of the scope
// come after them.
type statement struct {
	sql  string
	args []int
}

// pick are the arguments of the statement, all being those of its template.
func (s *statement) pick(all []any) []any {
	picked := make([]any, 0, len(all)+8)
	for _, n := range s.args {
		picked = append(picked, all[n-1])
	}
	return picked
}

// statement is the SQL for a call. Texts are the same for all calls of one shape, so that
// servers and client libraries can keep them prepared.
func (l *layout) statement(of template, p parts, c *call) (*statement, error) {
	key := shape{of, p, c.shape()}
	l.mu.Lock()
	found, ok := l.shapes[key]
	l.mu.Unlock()
	if ok {
		return found, nil
	}
	found, err := l.render(of, p, c)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.shapes) < maxShapes {
		l.shapes[key] = found
	}
	return found, nil
}

// shape is what the text of a statement depends on.
type shape struct {
	of      template
	parts   parts
	options string
}

// shape is what the text of a statement depends on, of a call.
func (c *call) shape() string {
	if c.version == nil && len(c.where) == 0 && len(c.match) == 0 && len(c.sets) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%t", c.version != nil)
	for _, w := range c.where {
		fmt.Fprintf(&b, "w%d%q", len(w.args), w.text)
	}
	for _, m := range c.match {
		fmt.Fprintf(&b, "m%d%q", len(m.args), m.text)
	}
	for _, s := range c.sets {
		fmt.Fprintf(&b, "s%q%d%q", s.column, len(s.args), s.text)
	}
	return b.String()
}

// render puts the table's names and types and the call's expressions into the template. The
// replacer passes over the text once, so nothing that it puts in is replaced in turn.
func (l *layout) render(of template, p parts, c *call) (*statement, error) {
	t := l.table
	text, args := numbered(p.of(templates[of]))
	f := fragments{next: len(args) + 1}
	version, order := "NULL::bigint", quote(t.ID)
	if t.Version != "" {
		version = quote(t.Version) + "::bigint"
		fmt.Fprintf(&f.set, ", %s = %s + 1", quote(t.Version), quote(t.Version))
	}
	if l.idType != "bigint" && l.idType != typeUUID {
		order += `::text COLLATE "C"`
	}
	if c.version != nil {
		fmt.Fprintf(&f.where, " WHEN NOT COALESCE(%s = %s::bigint, false) THEN %d", quote(t.Version), f.arg(), refusedVersion)
	}
	f.addSince(t)
	f.add(c, l.columns)
	id := l.cast("$1")
	scope, scoped := f.scope(t)
	return &statement{strings.NewReplacer(
		`"public"."orders"`, t.String(), `"id" /*order*/`, order, `"id"`, quote(t.ID), `"state"`, quote(t.State), `"since"`, quote(t.Since),
		`"`+pg.DefaultSchema+`"`, quote(t.Schema), `$1::bigint`, id, `::bigint /*id*/`, "::"+l.idType, `::bigint[]`, "::"+l.idType+"[]",
		`::text /*as state*/`, "::"+l.columns[t.State].typ, `NULL::bigint /*version*/`, version,
		` /*where*/`, f.where.String(), ` /*match*/`, f.match.String(), ` /*matches*/`, f.matches.String(), ` /*set*/`, f.set.String(),
		` /*columns*/`, f.names.String(), ` /*values*/`, f.values.String(),
		` /*scope*/`, scope, ` /*scoped*/`, strings.ReplaceAll(scoped, idMark, scopedID(of, id)),
	).Replace(text), args}, errors.Join(f.findings...)
}

// idMark stands for the row's id until it is known how a statement names it.
const idMark = "\x00"

// scopedID is how a statement names the id of the row whose history it reads.
func scopedID(of template, id string) string {
	if of == onMany {
		return "pgonce_i"
	}
	return id
}

// cast gives an argument the type of the id column.
func (l *layout) cast(arg string) string {
	if l.idType == "bigint" {
		return arg + "::bigint"
	}
	return arg + "::text::" + l.idType
}

// fragments are what the options of a call add to a statement. The order in which they take their
// arguments is that of call.args.
type fragments struct {
	next                       int // the number of the next argument
	where, match, matches, set strings.Builder
	names, values              strings.Builder // of an INSERT
	findings                   []error
}

// arg is the next argument.
func (f *fragments) arg() string {
	f.next++
	return fmt.Sprintf("$%d", f.next-1)
}

// expr is an expression with its arguments.
func (f *fragments) expr(option string, cond condition) string {
	e, err := parseExpression(cond.text, len(cond.args))
	if err != nil {
		f.findings = append(f.findings, &InvalidError{Part: fmt.Sprintf("%s(%q)", option, cond.text), Reason: err.Error()})
		return ""
	}
	rendered := e.render(f.next)
	f.next += len(cond.args)
	return rendered
}

func (f *fragments) add(c *call, columns map[string]column) {
	for i, w := range c.where {
		fmt.Fprintf(&f.where, " WHEN NOT COALESCE((%s), false) THEN %d", f.expr("Where", w), refusedVersion+1+i)
	}
	for i, m := range c.match {
		expr := f.expr("Match", m)
		fmt.Fprintf(&f.match, " WHEN NOT COALESCE((%s), false) THEN %d", expr, -1-i)
		fmt.Fprintf(&f.matches, " AND (%s)", expr)
	}
	for _, s := range c.sets {
		value := ""
		if s.text == "" {
			value = fmt.Sprintf("%s::%s", f.arg(), columns[s.column].typ)
		} else {
			value = "(" + f.expr("SetExpr", s.condition) + ")"
		}
		fmt.Fprintf(&f.set, ", %s = %s", quote(s.column), value)
		fmt.Fprintf(&f.names, ", %s", quote(s.column))
		fmt.Fprintf(&f.values, ", %s", value)
	}
}

// addSince sets the time of the move: that of the history, where there is one.
func (f *fragments) addSince(t resolved) {
	if t.Since == "" {
		return
	}
	at := "pgonce_ha"
	if t.NoHistory {
		at = "pg_catalog.statement_timestamp()"
	}
	fmt.Fprintf(&f.set, ", %s = %s", quote(t.Since), at)
	fmt.Fprintf(&f.names, ", %s", quote(t.Since))
	f.values.WriteString(", pg_catalog.statement_timestamp()")
}

// scope is the condition of Table.Scope, for a statement on the row, and for one on its history. It holds on the row's old
// version and on the one that is locked, so it does no harm in the UPDATE.
func (f *fragments) scope(t resolved) (row, history string) {
	if t.Scope == "" {
		return "", ""
	}
	text := t.scope.render(f.next)
	f.next += t.scopeArgs
	return fmt.Sprintf(" AND (%s)", text), fmt.Sprintf(" AND EXISTS (SELECT FROM %s WHERE %s = %s AND (%s))", t, quote(t.ID), idMark, text)
}
