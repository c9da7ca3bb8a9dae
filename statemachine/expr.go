package statemachine

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// expression is a checked SQL expression over the columns of one row, cut at its parameters.
type expression struct {
	texts  []string // one more than params
	params []int    // the n of each $n, in order
}

// render is the expression with its $1 as number first, and so on.
func (e expression) render(first int) string {
	var b strings.Builder
	for i, text := range e.texts {
		b.WriteString(text)
		if i < len(e.params) {
			fmt.Fprintf(&b, "$%d", first+e.params[i]-1)
		}
	}
	return b.String()
}

// parseExpression reads text as Postgres' own scanner would, as far as that is needed to find its
// parameters and to be sure that it ends where it ends: that a parenthesis before it is closed
// by the one after it, and that nothing in it is a statement. What it cannot be sure of it refuses.
func parseExpression(text string, args int) (expression, error) {
	l := &lexer{text: text, used: make([]bool, args)}
	switch {
	case strings.TrimSpace(text) == "":
		return expression{}, errors.New("is empty")
	case !utf8.ValidString(text) || strings.ContainsRune(text, 0):
		return expression{}, errors.New("is not valid text")
	}
	for l.pos < len(text) {
		if err := l.next(); err != nil {
			return expression{}, fmt.Errorf("%w at byte %d", err, l.pos)
		}
	}
	if len(l.open) > 0 {
		return expression{}, fmt.Errorf("has no %q for a bracket", l.open[len(l.open)-1])
	}
	for i, used := range l.used {
		if !used {
			return expression{}, fmt.Errorf("does not use its argument $%d", i+1)
		}
	}
	l.out.texts = append(l.out.texts, text[l.from:])
	return l.out, nil
}

// maxScope is how many parameters a scope may have.
const maxScope = 20

// parseScope is parseExpression for a text whose arguments come later: it counts them.
func parseScope(text string) (e expression, args int, err error) {
	for ; args <= maxScope; args++ {
		if e, err = parseExpression(text, args); err == nil {
			return e, args, nil
		}
	}
	_, err = parseExpression(text, 0)
	return e, 0, err
}

type lexer struct {
	text string
	pos  int
	from int    // where the text after the last parameter begins
	open []byte // what closes the brackets that are open
	used []bool
	out  expression
}

// next steps over one token.
func (l *lexer) next() error {
	c := l.text[l.pos]
	rest := l.text[l.pos:]
	switch {
	case c == '\'':
		return l.literal(false)
	case c == '"':
		return l.quoted()
	case c == '$':
		return l.parameter()
	case c == ';':
		return errors.New("has a semicolon")
	case c == '\\':
		return errors.New("has a backslash")
	case strings.HasPrefix(rest, "--") || strings.HasPrefix(rest, "/*"):
		return errors.New("has a comment")
	case c == ',' && len(l.open) == 0:
		return errors.New("has a comma: it must be one value")
	case strings.IndexByte("([{)]}", c) >= 0:
		return l.bracket(c)
	case isIdentStart(c):
		return l.word()
	case c >= '0' && c <= '9':
		l.number()
	default:
		l.pos++
	}
	return nil
}

func (l *lexer) bracket(c byte) error {
	closers := map[byte]byte{'(': ')', '[': ']', '{': '}'}
	if closer, ok := closers[c]; ok {
		l.open = append(l.open, closer)
	} else {
		last := len(l.open) - 1
		if last < 0 || l.open[last] != c {
			return fmt.Errorf("has an unexpected %q", c)
		}
		l.open = l.open[:last]
	}
	l.pos++
	return nil
}

// literal steps over '...'. What a backslash means in a plain one depends on a setting of the server,
// so there it is refused; in E'...' it escapes.
func (l *lexer) literal(escapes bool) error {
	for i := l.pos + 1; i < len(l.text); i++ {
		switch c := l.text[i]; {
		case c == '\\' && !escapes:
			return errors.New("has a backslash in a literal: write E'...'")
		case c == '\\':
			i++
		case c == '\'' && i+1 < len(l.text) && l.text[i+1] == '\'':
			i++
		case c == '\'':
			l.pos = i + 1
			return nil
		}
	}
	return errors.New("has a literal without an end")
}

func (l *lexer) quoted() error {
	end := strings.IndexByte(l.text[l.pos+1:], '"')
	if end < 0 {
		return errors.New("has a quoted name without an end")
	}
	if name := strings.ToLower(l.text[l.pos+1:]); strings.HasPrefix(name, reserved) {
		return errReserved
	}
	l.pos += end + 2 // a doubled quote is one name after another to us, which does no harm
	return nil
}

// parameter steps over $n, and refuses $$ and $tag$.
func (l *lexer) parameter() error {
	end := l.pos + 1
	for end < len(l.text) && l.text[end] >= '0' && l.text[end] <= '9' {
		end++
	}
	n, err := strconv.Atoi(l.text[l.pos+1 : end])
	switch {
	case err != nil || l.text[l.pos+1] == '0':
		return errors.New("has a $ that is not a parameter")
	case end < len(l.text) && isIdentPart(l.text[end]):
		return fmt.Errorf("has $%d run into a word", n)
	case n < 1 || n > len(l.used):
		return fmt.Errorf("uses $%d but has %d arguments", n, len(l.used))
	}
	l.used[n-1] = true
	l.out.texts = append(l.out.texts, l.text[l.from:l.pos])
	l.out.params = append(l.out.params, n)
	l.pos, l.from = end, end
	return nil
}

// reserved begins the names of what a statement has beside the row's columns.
const reserved = "pgonce_"

var errReserved = errors.New("uses a name that begins with " + reserved)

// word steps over a name or a keyword. A sub-query would be evaluated on the statement's snapshot,
// which is older than the row that was waited for: two refunds of 60 would both fit into 100.
func (l *lexer) word() error {
	end := l.pos
	for end < len(l.text) && isIdentPart(l.text[end]) {
		end++
	}
	word := strings.ToLower(l.text[l.pos:end])
	rest := l.text[end:]
	if strings.Contains(word, "$") { // a client library may take a$1 for a and a parameter
		return errors.New("has a $ in a name: quote it")
	}
	switch word {
	case "select", "values", "table", "insert", "update", "delete", "merge":
		return errors.New("has a sub-query: it can only see columns of the row")
	case "u":
		if strings.HasPrefix(rest, "&'") || strings.HasPrefix(rest, `&"`) {
			return errors.New("has a U& literal")
		}
	}
	if strings.HasPrefix(word, reserved) {
		return errReserved
	}
	l.pos = end
	if word == "e" && strings.HasPrefix(rest, "'") {
		return l.literal(true)
	}
	return nil
}

// number steps over 1, 1.5, 1e5 and 0xff, and whatever is glued to it.
func (l *lexer) number() {
	for l.pos < len(l.text) && (isIdentPart(l.text[l.pos]) || l.text[l.pos] == '.') && l.text[l.pos] != '$' {
		l.pos++
	}
}

func isIdentStart(c byte) bool {
	return c == '_' || c >= 0x80 || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func isIdentPart(c byte) bool { return isIdentStart(c) || c == '$' || c >= '0' && c <= '9' }
