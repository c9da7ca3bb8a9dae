//go:build unix

package docs_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// docs/schema.md has a section for each table with a line for each column, index and sequence of the migrated
// database, with their types, and nothing else.
func TestSchemaPageIsTheSchema(t *testing.T) {
	t.Parallel()
	documented := map[string]string{} // "table.thing", or "table" alone, to its type
	table := ""
	line := regexp.MustCompile("^\\| `([a-z0-9_]+)` \\| ([^|]+) \\| [^|]*[a-z][^|]* \\|$")
	for _, text := range strings.Split(read(t, "docs/schema.md"), "\n") {
		if name, ok := strings.CutPrefix(text, "## `"); ok {
			table = strings.TrimSuffix(name, "`")
			documented[table] = "table"
		} else if m := line.FindStringSubmatch(text); m != nil {
			if documented[table+"."+m[1]] != "" {
				t.Errorf("docs/schema.md says twice what %s.%s is", table, m[1])
			}
			documented[table+"."+m[1]] = m[2]
		} else if strings.HasPrefix(text, "| `") {
			t.Errorf("this line is not | `name` | type | meaning |: %s", text)
		}
	}
	actual := schemaOf(t)
	for name, kind := range actual {
		parent, thing, _ := strings.Cut(name, ".")
		switch said, ok := documented[name]; {
		case !ok && kind == "table":
			t.Errorf("docs/schema.md has no section for a table: add\n\n## `%s`\n\nwho writes it, and how it grows", name)
		case !ok:
			t.Errorf("docs/schema.md: in the section of `%s`, add\n| `%s` | %s | what it means |", parent, thing, kind)
		case said != kind:
			t.Errorf("docs/schema.md says that %s is %q, it is %q", name, said, kind)
		}
	}
	for name := range documented {
		if actual[name] == "" {
			t.Errorf("docs/schema.md speaks of %s, which is not there", name)
		}
	}
}

// schemaOf is every table, column, index and sequence of the library's schema.
func schemaOf(t *testing.T) map[string]string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), pgtest.New(t).URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	rows, err := conn.Query(t.Context(), `
		SELECT c.relname, 'table' FROM pg_class c WHERE c.relnamespace = 'pgonce'::regnamespace AND c.relkind IN ('r', 'p')
		UNION ALL
		SELECT c.relname || '.' || a.attname, format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN '' ELSE ', NULL' END
		FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		WHERE c.relnamespace = 'pgonce'::regnamespace AND c.relkind IN ('r', 'p')
		UNION ALL
		SELECT c.relname || '.' || i.relname, CASE WHEN x.indisprimary THEN 'primary key' WHEN x.indisunique THEN 'unique index' ELSE 'index' END
		       || regexp_replace(pg_get_indexdef(i.oid), '^.* USING \w+ ', ' ')
		FROM pg_class c JOIN pg_index x ON x.indrelid = c.oid JOIN pg_class i ON i.oid = x.indexrelid WHERE c.relnamespace = 'pgonce'::regnamespace
		UNION ALL
		SELECT d.refobjid::regclass::text || '.' || s.relname, 'sequence'
		FROM pg_class s JOIN pg_depend d ON d.objid = s.oid AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
		WHERE s.relnamespace = 'pgonce'::regnamespace AND s.relkind = 'S'`)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	var name, kind string
	_, err = pgx.ForEachRow(rows, []any{&name, &kind}, func() error {
		found[strings.TrimPrefix(name, "pgonce.")] = kind
		return nil
	})
	if err != nil || len(found) < 30 {
		t.Fatal(fmt.Errorf("found %d things: %w", len(found), err))
	}
	return found
}
