package dblock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
)

// Acquire waits for the lock until ctx ends. In this process callers wait in memory, first come first
// served; between processes one of them waits in the server's queue.
//
// Errors: [ErrNotAcquired], which matches the ctx's error too, when ctx has ended; [ErrInvalidKey],
// [ErrReentrant], [ErrCapacity], [ErrCollision], [ErrDeadlock], [ErrUnavailable], [ErrClosed]. With an error
// nothing is held.
//
// Cost: a round trip for a free key, shared with other callers; three and a connection for one that another process
// holds; none for one that is handed over in this process. One lock on the server. A lease: a round trip and a commit for a free
// key, three round trips for one whose holder has died, and one for each question while somebody has it.
func (c *Client[TX]) Acquire(ctx context.Context, key Key, cfg *LockConfig) (*Lock[TX], error) {
	return c.acquire(ctx, nil, key, cfg, true)
}

// TryAcquire takes the lock if it is free, and never waits for a holder: [ErrNotAcquired]. Otherwise it is
// [Client.Acquire]. It waits for one round trip, but not beyond the end of ctx.
func (c *Client[TX]) TryAcquire(ctx context.Context, key Key, cfg *LockConfig) (*Lock[TX], error) {
	return c.acquire(ctx, nil, key, cfg, false)
}

// AcquireAll acquires several locks, all or none, as [Client.Acquire] does each, in an order that is the same for
// all callers, so that they cannot deadlock with each other. The locks come in the order of the keys. A key that
// is named twice is refused ([ErrInvalidKey]).
func (c *Client[TX]) AcquireAll(ctx context.Context, keys []Key, cfg *LockConfig) (_ Locks[TX], err error) {
	order := make([]int, len(keys))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(c.engine.number(keys[a]), c.engine.number(keys[b])) })
	for i := 1; i < len(order); i++ {
		if keys[order[i]] == keys[order[i-1]] {
			return nil, fmt.Errorf("dblock: acquire all: %w", &KeyError{Part: "key", Reason: "is named twice: " + keys[order[i]].String()})
		}
	}
	locks, all := make(Locks[TX], len(keys)), false
	defer func() {
		if !all { // also when Observe panics
			locks = slices.DeleteFunc(locks, func(l *Lock[TX]) bool { return l == nil })
			err = errors.Join(err, locks.Release(ctx))
		}
	}()
	for _, i := range order {
		if locks[i], err = c.Acquire(ctx, keys[i], cfg); err != nil {
			return nil, err
		}
	}
	all = true
	return locks, nil
}

// Locks are several locks that were acquired together.
type Locks[TX any] []*Lock[TX]

// Release releases them all, as [Lock.Release] does each.
func (l Locks[TX]) Release(ctx context.Context) (err error) {
	if len(l) == 0 {
		return nil
	}
	defer func() { err = errors.Join(err, l[1:].Release(ctx)) }() // also when Observe panics
	return l[0].Release(ctx)
}

// Do runs fn while it holds the lock, and releases it however fn ends. cfg may be nil. The ctx of fn is the lock's
// ([Lock.Context]), and ends with Do's, too. It returns fn's error, joined with [ErrLost] if the lock was lost
// before fn returned: then somebody else may have run meanwhile, whatever fn returned. The rest is as with [Client.Acquire].
func (c *Client[TX]) Do(ctx context.Context, key Key, cfg *LockConfig, fn func(ctx context.Context, lock *Lock[TX]) error) error {
	if fn == nil {
		return fmt.Errorf("dblock: do %s: nil function", key)
	}
	work, cancel := context.WithCancel(ctx) // the lock's ctx comes from it under the mutex, where the caller's may ask us
	defer cancel()
	lock, err := c.acquire(ctx, work, key, cfg, true)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Release(ctx) }() // also when fn panics; after the other one it does nothing
	err = fn(lock.Context(), lock)
	return errors.Join(err, lock.Release(ctx))
}

func (c *Client[TX]) acquire(ctx, work context.Context, key Key, cfg *LockConfig, patient bool) (*Lock[TX], error) {
	l := &Lock[TX]{client: c}
	r := &request{ctx: ctx, work: work, key: key, patient: patient, handle: l, bell: newBell()}
	if cfg != nil {
		r.cfg = *cfg
	}
	t, err := c.engine.acquire(ctx, r)
	if err != nil {
		verb := "acquire"
		if !patient {
			verb = "try acquire"
		}
		return nil, fmt.Errorf("dblock: %s %s: %w", verb, key, err)
	}
	l.tenure, l.ctx = t, heldContext{&t.ctx}
	return l, nil
}

func (e *engine) acquire(ctx context.Context, r *request) (*tenure, error) {
	if err := r.key.Validate(); err != nil {
		return nil, err
	}
	if r.cfg.Expect < 0 {
		return nil, errors.New("negative LockConfig.Expect")
	}
	if r.cfg.Shared && !e.kind.shares() {
		return nil, errShared
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotAcquired, context.Cause(ctx))
	}
	r.number = e.number(r.key)
	r.outer = outerOf(ctx)
	e.mu.Lock()
	if e.holds(r.outer, r.key) {
		e.unlock()
		return nil, ErrReentrant
	}
	r.began = e.now()
	if err := e.enter(r); err != nil {
		e.unlock()
		return nil, err
	}
	e.unlockFor(r, ctx.Done() == nil) // or he could not leave when ctx ends
	select {
	case <-r.rung:
		return r.tenure, r.err
	case <-ctx.Done():
		return nil, e.giveUp(ctx, r)
	}
}

// unlockFor is unlockAs for the caller of a request. If Observe panics there, he never sees the answer: should he recover, he has no
// lock and waits for none.
func (e *engine) unlockFor(r *request, leader bool) {
	told := false
	defer func() {
		if !told {
			e.mu.Lock()
			defer e.unlock()
			e.withdraw(r, errGoneCaller)
		}
	}()
	e.unlockAs(leader)
	told = true
}

var errGoneCaller = fmt.Errorf("%w: its caller's goroutine has panicked or ended", ErrNotAcquired)

// giveUp takes a request back whose ctx has ended.
func (e *engine) giveUp(ctx context.Context, r *request) error {
	err := fmt.Errorf("%w: %w", ErrNotAcquired, context.Cause(ctx)) // without the mutex: a ctx made of a lock's asks us
	e.mu.Lock()
	defer e.unlock()
	if en := e.entries[r.number]; en != nil && !r.answered() && slices.Contains(e.parked, en) {
		err = fmt.Errorf("%w: all %d connections for waiting are in use (Config.MaxWaiters): %w", ErrCapacity, e.cfg.MaxWaiters, err)
	}
	e.withdraw(r, err)
	return err
}

// withdraw takes a request back that nobody wants any more. A lock that was granted in this moment is given back, for others to have.
func (e *engine) withdraw(r *request, err error) {
	if !r.answered() {
		e.leave(r)
		e.tell(Event{Kind: Refused, Key: r.key, Err: err}, r.began)
		return
	}
	if t := r.tenure; t != nil && t.check() == nil {
		t.leave()
	}
}
