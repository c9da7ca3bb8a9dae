package statemachine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/pgonce/pgonce/internal/pg"
)

// layout is a table as it was found in the database, with the statements made for it.
type layout struct {
	table   resolved
	columns map[string]column
	idType  string // what an id is cast to

	mu     sync.Mutex
	shapes map[string]string // statements by the shape of their options
}

type column struct{ typ, category string }

// maxShapes bounds the statements that are kept, should a program put values into the texts of
// its expressions.
const maxShapes = 256

// inspect reads the table's columns and checks that rows of it can be moved. The query cannot
// fail over what it finds, so it does no harm to a caller's transaction.
func inspect(ctx context.Context, q pg.Querier, t resolved, kind idKind, numbers bool) (*layout, error) {
	l := &layout{table: t, columns: map[string]column{}, shapes: map[string]string{}}
	isTable := true
	for scan, err := range q.Query(ctx, sqlColumns, t.schema, t.name) {
		var name string
		var c column
		if err == nil {
			err = scan(&name, &c.typ, &c.category, &isTable)
		}
		if err != nil {
			return nil, err
		}
		l.columns[name] = c
	}
	switch {
	case len(l.columns) == 0:
		return nil, l.bad("is not there, or has no columns", "names are taken as they are written: check schema, case and search_path")
	case !isTable:
		return nil, l.bad("is not a table", "bind the table that it shows")
	}
	return l, l.check(kind, numbers)
}

func (l *layout) bad(reason, fix string) error {
	return fmt.Errorf("%w: table %s: %s; %s", ErrSchema, l.table, reason, fix)
}

// The categories of types in pg_type.
const (
	categoryString = "S"
	categoryEnum   = "E"
)

const typeUUID = "pg_catalog.uuid"

func (l *layout) check(kind idKind, numbers bool) error {
	for _, name := range []string{l.table.ID, l.table.State, l.table.Version} {
		if _, ok := l.columns[name]; !ok && name != "" {
			return l.bad(fmt.Sprintf("has no column %q", name), "set ID, State and Version of the Table")
		}
	}
	id := l.columns[l.table.ID]
	fits := false
	switch kind {
	case idInt:
		fits, l.idType = isInteger(id), "bigint"
	case idText:
		fits, l.idType = id.category == categoryString || id.typ == typeUUID, id.typ
	case idUUID:
		fits, l.idType = id.typ == typeUUID, id.typ
	}
	if !fits {
		return l.bad(fmt.Sprintf("id column %q is of type %s", l.table.ID, id.typ),
			"use an integer type for an integer, a string for a text, a string or 16 bytes for a uuid")
	}
	s := l.columns[l.table.State]
	if isText := s.category == categoryString || s.category == categoryEnum; numbers && !isInteger(s) || !numbers && !isText {
		return l.bad(fmt.Sprintf("state column %q is of type %s", l.table.State, s.typ),
			"it has to be a text or an enum for states of strings, and an integer for states of integers")
	}
	if v := l.columns[l.table.Version]; l.table.Version != "" && !isInteger(v) {
		return l.bad(fmt.Sprintf("version column %q is of type %s", l.table.Version, v.typ), "it has to be an integer")
	}
	return nil
}

func isInteger(c column) bool {
	return c.typ == "pg_catalog.int8" || c.typ == "pg_catalog.int4" || c.typ == "pg_catalog.int2"
}

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
	var where, match, matches, set strings.Builder
	var findings []error
	version := "NULL::bigint"
	if t.Version != "" {
		version = quote(t.Version) + "::bigint"
		fmt.Fprintf(&set, ", %s = %s + 1", quote(t.Version), quote(t.Version))
	}
	if c.version != nil {
		fmt.Fprintf(&where, " WHEN NOT COALESCE(%s = $%d::bigint, false) THEN %d", quote(t.Version), first, versionGuard)
		first++
	}
	add := func(kind string, cond condition) (rendered string) {
		e, err := parseExpression(cond.text, len(cond.args))
		if err != nil {
			findings = append(findings, &InvalidError{Part: fmt.Sprintf("%s(%q)", kind, cond.text), Reason: err.Error()})
			return ""
		}
		rendered = e.render(first)
		first += len(cond.args)
		return rendered
	}
	for i, w := range c.where {
		fmt.Fprintf(&where, " WHEN NOT COALESCE((%s), false) THEN %d", add("Where", w), i+1)
	}
	for i, m := range c.match {
		expr := add("Match", m)
		fmt.Fprintf(&match, " WHEN NOT COALESCE((%s), false) THEN %d", expr, i+1)
		fmt.Fprintf(&matches, " AND (%s)", expr)
	}
	for _, s := range c.sets {
		if s.text == "" {
			fmt.Fprintf(&set, ", %s = $%d::%s", quote(s.column), first, l.columns[s.column].typ)
			first++
			continue
		}
		fmt.Fprintf(&set, ", %s = (%s)", quote(s.column), add("SetExpr", s.condition))
	}
	id := "$1::" + l.idType
	if l.idType != "bigint" {
		id = "$1::text::" + l.idType
	}
	return strings.NewReplacer(
		`"public"."orders"`, t.String(), `"id"`, quote(t.ID), `"state"`, quote(t.State), `"`+pg.DefaultSchema+`"`, quote(t.Schema),
		`$1::bigint`, id, `::text /*as state*/`, "::"+l.columns[t.State].typ, `NULL::bigint /*version*/`, version,
		` /*where*/`, where.String(), ` /*match*/`, match.String(), ` /*matches*/`, matches.String(), ` /*set*/`, set.String(),
	).Replace(text), errors.Join(findings...)
}

func (l *layout) has(sets []assignment) bool {
	for _, s := range sets {
		if _, ok := l.columns[s.column]; !ok {
			return false
		}
	}
	return true
}
