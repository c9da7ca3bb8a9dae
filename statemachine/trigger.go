package statemachine

import (
	"bytes"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pgonce/pgonce/internal/pg"
)

// The migration is written for "public"."orders", as the texts of sql.go are, and filled in by [sketch.fill].
var (
	//go:embed sql/trigger.sql
	triggerSQL string
	//go:embed sql/body.sql
	bodySQL string
	//go:embed sql/validate.sql
	validateSQL string
	//go:embed sql/drop.sql
	dropSQL string
	//go:embed sql/requires.sql
	requiresSQL string
	//go:embed sql/validaterequires.sql
	validateRequiresSQL string
)

// TriggerConfig says how a migration is made. A nil *TriggerConfig is ready to use.
type TriggerConfig struct {
	// Contract takes edges away although rows are in the states where they begin. Do so when no running program
	// fires their events any more; one that does gets [ErrTriggerRefused]. A state that rows are in is never
	// taken away.
	Contract bool
}

// TriggerSQL is SQL that makes the database refuse what the machine does not allow, whoever writes: a plain UPDATE, an
// upsert, MERGE, INSERT or COPY. It is for psql, for review and for any tool that runs SQL; [Binding.WriteMigration] writes
// the same for goose. It touches no database itself.
//
// It makes a function, with the edges in its text; a trigger for each row whose state is changed; a trigger for
// each INSERT, which lets rows begin in an initial state only; and CHECKs of the states and of the columns that states require ([Require]),
// valid after the second of its two transactions, and with them NOT NULL. The second fails while a row breaks them. Both can be run again, and are run again when the machine has changed: edges that
// are new first (before the programs that fire them), edges that are gone last, see [TriggerConfig].
//
// A refusal is 23514 (check_violation). [Binding.Fire] answers it with [ErrTriggerRefused]; in the caller's transaction
// it is the end of that, where an ordinary conflict is not.
//
// An import, or a repair by hand, may make rows in any of the machine's states and move them as it likes, in a transaction that
// says so: SELECT set_config('pgonce.adopt', 'order', true), with the machine's name. This is a convention
// against accidents, not a right: who may write to the column may do it.
//
// What it cannot stop: DELETE with INSERT, TRUNCATE, a changed id; superusers and owners of the table, who can disable it; a session with
// session_replication_role = replica, as logical replication has (the CHECK holds there); a BEFORE UPDATE trigger whose name sorts after
// zzzz_pgonce, and partitions that are made later, for INSERTs straight into them. [Binding.Verify] finds the last two and
// disabled triggers.
//
// Cost: an UPDATE that leaves the state alone compares it; one that changes it calls a function, without reading a
// table; an INSERT statement scans the rows that it has made. No WAL.
func (b *Binding[K, S, TX]) TriggerSQL(cfg *TriggerConfig) string {
	s := b.sketch()
	return "BEGIN;\n\n" + s.trigger(cfg) + "\nCOMMIT;\n\nBEGIN;\n\n" + s.fill(validateSQL) + "\nCOMMIT;\n"
}

// WriteMigration writes the text of [Binding.TriggerSQL] to dir as two goose migrations, version and version + 1, and
// returns the names of the files. They are two because the second reads the whole table, and would otherwise do so under the lock of
// the first. To take them back is refused unless pgonce.force_down is set: it would leave the table without a trigger.
//
// Errors: [ErrInvalid] for a version that is not positive or that dir has already; and what the file system says.
func (b *Binding[K, S, TX]) WriteMigration(dir string, version int64, cfg *TriggerConfig) ([]string, error) {
	s := b.sketch()
	names := []string{
		fmt.Sprintf("%05d_%s_trigger.sql", version, slug(b.m.name)),
		fmt.Sprintf("%05d_%s_validate.sql", version+1, slug(b.m.name)),
	}
	texts := []string{gooseFile(s.trigger(cfg), s.fill(dropSQL)), gooseFile(s.fill(validateSQL), "")}
	err := checkVersions(dir, version)
	for i := range names {
		names[i] = filepath.Join(dir, names[i])
		if err == nil {
			err = create(names[i], texts[i])
		}
	}
	if err != nil {
		return nil, fmt.Errorf("statemachine: write migration of %q: %w", b.m.name, err)
	}
	return names, nil
}

