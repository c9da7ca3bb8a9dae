package smtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/internal/pg"
)

// unknown is a state that no machine has: a name may not have control characters.
const unknown = "smtest\x01"

// way of SQL to write a state. first runs before it, to make room for a row that is inserted.
type verb struct {
	name, first, sql string
	inserts          bool
}

// writeAll tries to write every state from every state, past the machine.
func (p *proof[K, S, TX]) writeAll(ctx context.Context) {
	verbs := []verb{{name: "UPDATE", sql: sqlUpdate}, {name: "INSERT", first: sqlDelete, sql: sqlInsert, inserts: true}, {name: "INSERT ON CONFLICT", sql: sqlUpsert}}
	if p.version >= 15 {
		verbs = append(verbs, verb{name: "MERGE", sql: sqlMerge})
	}
	verbs = append(verbs, verb{name: "COPY", first: sqlDelete, sql: sqlCopy, inserts: true})
	tried, skipped := 0, map[string]error{}
	for _, state := range p.m.States() {
		id, _, ok := p.place(ctx, state)
		if !ok {
			continue
		}
		r, err := p.row(ctx, id)
		if err != nil {
			p.t.Errorf("smtest: read row %v: %v", id, err)
			continue
		}
		for _, v := range verbs {
			for _, w := range p.writes(id, state, r, v) {
				err := p.write(ctx, v, w)
				if why, ok := errors.AsType[*notTriedError](err); ok {
					skipped[v.name] = why
					continue
				}
				p.judge(v, w, err)
				tried++
			}
		}
	}
	p.t.Logf("smtest: tried to write a state past the machine %d times", tried)
	for _, v := range verbs {
		if err := skipped[v.name]; err != nil {
			p.t.Logf("smtest: %s was not tried, or not from every state: %v", v.name, err)
		}
	}
}

// write is one attempt to write a state.
type write struct {
	args     []any
	copied   string // the row for COPY
	from, to string
	legal    bool // the machine has this edge, or rows begin there
	known    bool // the machine has this state
}

// writes are the attempts with a row: to every state for a verb that changes it, to its own for one that makes it anew.
func (p *proof[K, S, TX]) writes(id K, from S, r row, v verb) []write {
	if v.inserts {
		return []write{{args: []any{r.all}, copied: r.copied, from: "a new row", to: text(from), legal: slices.Contains(p.m.Initial(), from), known: true}}
	}
	args := func(to any) []any {
		if v.sql == sqlUpsert {
			return []any{r.all, p.key(id, to)}
		}
		return []any{p.key(id, to)}
	}
	var out []write
	for _, to := range p.m.States() {
		if to == from {
			continue
		}
		edge := slices.ContainsFunc(p.steps(from), func(s step[S]) bool { return s.to == to })
		out = append(out, write{args: args(text(to)), from: text(from), to: text(to), legal: edge, known: true})
	}
	return append(out, write{args: args(nil), from: text(from), to: "NULL"}, write{args: args(unknown), from: text(from), to: "a state that is not the machine's"})
}

// notTriedError says why an attempt could not be made.
type notTriedError struct{ err error }

func (e *notTriedError) Error() string { return e.err.Error() }

// write makes an attempt in a transaction that is rolled back.
func (p *proof[K, S, TX]) write(ctx context.Context, v verb, w write) error {
	tx, err := p.db.Begin(ctx, pg.ReadCommitted)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx)
	if v.first != "" {
		if err := tx.Run(ctx, pg.Stmt{SQL: p.fill.Replace(v.first), Args: w.args}); err != nil {
			return &notTriedError{fmt.Errorf("the row cannot be deleted first: %w", err)}
		}
	}
	if v.sql == sqlCopy {
		return p.copyRow(ctx, tx.Handle(), w.copied)
	}
	var n int64
	err = tx.Run(ctx, pg.Stmt{SQL: p.fill.Replace(v.sql), Args: w.args, Rows: &n})
	if e, ok := errors.AsType[*pg.Error](err); ok && e.Code == "42P10" {
		return &notTriedError{err} // no unique index for ON CONFLICT
	}
	if err == nil && n != 1 {
		return fmt.Errorf("%d rows were written, not one", n)
	}
	return err
}

// copyRow sends a row by COPY, which of the client libraries pgx can.
func (p *proof[K, S, TX]) copyRow(ctx context.Context, tx TX, columns string) error {
	on, ok := any(tx).(interface{ Conn() *pgx.Conn })
	if !ok {
		return &notTriedError{errors.New("this client library has no COPY in a transaction")}
	}
	var values []*string
	_ = json.Unmarshal([]byte(columns), &values) // the server has made it
	fields := make([]string, len(values))
	for i, v := range values {
		fields[i] = `\N`
		if v != nil {
			fields[i] = strings.NewReplacer(`\`, `\\`, "\t", `\t`, "\n", `\n`, "\r", `\r`).Replace(*v)
		}
	}
	_, err := on.Conn().PgConn().CopyFrom(ctx, strings.NewReader(strings.Join(fields, "\t")+"\n"), p.fill.Replace(sqlCopy))
	return err
}

// judge compares what became of an attempt with the machine. What is no edge must be refused by our trigger, since
// a refusal by anything else is luck. A legal one may be refused by the table's own constraints.
func (p *proof[K, S, TX]) judge(v verb, w write, err error) {
	ours := refusedByTrigger(err)
	switch {
	case w.legal && ours:
		p.t.Errorf("smtest: %s from %s to %s is an edge of the machine, and the trigger refuses it: %v", v.name, w.from, w.to, err)
	case !w.legal && err == nil:
		p.t.Errorf("smtest: %s from %s to %s is no edge of the machine, and nothing has refused it; run the migration of TriggerSQL", v.name, w.from, w.to)
	case !w.legal && w.known && !ours:
		p.t.Errorf("smtest: %s from %s to %s is no edge of the machine, and was refused by something else than the trigger: %v", v.name, w.from, w.to, err)
	}
}

func refusedByTrigger(err error) bool {
	if e, ok := errors.AsType[*pg.Error](err); ok {
		return e.Code == "23514" && strings.HasPrefix(e.Constraint, "zzzz_pgonce_")
	}
	if e, ok := errors.AsType[interface {
		error
		SQLState() string
	}](err); ok { // of COPY, which goes past the seam
		return e.SQLState() == "23514" && strings.Contains(err.Error(), "pgonce: machine")
	}
	return false
}
