package dblock

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// secondShard gives a fake client one more shard, on a server of its own.
func secondShard(c *Client[struct{}]) *fakeServer {
	e := c.engine
	f := &fakeServer{pid: 2}
	s := &session{engine: e, conn: f, pid: 2, holds: map[*hold]struct{}{}, sent: e.now()}
	s.ctx, s.cut = context.WithCancel(context.WithoutCancel(e.ctx))
	e.shards = append(e.shards, s)
	s.begin()
	return f
}

// The last shared holder releases while the server is asked whether another one may join. He joins, and the release does
// not wait for him.
func TestReleaseDoesNotWaitForWhoJoins(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _ := fakeClient(t)
		defer end(t, c)
		peeked := secondShard(c)
		first, err := c.Acquire(t.Context(), Key{"order", "1"}, &LockConfig{Shared: true})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) //nolint:forbidigo // in a bubble of synctest: joins in memory are over
		peeked.set(func() { peeked.delay = time.Second })
		joined := make(chan *Lock[struct{}], 1)
		go func() {
			second, err := c.Acquire(t.Context(), Key{"order", "1"}, &LockConfig{Shared: true})
			if err != nil {
				t.Error(err)
			}
			joined <- second
		}()
		synctest.Wait() // the question is on its way
		released := make(chan error, 1)
		go func() { released <- first.Release(t.Context()) }()
		second := <-joined
		synctest.Wait()
		select {
		case err := <-released:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Error("the release waits for the next holder's")
		}
		if err := second.Release(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
