package statemachine

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pgonce/pgonce/internal/pg"
)

// ID is what rows are named by: the Go type of a column that is a smallint, int or bigint; a
// uuid, as its text or as 16 bytes; or a text, varchar or the like. The column must be unique; a row of
// several key columns needs one more that is. A text has to name its row in one notation only, as a citext or a
// column with a nondeterministic collation does not: the history knows ids by their bytes.
type ID interface {
	~int | ~int16 | ~int32 | ~int64 | ~string | ~[16]byte
}

// Table says where the rows of a machine are. Names are taken as they are written, case
// included; what SQL created without quotes is lower case.
type Table struct {
	// Name is "orders" or "billing.orders". Without a schema it is in "public": the
	// search_path is never asked.
	Name string

	// ID is the column that names the row. Defaults to "id".
	ID string

	// State is the column that holds the state: text, varchar or an enum, or an integer. It should be NOT NULL.
	// Defaults to "state". A table with two such columns has two machines, each with a
	// binding of its own.
	State string

	// Version is an integer column that counts the moves, if there is one. Every move adds one to it. It should be NOT NULL: a NULL stays one,
	// and no [ExpectVersion] holds for it.
	Version string

	// Since is a column of type timestamptz that says since when the row is in its state, if there is one. Every move
	// sets it: to the time of the move in the history, or without one to that of the statement. [Source.After] needs
	// it, and so does a query for rows that are stuck. An index on it costs the HOT updates of the table;
	// one that pays names the states in its condition: (since, id) WHERE state IN ('unpaid').
	Since string

	// Scope is a condition on the columns of the row, for every call: a row for which it does not hold is not
	// there ([ErrNotFound]), and neither its state nor its history can be learned. The rules of [Where] apply. It may
	// have parameters, which [Binding.In] gives.
	//
	//	Scope: "tenant_id = $1 AND deleted_at IS NULL"
	//
	// It does not make ids of its own for each tenant: the id column has to be unique in the whole
	// table.
	Scope string

	// NoHistory writes nothing to the history: no library table is needed, [Dedup] is
	// not to be had, and a machine where the state alone does not tell whether an event
	// was applied is refused by [Bind].
	NoHistory bool

	// Schema holds the history, as created by the migrations package. Defaults to "pgonce".
	Schema string
}

// resolved is the table with its defaults, and its schema split off its name.
type resolved struct {
	Table
	schema, name string
	scope        expression
	scopeArgs    int
	named        []string // columns that the machine names in Require and Setting
}

func (t Table) resolve() (resolved, []error) {
	t.ID, t.State, t.Schema = cmp.Or(t.ID, "id"), cmp.Or(t.State, "state"), cmp.Or(t.Schema, pg.DefaultSchema)
	r := resolved{Table: t, schema: "public", name: t.Name}
	if schema, name, ok := strings.Cut(t.Name, "."); ok {
		r.schema, r.name = schema, name
	}
	var findings []error
	find := func(part, reason string) { findings = append(findings, &InvalidError{part, reason}) }
	for _, n := range []struct{ part, name string }{
		{"table's schema", r.schema},
		{"table's name", r.name},
		{"id column", t.ID},
		{"state column", t.State},
		{"version column", cmp.Or(t.Version, "none")},
		{"since column", cmp.Or(t.Since, "none")},
	} {
		reason := fault(n.name, maxIdentifier)
		if strings.HasSuffix(n.part, "column") && strings.HasPrefix(n.name, reserved) {
			reason = "begins with " + reserved + ", as the statements' own names do"
		}
		if reason != "" {
			find(n.part, reason)
		}
	}
	if strings.Contains(r.name, ".") {
		find("table's name", fmt.Sprintf("%q has more than one dot", t.Name))
	}
	if kept := r.kept(); len(slices.Compact(slices.Sorted(slices.Values(kept)))) < len(kept) {
		find("table", "has one column for two purposes")
	}
	if t.Scope != "" {
		var err error
		if r.scope, r.scopeArgs, err = parseScope(t.Scope); err != nil {
			find(fmt.Sprintf("scope %q", t.Scope), err.Error())
		}
	}
	if err := pg.CheckSchemaName(t.Schema); err != nil {
		findings = append(findings, err)
	}
	return r, findings
}

// kept are the columns that the machine writes, or by which it knows the row.
func (t Table) kept() []string {
	kept := []string{t.ID, t.State}
	for _, name := range []string{t.Version, t.Since} {
		if name != "" {
			kept = append(kept, name)
		}
	}
	return kept
}

// maxIdentifier is what Postgres cuts longer names down to.
const maxIdentifier = 63

// quote makes an identifier of any name.
func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// String is the table's name in SQL.
func (r resolved) String() string { return quote(r.schema) + "." + quote(r.name) }

// idKind is how an id travels.
type idKind int

const (
	idInt idKind = iota
	idText
	idUUID
)

func kindOf[K ID]() idKind {
	switch reflect.TypeFor[K]().Kind() {
	case reflect.String:
		return idText
	case reflect.Array:
		return idUUID
	}
	return idInt
}

// isNumber says whether states are integers.
func isNumber[S StateType]() bool { return reflect.TypeFor[S]().Kind() != reflect.String }

// idArg is an id as every client library can carry it: an int64 or a string.
func idArg[K ID](id K) any {
	v := reflect.ValueOf(id)
	switch v.Kind() {
	case reflect.String:
		return v.String()
	case reflect.Array:
		var b [16]byte
		reflect.Copy(reflect.ValueOf(&b).Elem(), v)
		h := hex.EncodeToString(b[:])
		return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
	}
	return v.Int()
}

// idOf is the opposite of idArg, for the text that the database has of an id.
func idOf[K ID](text string) (id K, err error) {
	v := reflect.ValueOf(&id).Elem()
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Array:
		b, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
		if err != nil || len(b) != v.Len() {
			return id, &InvalidError{fmt.Sprintf("id %q", text), "is not a UUID"}
		}
		reflect.Copy(v, reflect.ValueOf(b))
	default:
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			return id, &InvalidError{fmt.Sprintf("id %q", text), fmt.Sprintf("does not fit into %T", id)}
		}
		v.SetInt(n)
	}
	return id, nil
}

// faultOfUUID says what is wrong with the text of a UUID. The server would say so too, and the
// transaction with it.
func faultOfUUID(s string) string {
	digits := uuidDigits(s)
	if _, err := hex.DecodeString(digits); err != nil || len(digits) != 32 {
		return "is not a UUID"
	}
	return ""
}

// uuidDigits are the 32 digits of a UUID in any notation that Postgres takes: with braces around it or without, and with a hyphen or none
// after each four of them. A text that is no UUID keeps what makes it none.
func uuidDigits(s string) string {
	if strings.HasPrefix(s, "{") && strings.HasSuffix(s, "}") {
		s = s[1 : len(s)-1]
	}
	digits := make([]byte, 0, len(s))
	for i := range len(s) {
		if n := len(digits); s[i] != '-' || s[max(i, 1)-1] == '-' || n%4 != 0 || n == 32 {
			digits = append(digits, s[i])
		}
	}
	return strings.ToLower(string(digits))
}

// faultOfText says what the server would refuse in any text.
func faultOfText(s string) string {
	if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		return "is not valid text"
	}
	return ""
}
