package conformance

import (
	"errors"
	"testing"

	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// Shared locks are shared, in a process and between, for long and by many; an exclusive one waits for
// all of them, and then new shared ones wait for it.
func lockShared[TX any](t *testing.T, c Client[TX]) {
	l := setupLocks(t, c)
	a, b := l.client(nil), l.client(nil)
	var held []*dblock.Lock[TX]
	for range 100 { // more than a hand-over in memory may be
		held = append(held, l.acquire(a, "1", shared))
	}
	for range 2 {
		held = append(held, l.acquire(b, "1", shared))
	}
	tokens := map[dblock.Token]bool{}
	for _, lock := range held {
		tokens[lock.Token()] = true
	}
	wantInt(t, "tokens", int64(len(tokens)), int64(len(held)))
	_, err := b.TryAcquire(l.ctx(), lockKey("1"), nil)
	wantErr(t, err, dblock.ErrNotAcquired)

	exclusive := make(chan *dblock.Lock[TX], 1)
	other := l.client(nil)
	go func() { exclusive <- l.acquire(other, "1", nil) }()
	joined := 0 // each is a token of the hold; when these are used up, sharing ends by itself
	pgtest.Eventually(t, "shared locks wait for the exclusive one", func() bool {
		lock, err := a.TryAcquire(l.ctx(), lockKey("1"), shared)
		if err == nil {
			joined++
			l.release(lock)
		}
		return errors.Is(err, dblock.ErrNotAcquired)
	})
	if joined > 900 {
		t.Errorf("%d shared locks were given out before the exclusive one was seen", joined)
	}
	for _, lock := range held {
		select {
		case <-exclusive:
			t.Fatal("an exclusive lock beside a shared one")
		default:
		}
		l.release(lock)
	}
	l.release(<-exclusive)
	l.release(l.acquire(a, "1", shared))
}
