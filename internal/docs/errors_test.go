package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/pgonce/pgonce/"

// Errors without a test that provokes them, and why there can be none.
var unprovoked = map[string]string{
	"idemhttp.ErrForbidden":       "scope functions of users return it, no caller gets it; TestScopes sees the status that it makes",
	"idemhttp.ErrUnauthenticated": "scope functions of users return it, no caller gets it; TestScopes sees the status that it makes",
}

// Every exported error has a test that provokes it: a function of a test, or of the conformance suite, that names it
// and asks errors.Is, errors.As or errors.AsType.
func TestEveryExportedErrorIsProvoked(t *testing.T) {
	t.Parallel()
	exported, provoked := map[string]bool{}, map[string]bool{}
	for _, file := range goFiles(t) {
		if testing := strings.HasSuffix(file.name, "_test.go") || strings.HasPrefix(file.name, "internal/conformance/"); testing {
			maps.Copy(provoked, provokedIn(file))
		} else if public(file.name) {
			maps.Copy(exported, exportedIn(file))
		}
	}
	if len(exported) < 40 {
		t.Fatalf("found only %d errors", len(exported))
	}
	for _, name := range slices.Sorted(maps.Keys(exported)) {
		_, excepted := unprovoked[name]
		switch {
		case !provoked[name] && !excepted:
			t.Errorf("no test provokes %s: write one that asks errors.Is or errors.As, or say in unprovoked why there can be none", name)
		case provoked[name] && excepted:
			t.Errorf("%s is provoked: take it off the list of exceptions", name)
		}
	}
	for name := range unprovoked {
		if !exported[name] {
			t.Errorf("there is no %s to except", name)
		}
	}
}

// What the test above finds, and what it does not take for a provocation.
func TestErrorsAreFoundWhereTheyAreAskedFor(t *testing.T) {
	t.Parallel()
	const source = `package x_test
		import ("errors"; sm "github.com/pgonce/pgonce/statemachine"; "github.com/pgonce/pgonce/idem")
		func asked(err error) bool { return errors.Is(err, idem.ErrExpired) }
		func table(err error) bool { for _, want := range []error{sm.ErrGuard} { if errors.Is(err, want) { return true } }; return false }
		func data(err error) { errors.AsType[*idem.KeyError](err) }
		func helper(err error) { wantErr(t, err, idem.ErrNested) }
		func onlyNamed() error { return idem.ErrMismatch }
		func old(err error) { var e *idem.RefusedError; errors.As(err, &e) }`
	file, err := parser.ParseFile(token.NewFileSet(), "x_test.go", source, 0)
	if err != nil {
		t.Fatal(err)
	}
	got := slices.Sorted(maps.Keys(provokedIn(goFile{"idem/x_test.go", file})))
	want := []string{"idem.ErrExpired", "idem.ErrNested", "idem.KeyError", "idem.RefusedError", "statemachine.ErrGuard"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// goFile is a file of the root module, by its path from the root.
type goFile struct {
	name string
	*ast.File
}

// goFiles parses the files of the root module.
func goFiles(t *testing.T) (files []goFile) {
	t.Helper()
	set := token.NewFileSet()
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && p != root {
			if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(p) != ".go" {
			return nil
		}
		file, err := parser.ParseFile(set, p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		files = append(files, goFile{filepath.ToSlash(name), file})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// public says whether a file belongs to a package that users can import.
func public(name string) bool { return !strings.Contains("/"+name, "/internal/") }

// isErrorName says whether a name is that of a sentinel or of an error type.
func isErrorName(name string) bool {
	return strings.HasPrefix(name, "Err") && len(name) > 3 && ast.IsExported(name[3:]) || ast.IsExported(name) && strings.HasSuffix(name, "Error")
}

// exportedIn are the sentinels and the error types that a file declares, as package.Name.
func exportedIn(file goFile) map[string]bool {
	found := map[string]bool{}
	for _, decl := range file.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range gen.Specs {
			switch spec := spec.(type) {
			case *ast.ValueSpec:
				for _, name := range spec.Names {
					if gen.Tok == token.VAR && isErrorName(name.Name) {
						found[file.Name.Name+"."+name.Name] = true
					}
				}
			case *ast.TypeSpec:
				if isErrorName(spec.Name.Name) {
					found[file.Name.Name+"."+spec.Name.Name] = true
				}
			}
		}
	}
	return found
}

// provokedIn are the errors that a function names which also asks for errors.
func provokedIn(file goFile) map[string]bool {
	packages := map[string]string{} // by their names in this file
	for _, imp := range file.Imports {
		full, _ := strconv.Unquote(imp.Path.Value)
		if !strings.HasPrefix(full, module) {
			continue
		}
		local := path.Base(full)
		if imp.Name != nil {
			local = imp.Name.Name
		}
		packages[local] = path.Base(full)
	}
	own := strings.TrimSuffix(file.Name.Name, "_test")
	found := map[string]bool{}
	for _, decl := range file.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok || !asks(fn) {
			continue
		}
		ast.Inspect(fn, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && packages[x.Name] != "" && isErrorName(n.Sel.Name) {
					found[packages[x.Name]+"."+n.Sel.Name] = true
				}
				return false
			case *ast.Ident:
				if isErrorName(n.Name) {
					found[own+"."+n.Name] = true
				}
			}
			return true
		})
	}
	return found
}

// asks says whether a function asks what an error is.
func asks(fn *ast.FuncDecl) (yes bool) {
	ast.Inspect(fn, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == "errors" {
				yes = yes || n.Sel.Name == "Is" || n.Sel.Name == "As" || n.Sel.Name == "AsType"
			}
		case *ast.Ident:
			yes = yes || n.Name == "wantErr"
		}
		return true
	})
	return yes
}