func gooseFile(up, down string) string {
	text := "-- +goose Up\n-- +goose StatementBegin\n" + up + "-- +goose StatementEnd\n\n-- +goose Down\n"
	if down != "" {
		text += "-- +goose StatementBegin\n" + down + "-- +goose StatementEnd\n"
	}
	return text
}

// checkVersions refuses to write beside files of the same versions: goose would run none of them.
func checkVersions(dir string, version int64) error {
	if version < 1 {
		return &InvalidError{"version", fmt.Sprintf("is %d, and has to be positive", version)}
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		number, _, _ := strings.Cut(f.Name(), "_")
		if n, err := strconv.ParseInt(number, 10, 64); err == nil && (n == version || n == version+1) {
			return &InvalidError{"version", fmt.Sprintf("%d is there: %s", n, f.Name())}
		}
	}
	return nil
}

func create(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) //nolint:gosec // a migration is no secret, and the name is the caller's
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

// slug makes a part of a file's name of any name.
func slug(name string) string {
	out := []byte(strings.ToLower(name))
	for i, c := range out {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			out[i] = '_'
		}
	}
	return string(out[:min(len(out), 40)])
}

// movedPrefix begins the name of the trigger on rows. Triggers fire in the order of their names, and what comes after it can undo what it
// has checked.
const movedPrefix = "zzzz_pgonce_move_"

// sketch is a machine over a table as the database keeps it.
type sketch struct {
	table   resolved
	numbers bool
	comment

	text                                   string // the comment
	function, moved, created, check, needs string // the names of what the migration makes
}

// comment is what the function and the constraint say of themselves, as JSON.
type comment struct {
	Pgonce  int         `json:"pgonce"`
	Machine string      `json:"machine"`
	Hash    string      `json:"hash"`
	States  []string    `json:"states"`
	Initial []string    `json:"initial"`
	Edges   [][2]string `json:"edges"`
	Require [][2]string `json:"require,omitempty"` // a state and a column
}

func (b *Binding[K, S, TX]) sketch() *sketch {
	t := b.table
	s := &sketch{
		table: t, numbers: isNumber[S](), comment: b.m.comment(),
		function: objectName("pgonce_", t.name+"_"+t.State, true),
		moved:    objectName(movedPrefix, t.State, false),
		created:  objectName("zzzz_pgonce_new_", t.State, false),
		check:    objectName("pgonce_states_", t.State, false),
		needs:    objectName("pgonce_requires_", t.State, false),
	}
	s.text = encode(s.comment)
	return s
}

// comment does not depend on the order of the rules. Edges that do not change the state are none to the database.
func (m *Machine[S]) comment() comment {
	d := comment{Pgonce: 1, Machine: m.name, States: texts(m.states), Initial: texts(m.initial), Edges: [][2]string{}}
	for e := range m.edges() {
		if e.from != e.to {
			d.Edges = append(d.Edges, [2]string{textOf(e.from), textOf(e.to)})
		}
	}
	for s, columns := range m.require {
		for _, column := range columns {
			d.Require = append(d.Require, [2]string{textOf(s), column})
		}
	}
	slices.Sort(d.States)
	slices.Sort(d.Initial)
	d.Initial = slices.Compact(d.Initial)
	for _, pairs := range []*[][2]string{&d.Edges, &d.Require} {
		slices.SortFunc(*pairs, func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
		*pairs = slices.Compact(*pairs)
	}
	hash := pg.HashParts(encode(d))
	d.Hash = hex.EncodeToString(hash[:8])
	return d
}

func encode(d comment) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(d) // strings and numbers: it cannot fail
	return strings.TrimSuffix(b.String(), "\n")
}

// objectName is a name of at most 63 bytes that no other table or column gives.
func objectName(prefix, name string, always bool) string {
	if !always && len(prefix)+len(name) <= maxIdentifier {
		return prefix + name
	}
	sum := pg.HashParts(prefix, name)
	cut := min(len(name), maxIdentifier-len(prefix)-9)
	for !utf8.ValidString(name[:cut]) {
		cut--
	}
	return prefix + name[:cut] + "_" + hex.EncodeToString(sum[:4])
}

