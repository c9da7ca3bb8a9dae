package dblock

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// LockConfig tunes one acquisition. A nil *LockConfig is an exclusive lock.
type LockConfig struct {
	// Shared asks for a lock that others may share, and that excludes exclusive ones. Leases are exclusive.
	Shared bool

	// Expect is how long the lock is meant to be held. A holder that takes longer is reported, once, to
	// [Config.Logger] and [Config.Observe], and keeps the lock. Defaults to no expectation.
	Expect time.Duration
}

// Lock is a lock that is held, or was. Release it when done. Safe for concurrent use.
//
// A Lock that is dropped without Release, and whose Context nobody has any more, is reported after a while
// ([Leaked], and a line for [Config.Logger]) and stays held: its work may go on without it.
type Lock[TX any] struct {
	client *Client[TX]
	tenure *tenure
	ctx    heldContext
}

// tenure is one caller's time with a lock.
type tenure struct {
	engine  *engine
	hold    *hold
	key     Key
	shared  bool
	token   Token
	ctx     lockContext
	granted time.Duration
	overrun *time.Timer

	// Under the engine's mutex.
	handle handle // of who has the lock, until it is watched; a released one is not
	over   error  // nil while it lasts: ErrNotHeld, or a *LostError
	left   bell   // rings when the release is over
	err    error  // of the release
}

func newTenure(e *engine, h *hold, r *request) *tenure {
	t := &tenure{
		engine: e, hold: h, key: r.key, shared: r.cfg.Shared, granted: e.now(),
		token: newToken(h.epoch, h.sequence, h.local), handle: r.handle,
	}
	r.handle = nil // which may be kept for longer, in lists
	t.ctx.tenure, t.ctx.caller, t.ctx.work, t.ctx.outer = t, r.ctx, r.work, r.outer
	if r.cfg.Expect > 0 {
		t.overrun = time.AfterFunc(r.cfg.Expect, t.reportOverrun)
	}
	return t
}

// Key is what is locked.
func (l *Lock[TX]) Key() Key { return l.tenure.key }

// Token is the lock's fencing token.
func (l *Lock[TX]) Token() Token { return l.tenure.token }

// Context is for the work that the lock is for. It ends when the lock is lost, and then its cause
// (context.Cause) is a [*LostError]; and when it is released, with the cause [ErrNotHeld]. It keeps
// the values of the ctx of Acquire but not its end. Its Err asks the clock, so work that has been frozen
// finds out before it does anything else.
func (l *Lock[TX]) Context() context.Context { return &l.ctx }

// Remaining is for how long the lock is good if the server does not answer any more. It is 0 when the
// lock is lost or released. While all is well it is renewed long before.
func (l *Lock[TX]) Remaining() time.Duration {
	e := l.tenure.engine
	e.mu.Lock()
	defer e.unlock()
	if l.tenure.check() != nil {
		return 0
	}
	return l.tenure.hold.ground.left()
}

// Err is nil while the lock is held. After that it is [ErrNotHeld], or a [*LostError]. It asks the clock, not the
// server.
func (l *Lock[TX]) Err() error {
	e := l.tenure.engine
	e.mu.Lock()
	defer e.unlock()
	return l.tenure.check()
}

// Release gives the lock back. When it returns nil, the lock is free, or the next caller of this process has
// it. It works on a dead ctx, whose end it does not heed; it takes no longer than a request to the server may. It may
// be called again, and says the same. Errors: [ErrLost] if the lock was lost before, or while it was given back. A
// transaction that was fenced is not waited for, whoever's it is: the next holder waits for it.
//
// Cost: a round trip, shared with other callers; none if the lock is handed over in this process. A lease: a round trip and a
// commit.
func (l *Lock[TX]) Release(context.Context) error {
	if err := l.tenure.release(); err != nil {
		return fmt.Errorf("dblock: release %s: %w", l.tenure.key, err)
	}
	return nil
}

// check finds out whether the tenure lasts. The mutex is held.
func (t *tenure) check() error {
	if t.over == nil && !t.hold.ground.alive() {
		t.hold.ground.lose(LostSilence, nil)
	}
	return t.over
}

func (t *tenure) release() error {
	e := t.engine
	e.mu.Lock()
	switch {
	case t.left.rung != nil:
	case t.check() != nil:
		t.left, t.err = newBell(), t.over
		e.ring(&t.left)
	default:
		t.leave()
	}
	e.unlockAs(true)
	<-t.left.rung
	return t.err
}

// leave ends the tenure. If it was the last one of the hold, it has left when the hold is given back, or somebody
// follows. The mutex is held.
func (t *tenure) leave() {
	h, e := t.hold, t.engine
	t.left = newBell()
	t.stop(ErrNotHeld)
	e.tell(Event{Kind: Released, Key: t.key, Token: t.token}, t.granted)
	h.tenures = slices.DeleteFunc(h.tenures, func(o *tenure) bool { return o == t })
	if len(h.tenures) > 0 {
		e.ring(&t.left)
		return
	}
	h.leavers = append(h.leavers, t)
	e.advance(h.entry)
}

func (t *tenure) stop(cause error) {
	t.over = cause
	t.ctx.end()
	if t.overrun != nil {
		t.overrun.Stop()
	}
}

// lose ends the tenure by a loss. The mutex is held.
func (t *tenure) lose(kind LossKind, err error) {
	if t.over != nil {
		return
	}
	e := t.engine
	lost := t.lostError(kind, err)
	t.stop(lost)
	e.tell(Event{Kind: Lost, Key: t.key, Token: t.token, Err: lost}, t.granted)
	e.news = append(e.news, func() {
		e.cfg.Logger.WarnContext(e.ctx, "dblock: lock lost", "key", t.key.String(), "token", int64(t.token), "error", lost)
	})
}

func (t *tenure) lostError(kind LossKind, err error) *LostError {
	return &LostError{Key: t.key, Token: t.token, Kind: kind, Held: t.engine.now() - t.granted, Err: err}
}

func (t *tenure) reportOverrun() {
	e := t.engine
	e.mu.Lock()
	defer e.unlock()
	if t.over != nil {
		return
	}
	held := e.now() - t.granted
	e.tell(Event{Kind: Overrun, Key: t.key, Token: t.token}, t.granted)
	e.news = append(e.news, func() {
		e.cfg.Logger.WarnContext(e.ctx, "dblock: lock held for longer than expected", "key", t.key.String(), "token", int64(t.token), "held", held)
	})
}
