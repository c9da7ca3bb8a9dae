// Package held holds what was generated to what it was generated from: tests of the examples use it. With PGONCE_UPDATE=1 in the
// environment it generates anew instead.
package held

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// Migration holds the files of a trigger's migration in dir to what write makes, which is
// Binding.WriteMigration.
func Migration(t *testing.T, dir string, write func(dir string) ([]string, error)) {
	t.Helper()
	fresh := t.TempDir()
	names, err := write(fresh)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		name = filepath.Base(name)
		want, err := os.ReadFile(filepath.Join(fresh, name))
		if err != nil {
			t.Fatal(err)
		}
		compare(t, filepath.Join(dir, name), want)
	}
}

func compare(t *testing.T, file string, want []byte) {
	t.Helper()
	if os.Getenv("PGONCE_UPDATE") != "" {
		if err := os.WriteFile(file, want, 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(file)
	if err != nil || string(got) != string(want) {
		t.Errorf("%s is not what the machine says (%v); run this test with PGONCE_UPDATE=1", file, err)
	}
}

var diagram = regexp.MustCompile("(?s)```mermaid\n.*?```")

// Diagrams holds the diagrams of a page to machines, in their order.
func Diagrams(t *testing.T, page string, machines ...string) {
	t.Helper()
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(diagram.FindAll(got, -1)); n != len(machines) {
		t.Fatalf("%s has %d diagrams, want %d", page, n, len(machines))
	}
	n := 0
	want := diagram.ReplaceAllFunc(got, func([]byte) []byte {
		n++
		return []byte("```mermaid\n" + machines[n-1] + "```")
	})
	if string(got) != string(want) {
		compare(t, page, want)
	}
}
