package docs_test

import (
	"go/ast"
	"go/token"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/pgonce/pgonce/internal/pg"
)

// docs/defaults.md has a line for every field of every configuration, with the default and the limits that the code has, and
// for every duration and every exported limit that is fixed.
func TestDefaultsPageIsTheCode(t *testing.T) {
	t.Parallel()
	page := map[string][2]string{} // name to default and limits, or to value
	for _, line := range strings.Split(read(t, "docs/defaults.md"), "\n") {
		cells := strings.Split(line, "|")
		if len(cells) < 5 || !strings.HasPrefix(line, "| `") {
			continue
		}
		for i := range cells {
			cells[i] = strings.Trim(cells[i], " `")
		}
		name := cells[1]
		if _, twice := page[name]; twice || cells[len(cells)-2] == "" {
			t.Errorf("docs/defaults.md says twice, or not at all, what %s is", name)
		}
		page[name] = [2]string{cells[2], cells[3]}
	}
	files := goFiles(t)
	values, fields := constantsOf(files), settingsOf(files)
	if len(values) < 20 || len(fields) < 30 {
		t.Fatalf("found %d constants and %d fields", len(values), len(fields))
	}
	explained := map[string]bool{} // constants that a field's line gives
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		pkg, field := name[:strings.Index(name, ".")], name[strings.LastIndex(name, ".")+1:]
		line, ok := page[name]
		if !ok {
			t.Errorf("docs/defaults.md: add\n| `%s` | its default | its limits | what it is |", name)
			continue
		}
		if schema := pg.DefaultSchema; field == "Schema" && line[0] != schema {
			t.Errorf("docs/defaults.md says of %s %q, it is %s", name, line[0], schema)
		}
		for prefix, column := range map[string]int{"default": 0, "least": 1, "longest": 1, "most": 1} {
			constant := pkg + "." + prefix + field
			value, ok := values[constant]
			if !ok || fields[name] != "int" && fields[name] != "int64" && fields[name] != "time.Duration" {
				continue
			}
			explained[constant] = true
			if !slices.Contains(strings.FieldsFunc(line[column], func(r rune) bool { return unicode.IsSpace(r) || r == ',' }), value) {
				t.Errorf("docs/defaults.md says of %s %q, %s is %s", name, line[column], constant, value)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		line, ok := page[name]
		switch {
		case explained[name]:
		case !ok:
			t.Errorf("docs/defaults.md: among what is fixed, add\n| `%s` | %s | what it is |", name, values[name])
		case line[0] != values[name]:
			t.Errorf("docs/defaults.md says that %s is %s, it is %s", name, line[0], values[name])
		}
	}
	for name := range page {
		if _, ok := fields[name]; !ok && values[name] == "" {
			t.Errorf("docs/defaults.md speaks of %s, which is not there", name)
		}
	}
}

// settingsOf are the exported fields of what users fill in: Configs, Op and Table, as package.Type.Field, with their types.
func settingsOf(files []goFile) map[string]string {
	found := map[string]string{}
	for _, file := range files {
		if !public(file.name) || strings.HasSuffix(file.name, "_test.go") {
			continue
		}
		ast.Inspect(file.File, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok || !spec.Name.IsExported() || !strings.HasSuffix(spec.Name.Name, "Config") && spec.Name.Name != "Op" && spec.Name.Name != "Table" {
				return true
			}
			body, ok := spec.Type.(*ast.StructType)
			if !ok {
				return true
			}
			for _, field := range body.Fields.List {
				for _, name := range field.Names {
					if name.IsExported() {
						found[file.Name.Name+"."+spec.Name.Name+"."+name.Name] = typeText(field.Type)
					}
				}
			}
			return true
		})
	}
	return found
}

func typeText(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return typeText(e.X) + "." + e.Sel.Name
	}
	return ""
}

