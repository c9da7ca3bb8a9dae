package smtest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const updateVariable = "PGONCE_UPDATE"

// Golden compares a file of the repository with what it should say, such as the diagram of a machine, so that a picture
// that is no longer true makes a test fail:
//
//	smtest.Golden(t, "testdata/order.mmd", OrderFlow.Mermaid())
//
// With PGONCE_UPDATE=1 in the environment it writes the file instead. Line ends are compared as "\n".
func Golden(tb testing.TB, file, text string) {
	tb.Helper()
	if os.Getenv(updateVariable) != "" {
		err := os.MkdirAll(filepath.Dir(file), 0o755) //nolint:gosec // a folder of the repository
		if err == nil {
			err = os.WriteFile(file, []byte(text), 0o644) //nolint:gosec // a file of the repository
		}
		if err != nil {
			tb.Errorf("smtest: golden: %v", err)
		}
		return
	}
	const again = "; run the test with " + updateVariable + "=1 to write it"
	data, err := os.ReadFile(file) //nolint:gosec // the name is the test's own
	switch {
	case errors.Is(err, fs.ErrNotExist):
		tb.Errorf("smtest: golden: %s is not there%s", file, again)
		return
	case err != nil:
		tb.Errorf("smtest: golden: %v", err)
		return
	}
	got, want := strings.Split(strings.ReplaceAll(string(data), "\r\n", "\n"), "\n"), strings.Split(text, "\n")
	for i := range max(len(got), len(want)) {
		if line(got, i) != line(want, i) {
			tb.Errorf("smtest: golden: %s, line %d is\n\t%s\nand should be\n\t%s%s", file, i+1, line(got, i), line(want, i), again)
			return
		}
	}
}

func line(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "(end of file)"
}
