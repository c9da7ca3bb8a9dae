package statemachine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pgonce/pgonce/internal/pg"
)

// FindingKind says what a difference is about.
type FindingKind string

// The kinds of findings, in the order in which they are reported.
const (
	FindingTable   FindingKind = "table"   // it is missing, or a column of it is not as it has to be
	FindingRight   FindingKind = "right"   // this role lacks a right that Fire needs
	FindingSchema  FindingKind = "schema"  // the library's tables are missing, too old or too new
	FindingTrigger FindingKind = "trigger" // what TriggerSQL makes is missing, disabled or another
	FindingOther   FindingKind = "other"   // a trigger of somebody else can undo what ours has checked
	FindingCheck   FindingKind = "check"   // the CHECK of the states, or of the columns that they require, is missing, not valid, or another
	FindingRows    FindingKind = "rows"    // rows are in states that the machine does not have
)

// Finding is one difference between a machine and the database.
type Finding struct {
	Kind    FindingKind
	Object  string // the table, partition, trigger or function, as SQL names it
	Problem string
	Fix     string
}

func (f Finding) String() string {
	return fmt.Sprintf("%s %s: %s; %s", f.Kind, f.Object, f.Problem, f.Fix)
}

// VerifyError lists everything that [Binding.Verify] has found. It matches [ErrSchema].
type VerifyError struct {
	Machine  string
	Findings []Finding
}

func (e *VerifyError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v: machine %q: %d differences", ErrSchema, e.Machine, len(e.Findings))
	for _, f := range e.Findings {
		b.WriteString("\n  " + f.String())
	}
	return b.String()
}
func (*VerifyError) Unwrap() error { return ErrSchema }

// Verify compares the machine with the database: the table and its columns, the rights of this role, and whether the
// database refuses what the machine refuses, as [Binding.TriggerSQL] has made it. It is for the start of a program, for CI against
// a migrated database, and for a look at production. Nil means that nothing was found; a [*VerifyError] lists every
// difference with what to do about it, in a stable order. Any other error means that it could not look.
//
// It reads the catalog in one snapshot, in five round trips, two more with a history and one with a Scope. While no valid CHECK keeps the states, it reads
// the whole table, to count the rows in unknown ones. Locks: ACCESS SHARE. It writes nothing.
//
// It cannot find what is no property of the database: who may become owner of the table or superuser, and disable the trigger
// tomorrow; rows that were moved while it was disabled, as long as their state is one of the machine's.
func (b *Binding[K, S, TX]) Verify(ctx context.Context) error {
	findings, err := b.verify(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		err = errors.Join(context.Cause(ctx), err)
	case err != nil && pg.Code(err) == "" && !errors.Is(err, ErrUnavailable):
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	case err == nil && len(findings) > 0:
		err = &VerifyError{Machine: b.m.name, Findings: findings}
	}
	if err != nil {
		return fmt.Errorf("statemachine: verify %q: %w", b.m.name, err)
	}
	return nil
}

func (b *Binding[K, S, TX]) verify(ctx context.Context) ([]Finding, error) {
	var history []Finding
	if !b.table.NoHistory { // outside of the transaction, which a missing table would end
		switch err := pg.CheckSchema(ctx, b.db.Pool(), b.table.Schema); {
		case errors.Is(err, ErrSchema):
			history = []Finding{{FindingSchema, quote(b.table.Schema), "cannot be used by this code", err.Error()}}
		case err != nil:
			return nil, err
		}
	}
	tx, err := b.db.Begin(ctx, pg.RepeatableRead)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback(ctx)
	l, findings, err := look(ctx, tx, b.table, b.kind, isNumber[S]())
	if err != nil {
		return nil, err
	}
	if l.columns[b.table.ID].typ == "" || l.columns[b.table.State].typ == "" {
		return append(findings, history...), nil // there is nothing to look at
	}
	v := &verifier{sketch: b.sketch(), q: tx, findings: findings}
	readable, err := v.facts(ctx)
	v.findings = append(v.findings, history...)
	for _, step := range []func(context.Context) error{v.triggers, v.made} {
		if err == nil {
			err = step(ctx)
		}
	}
	if err == nil && readable && !v.kept {
		err = v.strays(ctx)
	}
	if err == nil && readable && b.table.Scope != "" {
		err = b.verifyScope(ctx, v, l)
	}
	return v.findings, err
}

// verifyScope lets the server read [Table.Scope] for a row that there is not. It comes last: where the server refuses, the transaction has ended.
func (b *Binding[K, S, TX]) verifyScope(ctx context.Context, v *verifier, l *layout) error {
	args := make([]any, 1+b.table.scopeArgs) // NULLs: the arguments of In are the caller's business
	s, err := l.statement(onState, parts{}, &call{})
	if err == nil {
		var state *string
		var rows int64
		err = v.q.Run(ctx, pg.Stmt{SQL: s.sql, Args: args, Dest: []any{&state}, Rows: &rows})
	}
	switch code := pg.Code(err); {
	case code == pg.CodeNoPrivilege:
		v.find(FindingRight, v.table.String(), "this role lacks a right that Scope needs: "+err.Error(), "GRANT SELECT on its columns")
		return nil
	case strings.HasPrefix(code, "42") || strings.HasPrefix(code, "22"):
		v.find(FindingTable, v.table.String(), fmt.Sprintf("Scope %q cannot be used: %v", b.table.Scope, err), "set Scope of the Table")
		return nil
	}
	return err
}