// constantsOf are the durations and the defaults, limits and exported Max... of public packages and of the seam, as they are written on the page.
func constantsOf(files []goFile) map[string]string {
	exprs := map[string]ast.Expr{}
	for _, file := range files {
		if strings.HasSuffix(file.name, "_test.go") || !public(file.name) && !strings.HasPrefix(file.name, "internal/pg/") {
			continue
		}
		for _, decl := range file.Decls {
			gen, ok := decl.(*ast.GenDecl)
			if !ok || gen.Tok != token.CONST {
				continue
			}
			for _, spec := range gen.Specs {
				spec := spec.(*ast.ValueSpec)
				for i, name := range spec.Names {
					if i < len(spec.Values) {
						exprs[file.Name.Name+"."+name.Name] = spec.Values[i]
					}
				}
			}
		}
	}
	found := map[string]string{}
	for name, expr := range exprs {
		pkg, local, _ := strings.Cut(name, ".")
		n, duration, ok := number(expr, func(other string) ast.Expr { return exprs[pkg+"."+other] })
		named := regexp.MustCompile(`^(default|least|longest|most|Max)[A-Z]`).MatchString(local)
		switch {
		case ok && duration:
			found[name] = durationText(time.Duration(n))
		case ok && named:
			found[name] = strconv.FormatInt(n, 10)
		}
	}
	return found
}

// number is the value of a constant expression of whole numbers and durations.
func number(e ast.Expr, lookup func(string) ast.Expr) (n int64, duration, ok bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		n, err := strconv.ParseInt(e.Value, 0, 64)
		return n, false, err == nil && e.Kind == token.INT
	case *ast.ParenExpr:
		return number(e.X, lookup)
	case *ast.SelectorExpr:
		units := map[string]time.Duration{"Nanosecond": 1, "Microsecond": time.Microsecond, "Millisecond": time.Millisecond, "Second": time.Second, "Minute": time.Minute, "Hour": time.Hour}
		if typeText(e.X) == "math" && e.Sel.Name == "MaxInt64" {
			return math.MaxInt64, true, true
		}
		unit, ok := units[e.Sel.Name]
		return int64(unit), ok, ok && typeText(e.X) == "time"
	case *ast.Ident:
		if other := lookup(e.Name); other != nil {
			return number(other, lookup)
		}
	case *ast.BinaryExpr:
		a, da, oka := number(e.X, lookup)
		b, db, okb := number(e.Y, lookup)
		ok, duration = oka && okb, da || db
		switch e.Op {
		case token.MUL:
			return a * b, duration, ok
		case token.SHL:
			return a << b, duration, ok
		case token.ADD:
			return a + b, duration, ok
		case token.SUB:
			return a - b, duration, ok
		}
	}
	return 0, false, false
}

// durationText is "30s" or "24h": Go's text without the zeros at its end.
func durationText(d time.Duration) string {
	if d == math.MaxInt64 {
		return "for ever"
	}
	text := d.String()
	if t, ok := strings.CutSuffix(text, "m0s"); ok {
		text = t + "m"
	}
	if t, ok := strings.CutSuffix(text, "h0m"); ok {
		text = t + "h"
	}
	return text
}

// docs/defaults.md names every setting that dblock's sessions get, and no other.
func TestSessionSettingsAreOnThePage(t *testing.T) {
	t.Parallel()
	_, table, _ := strings.Cut(read(t, "docs/defaults.md"), "| on its sessions |")
	table, _, _ = strings.Cut(table, "\n\n")
	page := map[string]bool{}
	for _, line := range strings.Split(table, "\n")[2:] {
		for name := range strings.SplitSeq(strings.Split(line, "|")[1], ",") {
			page[strings.TrimSpace(name)] = true
		}
	}
	sessions, _, _ := strings.Cut(read(t, "dblock/sql.go"), "sqlEpoch = ")
	for _, found := range regexp.MustCompile(`set_config\('(\w+)'`).FindAllStringSubmatch(sessions, -1) {
		checkNamed(t, page, found[1])
	}
	names := regexp.MustCompile(`names := "{(.*?)}"`).FindStringSubmatch(read(t, "dblock/session.go"))
	if names == nil {
		t.Fatal("no settings in dblock/session.go")
	}
	for name := range strings.SplitSeq(names[1], ",") {
		checkNamed(t, page, name)
	}
	for name, seen := range page {
		if seen {
			t.Errorf("docs/defaults.md speaks of %s, which is not set", name)
		}
	}
}

// checkNamed marks a name as seen. It may come again.
func checkNamed(t *testing.T, page map[string]bool, name string) {
	t.Helper()
	if _, ok := page[name]; !ok {
		t.Errorf("docs/defaults.md: %s is not in the table of session settings", name)
	}
	page[name] = false
}
