package dblock

import (
	"context"
	"sync/atomic"
	"time"
)

// lockContext is the ctx of a tenure. Its Err asks the clock: when a process wakes up from a freeze,
// goroutines may run before the timer that would have told them.
type lockContext struct {
	tenure *tenure
	caller context.Context // whose values it keeps
	work   context.Context // it ends with this one, if there is one
	outer  *lockContext    // of the tenure in whose work this one was acquired

	// It is made when somebody looks at it. Most locks are given back before.
	made atomic.Pointer[ending]
}

// ending is what a lockContext is made of.
type ending struct {
	context.Context
	cancel context.CancelCauseFunc
}

type heldKey struct{}

// outerOf is the context of the tenure in whose work ctx is used, or nil.
func outerOf(ctx context.Context) *lockContext {
	c, _ := ctx.Value(heldKey{}).(*lockContext)
	return c
}

// ending makes it, under the mutex: the tenure ends under it, too. So both of its parents are the standard library's,
// whose own Err does not ask us.
func (c *lockContext) ending() *ending {
	if made := c.made.Load(); made != nil {
		return made
	}
	e := c.tenure.engine
	e.mu.Lock()
	defer e.unlock()
	if made := c.made.Load(); made != nil {
		return made
	}
	parent := c.work
	if parent == nil {
		parent = context.WithoutCancel(c.caller)
	}
	var made ending
	made.Context, made.cancel = context.WithCancelCause(parent)
	if c.tenure.over != nil {
		made.cancel(c.tenure.over)
	}
	c.made.Store(&made)
	return &made
}

// end ends it, now or as soon as it is made, with the cause that the tenure has ended by. The mutex is held.
func (c *lockContext) end() {
	if made := c.made.Load(); made != nil {
		made.cancel(c.tenure.over)
	}
}

// Deadline implements context.Context.
func (c *lockContext) Deadline() (time.Time, bool) { return c.ending().Deadline() }

// Done implements context.Context.
func (c *lockContext) Done() <-chan struct{} { return c.ending().Done() }

// Err implements context.Context.
func (c *lockContext) Err() error {
	made := c.ending()
	if err := made.Err(); err != nil {
		return err
	}
	e := c.tenure.engine
	e.mu.Lock()
	_ = c.tenure.check() // which ends the ctx if the lock is lost
	e.unlock()
	return made.Err()
}

// Value implements context.Context.
func (c *lockContext) Value(key any) any {
	if key == (heldKey{}) {
		return c
	}
	return c.ending().Value(key)
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
