package docs_test

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What a page calls package.Name is exported by that package, unless its line says that it is designed.
func TestPagesNameWhatExists(t *testing.T) {
	t.Parallel()
	exported := map[string]bool{}
	for _, file := range goFiles(t) {
		if !public(file.name) || strings.HasSuffix(file.name, "_test.go") {
			continue
		}
		for _, decl := range file.Decls {
			for _, name := range names(decl) {
				exported[file.Name.Name+"."+name] = true
			}
		}
	}
	mention := regexp.MustCompile(`\b(idem|idemhttp|dblock|statemachine|migrations|pgxdriver|sqldriver|sqlxdriver)\.([A-Z][A-Za-z]*)`)
	pages, err := filepath.Glob(root + "/docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, page := range append(pages, root+"/README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		designed := false
		for _, line := range strings.Split(string(text), "\n") {
			if strings.HasPrefix(line, "#") || line == "" {
				designed = false
			}
			if designed = designed || strings.Contains(strings.ToLower(line), "designed"); designed {
				continue
			}
			for _, m := range mention.FindAllStringSubmatch(line, -1) {
				if seen++; !exported[m[1]+"."+m[2]] {
					t.Errorf("%s speaks of %s, which is not there", filepath.Base(page), m[0])
				}
			}
		}
	}
	if seen < 50 {
		t.Errorf("found only %d names", seen)
	}
}

// names are what a declaration declares. A page may name a method by its package: dblock.LockTx.
func names(decl ast.Decl) (found []string) {
	switch decl := decl.(type) {
	case *ast.FuncDecl:
		found = append(found, decl.Name.Name)
	case *ast.GenDecl:
		for _, spec := range decl.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				found = append(found, spec.Name.Name)
			case *ast.ValueSpec:
				for _, name := range spec.Names {
					found = append(found, name.Name)
				}
			}
		}
	}
	return found
}
