//go:build unix

package pgtest

import (
	"bytes"
	"context"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
)

var watching sync.Map // of testing.TB

// watchGoroutines fails the test when goroutines that it started are still there
// at its end.
//
// A goroutine inherits the profiler labels of the one that started it. So a label on
// the test's own goroutine tells its descendants from those of the tests that run in
// parallel, which a count of all goroutines could not.
func watchGoroutines(t testing.TB) {
	t.Helper()
	if _, watched := watching.LoadOrStore(t, true); watched {
		return // by the first database of this test, whose check comes after everything else
	}
	label := `"pgtest":"` + t.Name() + `"`
	pprof.SetGoroutineLabels(pprof.WithLabels(context.Background(), pprof.Labels("pgtest", t.Name())))
	t.Cleanup(func() {
		watching.Delete(t)
		var left []string
		if until(t, func() bool {
			left = goroutines(t, label)
			return len(left) == 0
		}) {
			return
		}
		t.Errorf("pgtest: goroutines left behind:\n%s", strings.Join(left, "\n\n"))
	})
}

// goroutines lists those that carry the label, the test's own aside.
func goroutines(t testing.TB, label string) []string {
	t.Helper()
	var profile bytes.Buffer
	must(t, pprof.Lookup("goroutine").WriteTo(&profile, 1))
	var found []string
	for block := range strings.SplitSeq(profile.String(), "\n\n") {
		if strings.Contains(block, label) && !strings.Contains(block, "testing.tRunner") {
			found = append(found, block)
		}
	}
	return found
}
