//go:build unix

package conformance

import (
	"testing"

	"github.com/pgonce/pgonce/dblock"
)

// Holder, waiter and fenced transaction are told by every driver alike.
func lockInspect[TX any](t *testing.T, c Client[TX]) {
	l := setupLocks(t, c)
	a, b := l.client(&dblock.Config{Holder: "a"}), l.client(&dblock.Config{Holder: "b"})
	lock, tx := l.acquire(a, "1", nil), l.begin()
	noErr(t, lock.FenceTx(t.Context(), tx))
	won := make(chan *dblock.Lock[TX], 1)
	go func() { won <- l.acquire(b, "1", nil) }()
	l.waiting(1)
	for _, by := range []*dblock.Client[TX]{a, b} {
		s, err := by.Inspect(l.ctx(), lockKey("1"), lockKey("2"))
		noErr(t, err)
		if len(s) != 2 || s[0].Key != lockKey("1") || len(s[0].Holdings) != 2 || len(s[0].Waits) != 1 || len(s[1].Holdings)+len(s[1].Waits) != 0 {
			t.Fatalf("got %+v", s)
		}
		own := by == a
		if h := s[0].Holdings[0]; h.By != dblock.BySession || h.Own != own || h.Name != "a" || h.Left <= 0 || h.Gone || (h.Token == lock.Token()) != own {
			t.Errorf("holder: %+v", h)
		}
		if h := s[0].Holdings[1]; h.By != dblock.ByFence || h.Own || h.PID == 0 || h.Held <= 0 {
			t.Errorf("fenced transaction: %+v", h)
		}
		if w := s[0].Waits[0]; w.Own == own || w.Name != "b" || w.PID == 0 || w.Waited <= 0 || len(w.For) != 1 || w.For[0] != s[0].Holdings[0].PID {
			t.Errorf("waiter: %+v", w)
		}
	}
	l.release(lock)
	noErr(t, l.c.Rollback(t.Context(), tx))
	l.release(<-won)
}
