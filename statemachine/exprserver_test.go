//go:build unix

package statemachine

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
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
	const table = `CREATE TABLE orders (id bigint, state text, a bigint, b text, ok boolean, amount bigint, meta jsonb, at timestamptz, x int)`
	pgtest.Example(table, func(ctx context.Context, pool *pgxpool.Pool) error { // its goroutines are not those of f
		conn, err := pool.Acquire(ctx)
		if err != nil {
			return err
		}
		defer conn.Release()
		fuzzOnServer(f, conn.Conn())
		return nil
	})
}

func fuzzOnServer(f *testing.F, conn *pgx.Conn) {
	f.Helper()
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
		// As an argument of its own it is one as well; two would be a function that there is not.
		_, err = conn.Prepare(t.Context(), "", `SELECT pg_catalog.num_nulls(`+e.render(1)+`) AS n FROM "public"."orders"`)
		if err != nil && strings.Contains(err.Error(), "42601") {
			t.Errorf("%q is an expression, and is none as an argument: %v", text, err)
		}
	})
}
