package statemachine

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// expressions are what users write, with the number of arguments and the text with its
// parameters moved by ten. An empty text is refused, for the reason.
var expressions = []struct {
	text string
	args int
	want string
	says string
}{
	{`amount = $1`, 1, `amount = $11`, ``},
	{`$1 = $2 OR $1 < a`, 2, `$11 = $12 OR $11 < a`, ``},
	{`refunded+$1<=paid AND ok`, 1, `refunded+$11<=paid AND ok`, ``},
	{`$2=$10+$1+$3+$4+$5+$6+$7+$8+$9`, 10, `$12=$20+$11+$13+$14+$15+$16+$17+$18+$19`, ``},
	{`note = 'it''s $1; -- /* ( $$' AND x = $1`, 1, `note = 'it''s $1; -- /* ( $$' AND x = $11`, ``},
	{`note = E'it\'s $1 \\' AND x = $1`, 1, `note = E'it\'s $1 \\' AND x = $11`, ``},
	{`note = e'\'' OR $1`, 1, `note = e'\'' OR $11`, ``},
	{`"we""ird $1 ;" = $1`, 1, `"we""ird $1 ;" = $11`, ``},
	{`"a$1" = $1`, 1, `"a$1" = $11`, ``},
	{`meta ? 'k' AND meta @> $1`, 1, `meta ? 'k' AND meta @> $11`, ``},
	{`tags[$1] = ANY(ARRAY[1, 2])`, 1, `tags[$11] = ANY(ARRAY[1, 2])`, ``},
	{`x::timestamp with time zone < at`, 0, `x::timestamp with time zone < at`, ``},
	{`größe > 1e3 AND x < 0xff AND y = 1.5`, 0, `größe > 1e3 AND x < 0xff AND y = 1.5`, ``},
	{`selected AND valuess AND "select"`, 0, `selected AND valuess AND "select"`, ``},
	{`a - -1 < b`, 0, `a - -1 < b`, ``},

	{``, 0, ``, `is empty`},
	{" \n", 0, ``, `is empty`},
	{"a = '\x00'", 0, ``, `not valid text`},
	{"\xff", 0, ``, `not valid text`},
	{`a = $1`, 0, ``, `uses $1 but has 0 arguments`},
	{`a = $0`, 1, ``, `not a parameter`},
	{`a$1 = $1`, 1, ``, `$ in a name`},
	{`a = $01`, 1, ``, `not a parameter`},
	{`a = $2`, 2, ``, `does not use its argument $1`},
	{`a = $99999999999999999999`, 1, ``, `not a parameter`},
	{`ok`, 1, ``, `does not use its argument $1`},
	{`a = $$x$$`, 0, ``, `not a parameter`},
	{`a = $tag$x$tag$`, 0, ``, `not a parameter`},
	{`a = $1b`, 1, ``, `run into a word`},
	{`a = $1$2`, 2, ``, `run into a word`},
	{`true) OR (true`, 0, ``, `unexpected ')'`},
	{`(true`, 0, ``, `no ')'`},
	{`(a[1)]`, 0, ``, `unexpected ')'`},
	{`true; DROP TABLE orders`, 0, ``, `semicolon`},
	{`true -- and`, 0, ``, `comment`},
	{`true /* and */`, 0, ``, `comment`},
	{`a+--b`, 0, ``, `comment`},
	{`a = 'x`, 0, ``, `without an end`},
	{`a = 'x\' OR true --'`, 0, ``, `backslash in a literal`},
	{`a = E'x\'`, 0, ``, `without an end`},
	{`"a = 1`, 0, ``, `without an end`},
	{`a = U&'\0027'`, 0, ``, `U& literal`},
	{`u&"a" = 1`, 0, ``, `U& literal`},
	{`a \gexec`, 0, ``, `backslash`},
	{`(SELECT sum(x) FROM t) > 1`, 0, ``, `sub-query`},
	{`a IN (sElEcT 1)`, 0, ``, `sub-query`},
	{`a IN (VALUES (1))`, 0, ``, `sub-query`},
	{`EXISTS (TABLE t)`, 0, ``, `sub-query`},
	{`a IN (WITH x AS (SELECT 1) TABLE x)`, 0, ``, `sub-query`},
	{`pgonce_f = 'a'`, 0, ``, `begins with pgonce_`},
	{`"pgonce_f" = 'a'`, 0, ``, `begins with pgonce_`},
	{`PGONCE_f = 'a'`, 0, ``, `begins with pgonce_`},
	{`1, b = 2`, 0, ``, `comma`},
	{`1 FROM t WHERE (SELECT 1) = 1`, 0, ``, `sub-query`},
}

