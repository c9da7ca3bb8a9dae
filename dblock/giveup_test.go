//go:build unix

package dblock_test

import (
	"context"
	"errors"
	"testing"

	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// An exclusive caller gives up. Shared ones who stand behind him get the lock beside its shared holder, in this process or in
// another one, and do not wait for that one to release it.
func TestGivingUpLetsOthersBy(t *testing.T) {
	t.Parallel()
	shared := &dblock.LockConfig{Shared: true}
	for _, where := range []string{"in this process", "in another process"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			c := b.client(t, nil)
			holder := c
			if where == "in another process" {
				holder = b.client(t, nil)
			}
			l := acquire(t, holder, "1", shared)
			ctx, giveUp := context.WithCancel(t.Context())
			gaveUp := make(chan error, 1)
			go func() {
				_, err := c.Acquire(ctx, key("1"), nil)
				gaveUp <- err
			}()
			pgtest.Eventually(t, "the exclusive one waits", func() bool { return c.InLine(key("1")) == 1 })
			if holder != c {
				waiting(t, b, 1)
			}
			won := make(chan *locked, 1)
			go func() { won <- acquire(t, c, "1", shared) }()
			pgtest.Eventually(t, "the shared one is behind", func() bool { return c.InLine(key("1")) == 2 })
			giveUp()
			if err := <-gaveUp; !errors.Is(err, dblock.ErrNotAcquired) {
				t.Errorf("got %v", err)
			}
			release(t, <-won)
			release(t, l)
		})
	}
}