// trigger is the first transaction of the migration.
func (s *sketch) trigger(cfg *TriggerConfig) string {
	if cfg != nil && cfg.Contract {
		return s.fill(strings.Replace(triggerSQL, "/*contract*/false", "true", 1))
	}
	return s.fill(triggerSQL)
}

// fill puts names and states into a text of the migration. The replacer passes over it once, so nothing that it
// puts in is replaced in turn.
func (s *sketch) fill(text string) string {
	t := s.table
	cast, compared := "", "::text"
	if !s.numbers { // a collation may take two texts for one
		cast, compared = `::text COLLATE "C"`, `::text COLLATE "C"`
	}
	tag, add, validate := s.tag(), "", ""
	if len(s.Require) > 0 && text != requiresSQL && text != validateRequiresSQL {
		add, validate = s.fill(requiresSQL), s.fill(validateRequiresSQL)
	}
	return strings.NewReplacer(
		`"public"."orders"`, t.String(), `"public"."pgonce_orders_state"`, quote(t.schema)+"."+quote(s.function),
		`"state"`, quote(t.State), `/*::text*/`, cast, `/*as text*/`, compared,
		`"zzzz_pgonce_move_state"`, quote(s.moved), `"zzzz_pgonce_new_state"`, quote(s.created), `"pgonce_states_state"`, quote(s.check), `"pgonce_requires_state"`, quote(s.needs),
		`/*add requires*/`, add, `/*validate requires*/`, validate, `/*requires*/`, s.requires(compared),
		`'/*schema*/'`, literal(t.schema), `'/*function*/'`, literal(s.function), `'/*created*/'`, literal(s.created), `'/*table*/'`, literal(t.String()),
		`'/*definition*/'`, literal(s.text), `'/*states*/'`, literal(arrayOf(s.States)), `/*hash*/`, s.Hash,
		`/*body*/`, s.body(), `$pgonce$`, tag, `/*contract*/`, "",
	).Replace(text)
}

// body is the text of the function, as pg_proc keeps it.
func (s *sketch) body() string {
	var edges strings.Builder
	for _, from := range s.States {
		var to []string
		for _, e := range s.Edges {
			if e[0] == from {
				to = append(to, e[1])
			}
		}
		if len(to) > 0 {
			fmt.Fprintf(&edges, "\n            OR pgonce_from OPERATOR(pg_catalog.=) %s AND pgonce_to OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.text[])",
				literal(from), literal(arrayOf(to)))
		}
	}
	name := literal(s.Machine)
	return strings.NewReplacer(
		`"state"`, quote(s.table.State), `/*hash*/`, s.Hash, `/*edges*/`, edges.String(),
		`'/*name*/'`, name, `'pgonce: machine /*name*/ does not lead from '`, literal("pgonce: machine "+quote(s.Machine)+" does not lead from "),
		`'/*states*/'`, literal(arrayOf(s.States)), `'/*initial*/'`, literal(arrayOf(s.Initial)), `'/*column*/'`, literal(s.table.State),
	).Replace(bodySQL)
}

// requires is the condition that rows have the columns which their states require.
func (s *sketch) requires(compared string) string {
	parts := make([]string, len(s.Require))
	for i, r := range s.Require {
		parts[i] = fmt.Sprintf("(%s%s <> %s OR %s IS NOT NULL)", quote(s.table.State), compared, literal(r[0]), quote(r[1]))
	}
	return strings.Join(parts, "\n        AND ")
}

// tag is a dollar quote that nothing in the texts can end.
func (s *sketch) tag() string {
	names := s.text + s.table.String() + s.table.State + s.requires("")
	for n := 0; ; n++ {
		tag := "$pgonce$"
		if n > 0 {
			tag = fmt.Sprintf("$pgonce%d$", n)
		}
		if !strings.Contains(names, strings.Trim(tag, "$")+"$") {
			return tag
		}
	}
}

// literal is a text in SQL, whatever standard_conforming_strings says.
func literal(s string) string {
	s = strings.ReplaceAll(s, "'", "''")
	if strings.Contains(s, `\`) {
		return ` E'` + strings.ReplaceAll(s, `\`, `\\`) + `'`
	}
	return "'" + s + "'"
}
