//go:build unix

// Package demotest holds what the examples keep in files to what their code says.
package demotest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const again = "; run the test with PGONCE_UPDATE=1 to write it"

func update() bool { return os.Getenv("PGONCE_UPDATE") == "1" }

// Diagrams checks that the diagrams of a page are those of machines, in that order.
func Diagrams(tb testing.TB, page string, machines ...string) {
	tb.Helper()
	data, err := os.ReadFile(page)
	if err != nil {
		tb.Fatal(err)
	}
	const open, end = "```mermaid\n", "```"
	parts := strings.Split(string(data), open)
	if len(parts) != len(machines)+1 {
		tb.Fatalf("%s has %d diagrams, want %d", page, len(parts)-1, len(machines))
	}
	for i, m := range machines {
		got, rest, _ := strings.Cut(parts[i+1], end)
		if got != m && !update() {
			tb.Errorf("diagram %d of %s is not that of the machine%s", i+1, page, again)
		}
		parts[i+1] = m + end + rest
	}
	if update() {
		if err := os.WriteFile(page, []byte(strings.Join(parts, open)), 0o644); err != nil {
			tb.Fatal(err)
		}
	}
}

// Migration checks that what write puts into an empty folder (statemachine's WriteMigration, mostly) is what is in dir.
func Migration(tb testing.TB, dir string, write func(dir string) ([]string, error)) {
	tb.Helper()
	fresh := tb.TempDir()
	files, err := write(fresh)
	if err != nil {
		tb.Fatal(err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		want, err := os.ReadFile(filepath.Join(fresh, name))
		if err != nil {
			tb.Fatal(err)
		}
		if update() {
			if err := os.WriteFile(filepath.Join(dir, name), want, 0o644); err != nil {
				tb.Fatal(err)
			}
		} else if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != string(want) {
			tb.Errorf("%s is not what the machine would write (%v)%s", filepath.Join(dir, name), err, again)
		}
	}
}

// Patient is a context for a storm: it ends long after a storm should have, and before the test binary is given up.
func Patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	return ctx
}
