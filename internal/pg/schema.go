package pg

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// DefaultSchema is where the tables live unless a Config says otherwise.
const DefaultSchema = "pgonce"

// SchemaVersion is the number of the newest migration that this code knows. The
// migrations package has a test that holds it to its files.
const SchemaVersion = 6

var (
	// ErrSchema means that the library's tables are missing, too old or too new
	// for this code, or out of reach of this role.
	ErrSchema = errors.New("schema not usable")

	schemaName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,50}$`)
)

// SchemaError says what is wrong with the schema and what to do about it. It
// unwraps to [ErrSchema] and to the server's error, if there was one.
type SchemaError struct {
	Schema  string
	Version int // found in the database; 0 when there is none
	Want    int // the version of this code
	Reason  string
	Fix     string
	Err     error
}

func (e *SchemaError) Error() string {
	s := fmt.Sprintf("schema %q: %s; %s", e.Schema, e.Reason, e.Fix)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap makes errors.Is find the sentinel as well as the cause.
func (e *SchemaError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrSchema}
	}
	return []error{ErrSchema, e.Err}
}

// CheckSchemaName refuses a name that could not stand unquoted in a migration.
func CheckSchemaName(name string) error {
	if !schemaName.MatchString(name) || strings.HasPrefix(name, "pg_") || name == "information_schema" {
		return &SchemaError{
			Schema: name, Want: SchemaVersion,
			Reason: "not a usable schema name",
			Fix:    "use lower-case letters, digits and underscores, at most 51, not starting with a digit or pg_",
		}
	}
	return nil
}

// In is the SQL text for another schema. Every constant names the default one,
// quoted, so that it runs in psql as it stands; this is the only edit ever made.
func In(schema, sql string) string {
	if schema == DefaultSchema {
		return sql
	}
	return strings.ReplaceAll(sql, `"`+DefaultSchema+`"`, `"`+schema+`"`)
}

// CheckSchema asks the database whether this code can work with its schema. It
// needs nothing but USAGE on the schema and SELECT. One round trip.
func CheckSchema(ctx context.Context, q Querier, schema string) error {
	var version, minCode, found int64
	err := q.Run(ctx, Stmt{SQL: In(schema, SQLSchemaVersion), Dest: []any{&version, &minCode}, Rows: &found})
	if err != nil && !Rejected(err) && !errors.Is(err, ErrUnavailable) {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return JudgeSchema(schema, int(version), int(minCode), err)
}

// JudgeSchema turns the answer to [SQLSchemaVersion] into a verdict: nil, or a
// *SchemaError, or err itself when it says nothing about the schema.
//
// A newer schema is accepted while it declares that code of our version can live
// with it, so that a rolling deploy may migrate first and replace the processes
// one by one. An older one never is: we would write what it cannot hold.
func JudgeSchema(schema string, version, minCode int, err error) error {
	bad := &SchemaError{Schema: schema, Version: version, Want: SchemaVersion, Err: err}
	const up = "run migrations.Up, or what migrations.Script prints, with a role that owns the schema"
	switch Code(err) {
	case CodeUndefinedTable, CodeNoSuchSchema:
		bad.Reason, bad.Fix = "not there", up
		return bad
	case CodeNoPrivilege:
		bad.Reason = "this role may not read it"
		bad.Fix = fmt.Sprintf("GRANT USAGE ON SCHEMA %q, SELECT, INSERT, UPDATE, DELETE ON ALL TABLES and USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA %q to it", schema, schema)
		return bad
	}
	switch {
	case err != nil:
		return err
	case version == 0:
		bad.Reason, bad.Fix = "empty", up
	case version < SchemaVersion:
		bad.Reason = fmt.Sprintf("at version %d, this code needs %d", version, SchemaVersion)
		bad.Fix = up
	case minCode > SchemaVersion:
		bad.Reason = fmt.Sprintf("at version %d, which code of version %d cannot work with", version, SchemaVersion)
		bad.Fix = "upgrade the module to a release that knows this version"
	default:
		return nil
	}
	return bad
}

// ExplainSchema replaces the server's answer to a statement of ours, when it says
// that a table is missing or forbidden, by one that says what to do. Any other error
// comes back as it is.
func ExplainSchema(schema string, err error) error {
	switch Code(err) {
	case CodeUndefinedTable, CodeNoSuchSchema, CodeNoPrivilege:
		return JudgeSchema(schema, 0, 0, err)
	}
	return err
}
