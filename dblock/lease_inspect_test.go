//go:build unix

package dblock_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// Leases are shown with their keys and holders, whichever client is asked; so is a transaction that holds a key by LockTx, and a
// row that only a fence keeps.
func TestInspectLeases(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	a, c := b.leases(t, &dblock.Config{Holder: "host-a"}), b.leases(t, &dblock.Config{Holder: "host-b"})
	look := func(keys ...dblock.Key) dblock.Snapshot {
		t.Helper()
		s, err := c.Inspect(within(t), keys...)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := look(); len(s) != 0 {
		t.Errorf("nothing is held, and it says\n%s", s)
	}
	if s := look(key("0")); len(s) != 1 || len(s[0].Holdings)+len(s[0].Waits) != 0 || s[0].Key != key("0") {
		t.Errorf("of a free key it says\n%s", s)
	}
	one, two := acquire(t, a, "1", nil), acquire(t, c, "2", nil)
	tx := b.begin(t)
	if err := c.LockTx(within(t), tx, key("3"), nil); err != nil {
		t.Fatal(err)
	}
	won := make(chan *locked, 1)
	go func() { won <- acquire(t, c, "1", nil) }()
	pgtest.Eventually(t, "somebody waits", func() bool { return c.InLine(key("1")) == 1 })

	s := look(key("3"))
	if len(s) != 3 {
		t.Fatalf("got\n%s", s)
	}
	h := s[0].Holdings
	if len(h) != 1 || h[0].By != dblock.ByLease || h[0].Own || h[0].Name != "host-a" || h[0].Token != 0 || h[0].Left <= 0 || h[0].Left > 15*time.Second {
		t.Errorf("somebody else's: %+v", h)
	}
	if w := s[0].Waits; len(w) != 1 || !w[0].Own || w[0].Callers != 1 || w[0].Name != "host-b" {
		t.Errorf("who waits: %+v", w)
	}
	if h := s[1].Holdings; s[1].Kind != dblock.LeaseLock || len(h) != 1 || !h[0].Own || h[0].Token != two.Token() || h[0].Gone {
		t.Errorf("our own: %+v", h)
	}
	if h := s[2].Holdings; len(h) != 1 || h[0].By != dblock.ByOther || h[0].PID == 0 {
		t.Errorf("of a transaction: %+v", h)
	}
	if text := s.String(); !strings.Contains(text, "host-a") || strings.Contains(text, key("1").ID+"\t") {
		t.Errorf("got\n%s", text)
	}

	b.Exec(t, `DELETE FROM pgonce.lease WHERE id = '2'`)
	if h := look()[1].Holdings; len(h) != 1 || !h[0].Gone || h[0].Token != two.Token() {
		t.Errorf("a row that is gone: %+v", h)
	}
	if err := two.FenceTx(within(t), tx); !errors.Is(err, dblock.ErrLost) {
		t.Error(err)
	}
	_ = tx.Rollback(t.Context())

	fenced := b.begin(t)
	if err := one.FenceTx(within(t), fenced); err != nil {
		t.Fatal(err)
	}
	release(t, one)
	if h := look()[0].Holdings; len(h) != 1 || h[0].By != dblock.ByFence || h[0].Name != "host-a" || h[0].Left != 0 {
		t.Errorf("given back, and fenced: %+v", h)
	}
	_ = fenced.Rollback(t.Context())
	release(t, <-won)
	if s := look(); len(s) != 0 {
		t.Errorf("all is given back, and it says\n%s", s)
	}
}
