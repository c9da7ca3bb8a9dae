package statemachine

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pgonce/pgonce/internal/pg"
)

// statement is the SQL text for a call. Texts are the same for all calls of one shape, so that servers and
// client libraries can keep them prepared.
func (l *layout) statement(c *call) (string, error) {
	shape := c.shape()
	l.mu.Lock()
	sql, ok := l.shapes[shape]
	l.mu.Unlock()
	if ok {
		return sql, nil
	}
	sql, err := l.render(c)
	if err != nil {
		return "", err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.shapes) < maxShapes {
		l.shapes[shape] = sql
	}
	return sql, nil
}

// shape is what the text of a statement depends on.
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

// versionGuard is what pgonce_g says when it is the version that does not hold. The
// conditions of Where count from 1.
const versionGuard = -1

// render puts the table's names and types and the call's expressions into the statement. The
// replacer passes over the text once, so nothing that it puts in is replaced in turn.
func (l *layout) render(c *call) (string, error) {
	t, text, first := l.table, sqlFireHistory, fixedArgs+historyArgs+1
	if t.NoHistory {
		text, first = sqlFire, fixedArgs+1
	}
	f := fragments{next: first}
	version := "NULL::bigint"
	if t.Version != "" {
		version = quote(t.Version) + "::bigint"
		fmt.Fprintf(&f.set, ", %s = %s + 1", quote(t.Version), quote(t.Version))
	}
	if c.version != nil {
		fmt.Fprintf(&f.where, " WHEN NOT COALESCE(%s = %s::bigint, false) THEN %d", quote(t.Version), f.arg(), versionGuard)
	}
	f.add(c, l.columns)
	id := "$1::" + l.idType
	if l.idType != "bigint" {
		id = "$1::text::" + l.idType
	}
	return strings.NewReplacer(
		`"public"."orders"`, t.String(), `"id"`, quote(t.ID), `"state"`, quote(t.State), `"`+pg.DefaultSchema+`"`, quote(t.Schema),
		`$1::bigint`, id, `::text /*as state*/`, "::"+l.columns[t.State].typ, `NULL::bigint /*version*/`, version,
		` /*where*/`, f.where.String(), ` /*match*/`, f.match.String(), ` /*matches*/`, f.matches.String(), ` /*set*/`, f.set.String(),
	).Replace(text), errors.Join(f.findings...)
}

// fragments are what the options of a call add to a statement. The order in which they take their
// arguments is that of firing.stmt.
type fragments struct {
	next                       int // the number of the next argument
	where, match, matches, set strings.Builder
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
		if s.text == "" {
			fmt.Fprintf(&f.set, ", %s = %s::%s", quote(s.column), f.arg(), columns[s.column].typ)
			continue
		}
		fmt.Fprintf(&f.set, ", %s = (%s)", quote(s.column), f.expr("SetExpr", s.condition))
	}
}