func TestParseExpression(t *testing.T) {
	t.Parallel()
	for _, tc := range expressions {
		e, err := parseExpression(tc.text, tc.args)
		switch {
		case tc.says == "" && err != nil:
			t.Errorf("%s: got %v", tc.text, err)
		case tc.says == "" && e.render(11) != tc.want:
			t.Errorf("%s: got %s, want %s", tc.text, e.render(11), tc.want)
		case tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)):
			t.Errorf("%s: got %v, want it to say %q", tc.text, err, tc.says)
		}
	}
}

// Whatever is accepted stays within the parentheses that are put around it, and keeps its meaning when its
// parameters are moved.
func FuzzParseExpression(f *testing.F) {
	for _, tc := range expressions {
		f.Add(tc.text, tc.args)
	}
	literals := regexp.MustCompile(`(?s)\b[eE]'(?:[^'\\]|\\.|'')*'|'[^']*'|"[^"]*"`)
	params := regexp.MustCompile(`\$[0-9]+`)
	f.Fuzz(func(t *testing.T, text string, args int) {
		if args < 0 || args > 20 {
			return
		}
		e, err := parseExpression(text, args)
		if err != nil {
			return
		}
		if got := e.render(1); got != text {
			t.Errorf("%q became %q", text, got)
		}
		moved, err := parseExpression(e.render(8), args+7)
		if args > 0 {
			if err == nil || !strings.Contains(err.Error(), "does not use its argument $1") {
				t.Errorf("%q moved by 7: %v", text, err)
			}
		} else if err == nil || len(moved.params) != 0 {
			t.Errorf("%q has parameters though it has no arguments", text)
		}

		bare := literals.ReplaceAllString(text, "''") // what is left is no text of anybody's
		for _, forbidden := range []string{";", "--", "/*", `\`, "$$"} {
			if strings.Contains(bare, forbidden) {
				t.Errorf("%q has %s outside of literals", text, forbidden)
			}
		}
		depth := 0
		for _, c := range bare {
			switch c {
			case '(':
				depth++
			case ')':
				depth--
			}
			if depth < 0 {
				t.Errorf("%q leaves its parentheses", text)
			}
		}
		if depth != 0 {
			t.Errorf("%q does not close its parentheses", text)
		}
		for i := range args {
			if !strings.Contains(strings.Join(params.FindAllString(bare, -1), " ")+" ", fmt.Sprintf("$%d ", i+1)) {
				t.Errorf("%q was accepted with %d arguments", text, args)
			}
		}
	})
}

// The server ends a wait before the client would: before the network deadline, and before that of ctx.
func TestWaitEndsBeforeTheDeadline(t *testing.T) {
	t.Parallel()
	if got := waitOf(t.Context()); got != 10*time.Second {
		t.Errorf("without a deadline: %v", got)
	}
	for left, most := range map[time.Duration]time.Duration{
		time.Hour: 10 * time.Second, 5 * time.Second: 4 * time.Second, 300 * time.Millisecond: 200 * time.Millisecond, -time.Second: time.Millisecond,
	} {
		ctx, cancel := context.WithTimeout(t.Context(), left)
		if got := waitOf(ctx); got > most || got < time.Millisecond {
			t.Errorf("%v left: waits %v, want at most %v", left, got, most)
		}
		cancel()
	}
}

func TestQuote(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{`a`: `"a"`, `a"b`: `"a""b"`, `a.b`: `"a.b"`, `"`: `""""`} {
		if got := quote(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

// A statement is made once for a shape, and a program that puts values into its texts does not fill the memory.
func TestShapesAreKeptAndBounded(t *testing.T) {
	t.Parallel()
	r, _ := Table{Name: "orders"}.resolve()
	l := &layout{table: r, columns: map[string]column{"id": {"pg_catalog.int8", "N"}, "state": {"pg_catalog.text", "S"}}, idType: "bigint", shapes: map[shape]*statement{}}
	for i := range 2 * maxShapes {
		if _, err := l.statement(onFireHistory, parts{history: true}, &call{where: []condition{{"amount = $1", []any{i}}}}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(l.shapes); n != 1 {
		t.Errorf("%d statements for one shape", n)
	}
	for i := range 2 * maxShapes {
		s, err := l.statement(onFireHistory, parts{history: true}, &call{where: []condition{{fmt.Sprintf("amount = %d", i), nil}}})
		if err != nil || !strings.Contains(s.sql, fmt.Sprintf("(amount = %d)", i)) {
			t.Fatalf("%v: %+v", err, s)
		}
	}
	if n := len(l.shapes); n != maxShapes {
		t.Errorf("%d statements are kept, want %d", n, maxShapes)
	}
	// Shapes that must not be taken for each other.
	a, b := call{where: []condition{{"x", nil}, {"y", nil}}}, call{where: []condition{{"x", nil}}, match: []condition{{"y", nil}}}
	if a.shape() == b.shape() {
		t.Error("Where and Match have one shape")
	}
}
