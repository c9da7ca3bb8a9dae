package statemachine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/pgonce/pgonce/internal/pg"
)

// layout is a table as it was found in the database, with the statements made for it.
type layout struct {
	table   resolved
	columns map[string]column
	idType  string // what an id is cast to

	findings []Finding // what is wrong with it

	mu     sync.Mutex
	shapes map[shape]*statement
}

type column struct{ typ, category string }

// maxShapes bounds the statements that are kept, should a program put values into the texts of
// its expressions.
const maxShapes = 256

// inspect reads the table's columns and checks that rows of it can be moved. The query cannot
// fail over what it finds, so it does no harm to a caller's transaction.
func inspect(ctx context.Context, q pg.Querier, t resolved, kind idKind, numbers bool) (*layout, error) {
	l, findings, err := look(ctx, q, t, kind, numbers)
	for _, f := range findings {
		err = errors.Join(err, fmt.Errorf("%w: table %s: %s; %s", ErrSchema, t, f.Problem, f.Fix))
	}
	return l, err
}

// look is inspect with all that is wrong with the table.
func look(ctx context.Context, q pg.Querier, t resolved, kind idKind, numbers bool) (*layout, []Finding, error) {
	l := &layout{table: t, columns: map[string]column{}, shapes: map[shape]*statement{}}
	isTable := true
	for scan, err := range q.Query(ctx, sqlColumns, t.schema, t.name) {
		var name string
		var c column
		if err == nil {
			err = scan(&name, &c.typ, &c.category, &isTable)
		}
		if err != nil {
			return nil, nil, err
		}
		l.columns[name] = c
	}
	switch {
	case len(l.columns) == 0:
		l.bad("is not there, or has no columns", "names are taken as they are written: check schema, case and search_path")
	case !isTable:
		l.bad("is not a table", "bind the table that it shows")
	default:
		l.check(kind, numbers)
	}
	return l, l.findings, nil
}

func (l *layout) bad(problem, fix string) {
	l.findings = append(l.findings, Finding{Kind: FindingTable, Object: l.table.String(), Problem: problem, Fix: fix})
}

// The categories of types in pg_type.
const (
	categoryString = "S"
	categoryEnum   = "E"
)

const typeUUID = "pg_catalog.uuid"

func (l *layout) check(kind idKind, numbers bool) {
	for _, name := range l.table.kept() {
		if _, ok := l.columns[name]; !ok {
			l.bad(fmt.Sprintf("has no column %q", name), "set ID, State, Version and Since of the Table")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(l.columns)) {
		if strings.HasPrefix(name, reserved) {
			l.bad(fmt.Sprintf("has a column %q", name), "rename it: names that begin so are those of the statements' own columns")
		}
	}
	l.checkID(kind)
	s, ok := l.columns[l.table.State]
	if isText := s.category == categoryString || s.category == categoryEnum; ok && (numbers && !isInteger(s) || !numbers && !isText) {
		l.bad(fmt.Sprintf("state column %q is of type %s", l.table.State, s.typ),
			"it has to be a text or an enum for states of strings, and an integer for states of integers")
	}
	if v, ok := l.columns[l.table.Version]; ok && !isInteger(v) {
		l.bad(fmt.Sprintf("version column %q is of type %s", l.table.Version, v.typ), "it has to be an integer")
	}
	if s, ok := l.columns[l.table.Since]; ok && s.typ != "pg_catalog.timestamptz" {
		l.bad(fmt.Sprintf("since column %q is of type %s", l.table.Since, s.typ), "it has to be a timestamptz")
	}
	for _, name := range l.table.named {
		if _, ok := l.columns[name]; !ok {
			l.bad(fmt.Sprintf("has no column %q", name), "the machine names it in Require or Setting")
		}
	}
}

func (l *layout) checkID(kind idKind) {
	id, ok := l.columns[l.table.ID]
	fits := false
	switch kind {
	case idInt:
		fits, l.idType = isInteger(id), "bigint"
	case idText:
		fits, l.idType = id.category == categoryString || id.typ == typeUUID, id.typ
	case idUUID:
		fits, l.idType = id.typ == typeUUID, id.typ
	}
	if ok && !fits {
		l.bad(fmt.Sprintf("id column %q is of type %s", l.table.ID, id.typ),
			"use an integer type for an integer, a string for a text, a string or 16 bytes for a uuid")
	}
}

func isInteger(c column) bool {
	return c.typ == "pg_catalog.int8" || c.typ == "pg_catalog.int4" || c.typ == "pg_catalog.int2"
}

// known refuses to set what is no column.
func (l *layout) known(sets []assignment) error {
	for _, s := range sets {
		if _, ok := l.columns[s.column]; !ok {
			return &InvalidError{fmt.Sprintf("Set(%q)", s.column), fmt.Sprintf("names no column of %s", l.table)}
		}
	}
	return nil
}

func (l *layout) has(sets []assignment) bool {
	for _, s := range sets {
		if _, ok := l.columns[s.column]; !ok {
			return false
		}
	}
	return true
}