// verifier collects findings.
type verifier struct {
	*sketch
	q        pg.Querier
	ident    string // the state column as the server quotes it
	kept     bool   // a valid CHECK keeps the states
	findings []Finding
}

func (v *verifier) find(kind FindingKind, object, problem, fix string) {
	v.findings = append(v.findings, Finding{kind, object, problem, fix})
}

// migrate is what makes most findings go away.
const migrate = "run the migration that TriggerSQL makes of this machine"

// facts looks at the columns and at the rights of this role. readable says that it may read the states.
func (v *verifier) facts(ctx context.Context) (readable bool, err error) {
	t := v.table
	schema := t.Schema
	if t.NoHistory {
		schema = ""
	}
	var null, generated, unique bool
	var lacks, replication string
	err = v.q.Run(ctx, pg.Stmt{
		SQL: sqlFacts, Args: []any{t.schema, t.name, t.ID, t.State, t.Version, schema, t.Since},
		Dest: []any{&null, &generated, &unique, &lacks, &readable, &replication, &v.ident},
	})
	if err != nil {
		return false, err
	}
	if null {
		v.find(FindingTable, t.String(), fmt.Sprintf("state column %q can be NULL, which is no state", t.State), migrate+", or ALTER TABLE ... ALTER COLUMN ... SET NOT NULL")
	}
	if generated {
		v.find(FindingTable, t.String(), fmt.Sprintf("state column %q is generated, so nothing can move it", t.State), "bind the column that it is generated from")
	}
	if !unique {
		v.find(FindingTable, t.String(), fmt.Sprintf("id column %q is not unique by an index of its own: an event at an id that several rows have moves none of them", t.ID),
			"add a unique index; where the table is partitioned by another column, Postgres has none, and the program has to see to it")
	}
	if lacks != "" {
		v.find(FindingRight, t.String(), "this role lacks "+lacks, "GRANT it")
	}
	if replication == "replica" {
		v.find(FindingTrigger, t.String(), "session_replication_role is replica for this role or session, so triggers do not fire", "RESET session_replication_role, and see who has set it")
	}
	return readable, nil
}

// trigger is one of the table's or of a partition's.
type trigger struct {
	table         string
	level         int64
	name, enabled string
	kind, columns int64 // the bits of tgtype; how many columns it is limited to
	schema, calls string
	condition     string
}

// comesAfter says whether a trigger sees a row after ours has. The server's own change no state, and those of other machines on
// the same row change nothing.
func (t *trigger) comesAfter(name string) bool {
	const before = onRow | onBefore | onUpdate
	another := strings.HasPrefix(t.name, movedPrefix) && strings.HasPrefix(t.calls, "pgonce_")
	return t.kind&before == before && t.name > name && t.enabled != "D" && t.schema != "pg_catalog" && !another
}

// What a trigger fires on: the bits of pg_trigger.tgtype.
const (
	onRow    = 1
	onBefore = 2
	onInsert = 4
	onUpdate = 16
)

// triggers looks for ours, on the table and on each partition, and for those that come after them.
func (v *verifier) triggers(ctx context.Context) error {
	var tables []string
	found := map[[2]string]trigger{}
	var later []trigger
	for scan, err := range v.q.Query(ctx, sqlTriggers, v.table.schema, v.table.name) {
		var t trigger
		if err == nil {
			err = scan(&t.table, &t.level, &t.name, &t.enabled, &t.kind, &t.columns, &t.schema, &t.calls, &t.condition)
		}
		if err != nil {
			return err
		}
		if !slices.Contains(tables, t.table) {
			tables = append(tables, t.table)
		}
		found[[2]string{t.table, t.name}] = t
		if t.comesAfter(v.moved) {
			later = append(later, t)
		}
	}
	for i, table := range tables {
		v.ours(found[[2]string{table, v.moved}], table, v.moved, i > 0, onRow|onBefore|onUpdate)
		v.ours(found[[2]string{table, v.created}], table, v.created, i > 0, onInsert)
	}
	for _, t := range later {
		v.find(FindingOther, t.table, fmt.Sprintf("trigger %s fires after %s and can change the state that it has let pass", quote(t.name), quote(v.moved)),
			"rename it, so that it sorts before: ALTER TRIGGER ... RENAME TO")
	}
	return nil
}

