package statemachine

import (
	"context"
	"fmt"
	"sync"

	"github.com/pgonce/pgonce/internal/pg"
)

// layout is a table as it was found in the database, with the statements made for it.
type layout struct {
	table   resolved
	columns map[string]column
	idType  string // what an id is cast to

	mu     sync.Mutex
	shapes map[shape]string // statements
}

type column struct{ typ, category string }

// maxShapes bounds the statements that are kept, should a program put values into the texts of
// its expressions.
const maxShapes = 256

// inspect reads the table's columns and checks that rows of it can be moved. The query cannot
// fail over what it finds, so it does no harm to a caller's transaction.
func inspect(ctx context.Context, q pg.Querier, t resolved, kind idKind, numbers bool) (*layout, error) {
	l := &layout{table: t, columns: map[string]column{}, shapes: map[shape]string{}}
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
	for _, name := range l.table.kept() {
		if _, ok := l.columns[name]; !ok {
			return l.bad(fmt.Sprintf("has no column %q", name), "set ID, State, Version and Since of the Table")
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
	if s := l.columns[l.table.Since]; l.table.Since != "" && s.typ != "pg_catalog.timestamptz" {
		return l.bad(fmt.Sprintf("since column %q is of type %s", l.table.Since, s.typ), "it has to be a timestamptz")
	}
	return nil
}

// checkColumns finds columns that the machine's Require and Setting name and the table does not have.
func (l *layout) checkColumns(names []string) error {
	for _, name := range names {
		if _, ok := l.columns[name]; !ok {
			return l.bad(fmt.Sprintf("has no column %q", name), "the machine names it in Require or Setting")
		}
	}
	return nil
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
