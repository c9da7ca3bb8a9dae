//go:build unix

package statemachine

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// Whatever the lexer accepts is one expression to Postgres too, or none: put between parentheses it ends where these end, it
// brings no column, no statement and no parameter of its own, and what stands behind it is still there. Postgres
// may refuse it, in which case nothing runs.
func FuzzExpressionOnServer(f *testing.F) {
	for _, tc := range expressions {
		f.Add(tc.text, tc.args)
	}
	for _, more := range []string{
		"E'a'\n'b'", "'a'\n'b'", "1.e5", "1..2", "0x1G", "a.b.c", "a::text[]", "ARRAY[1]", "ROW(1,2)", "CASE WHEN a THEN 1 END", "x IS NULL", "$1::int", "a AS b",
		"1 LIMIT 1", "1 FROM orders", "a OVER ()", "count(*)", "a; b", "N'x'", "B'1'", "X'ff'", "u & '1'", "e'\\''", "a'b", "\"a\"\"b\"", "a\vb", "@- 1", "a <@ b", "!= ", "#>>'{a}'", "OPERATOR(pg_catalog.+)",
		"XMLELEMENT(name a)", "COLLATE \"C\"", "a IN (1,2)", "(a).b", "(ARRAY[1])[1]", "a[1:2]", "interval '1' day", "a AT TIME ZONE 'x'", "DISTINCT a", "ALL (a)", "e", "E", "$1$2", "'' ''", "\u00a0", "a\u2028b",
	} {
		f.Add(more, strings.Count(more, "$"))
	}
	db := pgtest.New(f)
	db.Exec(f, `CREATE TABLE orders (id bigint, state text, a bigint, b text, ok boolean, amount bigint, meta jsonb, at timestamptz, x int)`)
	conn, err := pgx.Connect(f.Context(), db.URL)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = conn.Close(f.Context()) })
	var accepted, parsed int
	f.Cleanup(func() {
		if accepted > 20 && parsed == 0 {
			f.Error("Postgres has taken none of the expressions: this shows nothing")
		}
	})
	f.Fuzz(func(t *testing.T, text string, args int) {
		if args < 0 || args > 20 || len(text) > 1000 {
			return
		}
		e, err := parseExpression(text, args)
		if err != nil {
			return
		}
		accepted++
		const marker = "pgonce end"
		sql := fmt.Sprintf(`SELECT (%s), '%s' AS "%s" FROM "public"."orders" WHERE 1 = 1`, e.render(1), marker, marker)
		d, err := conn.Prepare(t.Context(), "", sql)
		if err != nil {
			if strings.Contains(err.Error(), "unterminated") || strings.Contains(err.Error(), "multiple commands") {
				t.Errorf("%q was accepted: %v", text, err)
			}
			return
		}
		parsed++
		if len(d.Fields) != 2 || d.Fields[1].Name != marker {
			t.Errorf("%q became %d columns", text, len(d.Fields))
		}
		if len(d.ParamOIDs) > args {
			t.Errorf("%q has %d parameters, it was given %d", text, len(d.ParamOIDs), args)
		}
		// A cast binds closer than every operator: what falls apart behind a bracket would be cast in part.
		if _, err := conn.Prepare(t.Context(), "", `SELECT pg_catalog.pg_typeof((`+e.render(1)+`)) FROM "public"."orders"`); err != nil && pg.Code(err) == "" && strings.Contains(err.Error(), "42601") {
			t.Errorf("%q is an expression, and is none as an argument: %v", text, err)
		}
	})
}
