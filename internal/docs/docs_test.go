package docs_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The code in the README stands within its first 20 lines, and is part of a tested example.
func TestREADMECodeIsATestedExample(t *testing.T) {
	t.Parallel()
	readme := read(t, "README.md")
	before, rest, found := strings.Cut(readme, "```go\n")
	code, _, closed := strings.Cut(rest, "```")
	if !found || !closed {
		t.Fatal("no code")
	}
	if line := strings.Count(before+code, "\n") + 1; line > 20 {
		t.Errorf("the code ends in line %d", line)
	}
	if !strings.Contains(read(t, "idem/example_test.go"), code) {
		t.Errorf("this is not in idem/example_test.go:\n%s", code)
	}
}

// So is all code on the page for users of Redis locks.
func TestCodeForRedisUsersIsATestedExample(t *testing.T) {
	t.Parallel()
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(read(t, "docs/from-redis.md"), -1)
	if len(blocks) < 5 {
		t.Fatalf("found only %d blocks of code", len(blocks))
	}
	for _, b := range blocks {
		if !strings.Contains(read(t, "dblock/examplefromredis_test.go"), b[1]) {
			t.Errorf("this is not in dblock/examplefromredis_test.go:\n%s", b[1])
		}
	}
}

// All code of the page on payments is part of a tested file.
func TestPaymentsPageIsTestedCode(t *testing.T) {
	t.Parallel()
	page := read(t, "docs/payments.md")
	tested := read(t, "statemachine/payments_test.go") + read(t, "statemachine/testdata/payment.mmd")
	blocks := regexp.MustCompile("(?s)```[a-z]+\n(.*?)```").FindAllStringSubmatch(page, -1)
	if len(blocks) < 6 {
		t.Fatalf("found only %d blocks", len(blocks))
	}
	for _, b := range blocks {
		if !strings.Contains(tested, strings.TrimSuffix(b[1], "\n")) {
			t.Errorf("this is not tested:\n%s", b[1])
		}
	}
	for _, name := range regexp.MustCompile("`(Test[A-Za-z]+)`").FindAllStringSubmatch(page, -1) {
		if !testNames(t)[name[1]] {
			t.Errorf("docs/payments.md names %s, which does not exist", name[1])
		}
	}
}

// Every test that a guarantee names exists, and every test of the conformance suite
// about a package backs a guarantee.
func TestGuaranteesNameExistingTests(t *testing.T) {
	t.Parallel()
	tests := testNames(t)
	backs := regexp.MustCompile(`^(idem|machine|lock|lease)/`)
	page := read(t, "docs/guarantees.md")
	named := regexp.MustCompile("`(Test[A-Za-z0-9_]+|(?:idem|seam|machine|lock|lease)/[A-Za-z]+)`").FindAllStringSubmatch(page, -1)
	if len(named) < 20 {
		t.Fatalf("found only %d names", len(named))
	}
	for _, n := range named {
		if !tests[n[1]] {
			t.Errorf("docs/guarantees.md names %s, which does not exist", n[1])
		}
	}
	for name := range tests {
		if backs.MatchString(name) && !strings.Contains(page, "`"+name+"`") {
			t.Errorf("%s is not in docs/guarantees.md", name)
		}
	}
}

// testNames finds the tests of all modules, and the parts of the conformance suite.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9_]+)\(t \*testing\.T\)`)
	part := regexp.MustCompile(`(?m)^\s+"((?:idem|seam|machine|lock|lease)/[A-Za-z]+)":`)
	walk(t, ".go", func(path string, text []byte) {
		for _, m := range function.FindAllSubmatch(text, -1) {
			names[string(m[1])] = true
		}
		if strings.Contains(filepath.ToSlash(path), "internal/conformance/") {
			for _, m := range part.FindAllSubmatch(text, -1) {
				names[string(m[1])] = true
			}
		}
	})
	return names
}

// Links between the pages lead somewhere.
func TestLinksLeadSomewhere(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^)#:]+)\)`)
	code := regexp.MustCompile("(?s)```.*?```")
	walk(t, ".md", func(path string, text []byte) {
		text = code.ReplaceAll(text, nil)
		for _, m := range link.FindAllSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), string(m[1]))); err != nil {
				t.Errorf("%s links to %s: %v", path, m[1], err)
			}
		}
	})
}

// A file that grows beyond this holds more than one noun.
func TestFilesStaySmall(t *testing.T) {
	t.Parallel()
	const most = 400
	walk(t, ".go", func(path string, text []byte) {
		if n := bytes.Count(text, []byte("\n")); n > most && !strings.Contains(path, "internal/conformance/") {
			t.Errorf("%s has %d lines, the limit is %d", path, n, most)
		}
	})
}

func walk(t *testing.T, ext string, visit func(path string, text []byte)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if filepath.Ext(path) == ext {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			visit(path, text)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
