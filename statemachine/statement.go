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
	onFireDedup
	onMany
	onManyHistory
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

// templates are the texts, and how many arguments each has before those of options and scope.
var templates = [...]struct {
	text string
	args int
}{
	onFire: {sqlFire, fixedArgs}, onFireHistory: {without("dedup", sqlFireHistory), fixedArgs + historyArgs}, onFireDedup: {sqlFireHistory, fixedArgs + historyArgs},
	onMany: {without("history", sqlMany), fixedArgs}, onManyHistory: {sqlMany, fixedArgs + historyArgs},
	onLock: {sqlLock, 2}, onKnown: {sqlKnown, 3},
	onCreate: {sqlCreate, 3}, onCreateHistory: {sqlCreateHistory, 7}, onCreated: {sqlCreated, 1}, onCreation: {sqlCreation, 3},
	onDue: {sqlDue, 5}, onDueFirst: {sqlDueFirst, 3}, onDueAmong: {sqlDueAmong, 3},
	onUnadopted: {sqlUnadopted, 2}, onUnadoptedFirst: {sqlUnadoptedFirst, 1}, onAdopt: {sqlAdopt, 5},
	onState: {sqlState, 1}, onHistory: {sqlHistory, 2}, onBreaks: {sqlBreaks, 2},
}

// without leaves out what a text has between such marks, and puts in what it has instead.
func without(mark, text string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "/*"+mark+"*/")
		b.WriteString(before)
		if !found {
			return strings.NewReplacer("/*bare ", "", "NULL*/", "NULL").Replace(b.String())
		}
		_, text, _ = strings.Cut(rest, "/*end*/")
	}
}

// statement is the SQL text for a call. Texts are the same for all calls of one shape, so that
// servers and client libraries can keep them prepared.
func (l *layout) statement(of template, c *call) (string, error) {
	key := shape{of, c.shape()}
	l.mu.Lock()
	sql, ok := l.shapes[key]
	l.mu.Unlock()
	if ok {
		return sql, nil
	}
	sql, err := l.render(of, c)
	if err != nil {
		return "", err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.shapes) < maxShapes {
		l.shapes[key] = sql
	}
	return sql, nil
}

// shape is what the text of a statement depends on.
type shape struct {
	of      template
	options string
}

// shape is what the text of a statement depends on, of a call.
func (c *call) shape() string {
	if c.version == nil && c.dedup == nil && len(c.where) == 0 && len(c.match) == 0 && len(c.sets) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%t%t", c.version != nil, c.dedup != nil)
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

// versionGuard is what pgonce_g says when it is the version that does not hold. The
// conditions of Where count from 1.
const versionGuard = -1

// render puts the table's names and types and the call's expressions into the template. The
// replacer passes over the text once, so nothing that it puts in is replaced in turn.
func (l *layout) render(of template, c *call) (string, error) {
	t := l.table
	f := fragments{next: templates[of].args + 1}
	version, order := "NULL::bigint", quote(t.ID)
	if t.Version != "" {
		version = quote(t.Version) + "::bigint"
		fmt.Fprintf(&f.set, ", %s = %s + 1", quote(t.Version), quote(t.Version))
	}
	if l.idType != "bigint" && l.idType != typeUUID {
		order += `::text COLLATE "C"`
	}
	if c.version != nil {
		fmt.Fprintf(&f.where, " WHEN NOT COALESCE(%s = %s::bigint, false) THEN %d", quote(t.Version), f.arg(), versionGuard)
	}
	f.addSince(t)
	f.add(c, l.columns)
	arbiter := "\n  ON CONFLICT DO NOTHING"
	if c.dedup == nil {
		arbiter = ""
	}
	id := l.cast("$1")
	scope, scoped := f.scope(t)
	return strings.NewReplacer(
		`"public"."orders"`, t.String(), `"id" /*order*/`, order, `"id"`, quote(t.ID), `"state"`, quote(t.State), `"since"`, quote(t.Since),
		`"`+pg.DefaultSchema+`"`, quote(t.Schema), `$1::bigint`, id, `::bigint /*id*/`, "::"+l.idType, `::bigint[]`, "::"+l.idType+"[]",
		`::text /*as state*/`, "::"+l.columns[t.State].typ, `NULL::bigint /*version*/`, version,
		` /*where*/`, f.where.String(), ` /*match*/`, f.match.String(), ` /*matches*/`, f.matches.String(), ` /*set*/`, f.set.String(),
		"\n  ON CONFLICT DO NOTHING /*of ids*/", arbiter, `/*history*/`, "", `/*dedup*/`, "", `/*end*/`, "", ` /*bare NULL, NULL*/`, "",
		` /*columns*/`, f.names.String(), ` /*values*/`, f.values.String(),
		` /*scope*/`, scope, ` /*scoped*/`, strings.ReplaceAll(scoped, idMark, scopedID(of, id)),
	).Replace(templates[of].text), errors.Join(f.findings...)
}

// idMark stands for the row's id until it is known how a statement names it.
const idMark = "\x00"

// scopedID is how a statement names the id of the row whose history it reads.
func scopedID(of template, id string) string {
	if of == onManyHistory {
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
		fmt.Fprintf(&f.where, " WHEN NOT COALESCE((%s), false) THEN %d", f.expr("Where", w), i+1)
	}
	for i, m := range c.match {
		expr := f.expr("Match", m)
		fmt.Fprintf(&f.match, " WHEN NOT COALESCE((%s), false) THEN %d", expr, i+1)
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
