//go:build unix

package pgtest_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgonce/pgonce/internal/pgtest"
)

func TestNewIsMigratedAndAlone(t *testing.T) {
	t.Parallel()
	a := pgtest.New(t)
	if err := a.Pool(t).Ping(t.Context()); err != nil { // still open when b's checks run
		t.Fatal(err)
	}
	b := pgtest.New(t)
	if err := b.Pool(t).Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.Exec(t, `INSERT INTO pgonce.schema_version (version, min_code) VALUES (99, 1)`)
	if n := b.Int(t, `SELECT count(*) FROM pgonce.schema_version WHERE version = 99`); n != 0 {
		t.Errorf("a row written to one test's database shows up in another's")
	}
}

// The leak checks have to be able to fail. spy stands in for the test that leaks.
func TestLeaksAreFound(t *testing.T) {
	t.Parallel()
	leaks := map[string]struct {
		leak func(t *testing.T, db *pgtest.DB, spy *spyTB) (mend func())
		want string
	}{
		"advisory lock": {func(t *testing.T, db *pgtest.DB, spy *spyTB) func() {
			pool := db.Pool(spy)
			if _, err := pool.Exec(t.Context(), `SELECT pg_advisory_lock(1)`); err != nil {
				t.Fatal(err)
			}
			return func() {}
		}, "holds an advisory lock"},
		"open transaction": {func(t *testing.T, db *pgtest.DB, spy *spyTB) func() {
			tx, err := db.Pool(spy).Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return func() { _ = tx.Rollback(context.Background()) }
		}, "idle in transaction"},
		"goroutine": {func(*testing.T, *pgtest.DB, *spyTB) func() {
			stop := make(chan struct{})
			go func() { <-stop }()
			return func() { close(stop) }
		}, "goroutines left behind"},
	}
	for name, tc := range leaks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spy := &spyTB{TB: t}
			db := pgtest.New(spy)
			mend := tc.leak(t, db, spy)
			spy.cleanup()
			if got := spy.said(); !strings.Contains(got, tc.want) {
				t.Errorf("the check said %q, want it to mention %q", got, tc.want)
			}
			mend()
		})
	}
}

// spyTB records failures instead of failing, and runs its cleanups on demand.
type spyTB struct {
	testing.TB
	mu       sync.Mutex
	errors   []string
	cleanups []func()
}

func (*spyTB) Patience() time.Duration { return 500 * time.Millisecond }

func (s *spyTB) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }

func (s *spyTB) Errorf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errors = append(s.errors, fmt.Sprintf(format, args...))
}

func (s *spyTB) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.errors, "\n")
}

func (s *spyTB) cleanup() {
	for i := len(s.cleanups) - 1; i >= 0; i-- {
		s.cleanups[i]()
	}
}