// ours compares a trigger with what it has to be. t is empty where there is none.
func (v *verifier) ours(t trigger, table, name string, part bool, kind int64) {
	what := fmt.Sprintf("trigger %s ", quote(name))
	switch {
	case t.name == "" && part && kind == onInsert:
		v.find(FindingTrigger, table, what+"is missing, so rows can be inserted straight into this partition in any state", migrate+" again")
	case t.name == "" && part:
		v.find(FindingTrigger, table, what+"is missing on a table that inherits: its rows can be moved anywhere", "use a partition instead, or keep other programs from writing to it")
	case t.name == "":
		v.find(FindingTrigger, table, what+"is missing: the database does not keep other programs from moving rows", migrate)
	case t.enabled == "D":
		v.find(FindingTrigger, table, what+"is disabled", fmt.Sprintf("run ALTER TABLE %s ENABLE TRIGGER %s", table, quote(name)))
	case t.enabled == "R":
		v.find(FindingTrigger, table, what+"fires for replication only", fmt.Sprintf("run ALTER TABLE %s ENABLE TRIGGER %s", table, quote(name)))
	case t.schema != v.table.schema || t.calls != v.function:
		v.find(FindingTrigger, table, fmt.Sprintf("%scalls %s.%s and not %s.%s", what, quote(t.schema), quote(t.calls), quote(v.table.schema), quote(v.function)), migrate)
	case t.kind != kind || t.columns > 0 || kind != onInsert && bare(t.condition) != v.condition() || kind == onInsert && t.condition != "":
		v.find(FindingTrigger, table, what+"fires on something else than it should", migrate)
	}
}

// condition is when the trigger on rows fires, as the server shows it, without what it adds to casts.
func (v *verifier) condition() string {
	collate := ""
	if !v.numbers {
		collate = `COLLATE "C"`
	}
	return bare(fmt.Sprintf("old.%s%s IS DISTINCT FROM new.%s%s", v.ident, collate, v.ident, collate))
}

func bare(condition string) string {
	return strings.NewReplacer("(", "", ")", "", " ", "", "::text", "").Replace(condition)
}

// made looks at the function and at the constraint.
func (v *verifier) made(ctx context.Context) error {
	var source, said string
	var states, needs constraint
	err := v.q.Run(ctx, pg.Stmt{
		SQL: sqlMade, Args: []any{v.table.schema, v.table.name, v.function, v.check, v.needs},
		Dest: []any{&source, &said, &states.said, &states.valid, &states.enforced, &needs.said, &needs.valid, &needs.enforced},
	})
	if err != nil {
		return err
	}
	function := quote(v.table.schema) + "." + quote(v.function) + "()"
	switch {
	case source == "": // the triggers are missing too
	case source == v.body() && said == v.text:
	case source == v.body():
		v.find(FindingTrigger, function, "its comment is not what the migration has written", migrate)
	case said == v.text:
		v.find(FindingTrigger, function, "its text was changed by hand, or by another release of the library", migrate)
	default:
		v.find(FindingTrigger, function, v.difference(said), migrate+"; TriggerSQL says in which order")
	}
	has, known := states.says()
	known = known && slices.Equal(has.States, v.States)
	v.kept = known && states.valid && states.enforced
	v.constraint(v.check, states, known, "allows the states "+list(has.States), "where triggers are off, any state can be written")
	if has, known = needs.says(); len(v.Require) > 0 || len(has.Require) > 0 {
		v.constraint(v.needs, needs, known && slices.Equal(has.Require, v.Require), "requires "+list(columnsOf(has.Require)), "a row can lack what its state requires")
	}
	return nil
}

// constraint is a CHECK that the migration makes, as it was found.
type constraint struct {
	said            string // its comment
	valid, enforced bool
}

func (c constraint) says() (has comment, ok bool) {
	err := json.Unmarshal([]byte(c.said), &has)
	return has, err == nil
}

// constraint compares one with what it has to be.
func (v *verifier) constraint(name string, c constraint, known bool, is, without string) {
	quoted := quote(name)
	switch {
	case c.said == "":
		v.find(FindingCheck, quoted, "is missing, or was not made by the migration: "+without, migrate)
	case !known:
		v.find(FindingCheck, quoted, is, migrate)
	case !c.enforced:
		v.find(FindingCheck, quoted, "is not enforced", migrate)
	case !c.valid:
		v.find(FindingCheck, quoted, "is not valid for the rows of before", fmt.Sprintf("run ALTER TABLE %s VALIDATE CONSTRAINT %s", v.table, quoted))
	}
}

// strays counts rows in unknown states.
func (v *verifier) strays(ctx context.Context) error {
	for scan, err := range v.q.Query(ctx, v.fill(sqlStrays), arrayOf(v.States)) {
		var state string
		var null bool
		var n int64
		if err == nil {
			err = scan(&state, &null, &n)
		}
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%q", state)
		if null {
			name = "NULL"
		}
		v.find(FindingRows, v.table.String(), fmt.Sprintf("%d rows are in %s, which the machine does not have", n, name),
			"add the state to the machine, or move them in a transaction with set_config('pgonce.adopt', "+literal(v.Machine)+", true)")
	}
	return nil
}
