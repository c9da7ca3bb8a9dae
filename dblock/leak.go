package dblock

import "runtime"

// A program that drops a Lock without Release keeps everybody else waiting until it ends. That is reported, and the
// lock is kept, since it cannot be known that its work is over. A goroutine may work under a lock without a word
// to it: one that took the lock for as long as the process lives, one that has only the token, or the channel of
// Context().Done(), which keeps nothing alive. The compiler calls a variable dead after its last use, however
// long the critical section goes on. To give the lock back then would be to give it to a second holder.
//
// What is reported must be true, so a handle counts as dropped when nothing can release the lock or see its end any more:
// the context that the caller gets is a part of the Lock's own memory, so it, and every context derived from it, keeps the
// Lock alive. What lasts as long as the tenure must not: the engine, the tenure and its own ctx do not point to the Lock.
//
// To watch a Lock costs more than to hand it over in memory. So that begins with the first heartbeat of its session, up
// to which the tenure does point to it; a lock that is held for less is never watched.

// heldContext is the context of a tenure as the caller gets it.
type heldContext struct{ *lockContext }

// handle is a Lock, whatever the type of its transaction.
type handle interface{ watch(*tenure) }

func (l *Lock[TX]) watch(t *tenure) { runtime.AddCleanup(l, (*tenure).reportLeak, t) }

// watchHandles begins to watch the handles of a session that are not watched yet. The mutex is held.
func (s *session) watchHandles() {
	for h := range s.holds {
		h.watchHandles()
	}
}

func (h *hold) watchHandles() {
	for _, t := range h.tenures {
		if t.handle != nil {
			t.handle.watch(t)
			t.handle = nil
		}
	}
}

// reportLeak is called when the Lock of the tenure has been collected.
func (t *tenure) reportLeak() {
	e := t.engine
	e.mu.Lock()
	defer e.unlock()
	if t.check() != nil {
		return
	}
	held := e.now() - t.granted
	e.tell(Event{Kind: Leaked, Key: t.key, Token: t.token}, t.granted)
	e.news = append(e.news, func() {
		e.cfg.Logger.WarnContext(e.ctx, "dblock: lock was dropped without Release; it is kept until the client is closed",
			"key", t.key.String(), "token", int64(t.token), "held", held)
	})
}
