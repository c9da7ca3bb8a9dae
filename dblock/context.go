package dblock

import "context"

// lockContext is the ctx of a tenure. Its Err asks the clock: when a process wakes up from a freeze,
// goroutines may run before the timer that would have told them.
type lockContext struct {
	context.Context
	cancel context.CancelCauseFunc
	tenure *tenure
	outer  *lockContext // of the tenure in whose work this one was acquired
}

type heldKey struct{}

// newLockContext runs under the mutex, so parent must be one of the standard library's: its own Err must not ask us.
func newLockContext(parent context.Context, outer *lockContext, t *tenure) *lockContext {
	c := &lockContext{tenure: t, outer: outer}
	c.Context, c.cancel = context.WithCancelCause(parent)
	return c
}

// outerOf is the context of the tenure in whose work ctx is used, or nil.
func outerOf(ctx context.Context) *lockContext {
	c, _ := ctx.Value(heldKey{}).(*lockContext)
	return c
}

// Err implements context.Context.
func (c *lockContext) Err() error {
	if err := c.Context.Err(); err != nil {
		return err
	}
	e := c.tenure.engine
	e.mu.Lock()
	_ = c.tenure.check() // which ends the ctx if the lock is lost
	e.unlock()
	return c.Context.Err()
}

// Value implements context.Context.
func (c *lockContext) Value(key any) any {
	if key == (heldKey{}) {
		return c
	}
	return c.Context.Value(key)
}

// holds reports whether c, or one around it, is of a tenure of this key that lasts. The mutex is held.
func (e *engine) holds(c *lockContext, key Key) bool {
	for ; c != nil; c = c.outer {
		if c.tenure.engine == e && c.tenure.over == nil && c.tenure.key == key {
			return true
		}
	}
	return false
}
