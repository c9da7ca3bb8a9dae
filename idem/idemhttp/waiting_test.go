package idemhttp

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgonce/pgonce/idem"
)

// Waiting ends at its limit, the function takes nothing of it and is not ended by it, and the client's end is
// not heeded at all. By a clock that only this test sees.
func TestWaitingEndsAndTheFunctionDoesNot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client, leave := context.WithCancel(context.WithValue(t.Context(), http.ServerContextKey, "kept"))
		r, err := http.NewRequestWithContext(client, http.MethodPost, "/", nil)
		if err != nil {
			t.Fatal(err)
		}
		w, cancel := newWaiting(r, 5*time.Second, 2*time.Second)
		defer cancel()
		leave()
		pass := func(d time.Duration) error {
			<-time.After(d)
			synctest.Wait()
			return context.Cause(w.ctx)
		}
		if err := errors.Join(pass(7*time.Second-1), w.over(), pass(time.Hour)); err != nil || w.ctx.Value(http.ServerContextKey) != "kept" {
			t.Errorf("while it waits, and while the function runs: %v", err)
		}
		w.again()
		if err := pass(7*time.Second - 1); err != nil {
			t.Errorf("while it waits again: %v", err)
		}
		if err := pass(1); !errors.Is(err, errWaited) || !errors.Is(w.over(), errWaited) {
			t.Errorf("after it has waited: %v", err)
		}
		forever, cancel := newWaiting(r, 5*time.Second, idem.Forever)
		defer cancel()
		if err := pass(24 * time.Hour); forever.ctx.Err() != nil {
			t.Errorf("without a limit: %v, %v", forever.ctx.Err(), err)
		}
	})
}

// The time is up in the very moment in which the function would begin: its timer has fired, and has not ended the ctx yet.
func TestWaitingEndsAsTheFunctionBegins(t *testing.T) {
	t.Parallel()
	fired, end := make(chan struct{}), make(chan struct{})
	defer close(end)
	w := &waiting{ctx: t.Context(), most: time.Hour, timer: time.AfterFunc(0, func() { close(fired); <-end })}
	<-fired
	if err := w.over(); !errors.Is(err, errWaited) {
		t.Errorf("the function begins, and its ctx ends: %v", err)
	}
}
