package pgxdriver_test

import (
	"context"
	"testing"

	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// A ctx that ends between two calls of a session, or as the next one begins, does not reach that one, nor Close.
func TestSessionOutlivesItsContexts(t *testing.T) {
	t.Parallel()
	s, err := pgxdriver.New(pgtest.New(t).Pool(t)).Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for n := range 2000 {
		ctx, cancel := context.WithCancel(t.Context())
		var pid int64
		if err := s.RunAll(ctx, pg.Stmt{SQL: pg.SQLBackendPID, Dest: []any{&pid}}); err != nil {
			t.Fatalf("call %d: %v", n, err)
		}
		cancel()
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
