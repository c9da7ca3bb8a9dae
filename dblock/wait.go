package dblock

import (
	"context"
	"slices"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// Waiting between processes is a session of its own that blocks in the server's queue, which is fair, wakes
// the next at once and costs nothing while it lasts. The lock stays on that session until it is given back,
// since it could not be moved without a moment in which it is free.

// queue waits on the server for an entry's key. It is counted already. The mutex is held.
func (e *engine) queue(en *entry) {
	switch last := len(e.idle) - 1; {
	case last >= 0:
		s := e.idle[last]
		e.idle = e.idle[:last]
		e.waitOn(en, s)
	case e.waiters < e.cfg.MaxWaiters:
		e.waiters++
		en.phase = queuing
		e.wg.Go(func() { e.openWaiter(en) })
	default:
		e.park(en)
	}
	e.turnAway(en)
}

// openWaiter connects one more session for waiting.
func (e *engine) openWaiter(en *entry) {
	s, err := e.connect(e.ctx, true)
	e.mu.Lock()
	defer e.unlock()
	if err == nil && e.closed {
		e.wg.Go(func() { _ = s.conn.Close(s.ctx) })
		err = ErrClosed
	}
	if err != nil {
		e.waiters--
		e.used--
		for _, r := range en.line {
			e.refuse(r, publicError(err))
		}
		en.line, en.phase = nil, quiet
		e.advance(en)
		e.unparkNext()
		return
	}
	s.begin()
	e.waitOn(en, s)
}

// waitOn waits on a session that is free.
func (e *engine) waitOn(en *entry, s *session) {
	if len(en.line) == 0 {
		e.used--
		en.phase = quiet
		e.release(s)
		e.advance(en)
		return
	}
	en.phase, en.waiter = queuing, s
	s.blocked = true
	w := &wait{engine: e, entry: en, session: s, number: en.number, shared: en.line[0].cfg.Shared, crowded: e.waiters >= e.cfg.MaxWaiters}
	if !w.crowded {
		e.relaxed = append(e.relaxed, w)
	}
	e.wg.Go(w.run)
}

// release has a session for waiting that nobody uses: the next one gets it.
func (e *engine) release(s *session) {
	e.idle = append(e.idle, s)
	e.unparkNext()
}

// dropped goes on when a session for waiting has given its key back. If callers of this process want it again,
// they go to the back of the server's queue, unless another key waits for a session.
func (e *engine) dropped(en *entry, s *session) {
	en.waiter = nil
	switch {
	case s.lost != nil:
	case len(e.parked) == 0 && len(en.line) > 0 && en.line[0].patient && e.used < e.budget:
		e.used++
		e.waitOn(en, s)
	default:
		e.release(s)
	}
	e.advance(en)
}

// wait is one wait in the server's queue.
type wait struct {
	engine   *engine
	entry    *entry
	session  *session
	number   int64
	shared   bool
	crowded  bool // others may want the session; under the engine's mutex
	sequence int64
	sent     time.Duration // when the request was sent that has drawn the token
}

// run waits, and says what has become of it.
func (w *wait) run() {
	got, err := w.await()
	e, s, en := w.engine, w.session, w.entry
	e.mu.Lock()
	defer e.unlock()
	e.relaxed = slices.DeleteFunc(e.relaxed, func(o *wait) bool { return o == w })
	for s.halt != nil { // or the cancel request could hit what comes next
		halt := s.halt
		e.unlock()
		<-halt
		e.mu.Lock()
	}
	s.blocked = false
	en.phase = quiet
	switch {
	case s.lost != nil:
		e.wg.Go(s.shut)
		err = errGone
	case got && s.hungup:
		err = errHangup
		e.lose(s, LostConnection, err)
	case got:
		s.sent = w.sent
		e.granted(en, s, w.shared, s.epoch, w.sequence)
		return
	case err != nil && !pg.Rejected(err):
		e.lose(s, lossKind(err), err)
	}
	en.waiter = nil
	e.used--
	if s.lost != nil {
		e.waitLost(en, err)
		return
	}
	if err != nil && len(en.line) > 0 {
		r := en.line[0]
		en.line = en.line[1:]
		e.refuse(r, s.explain(err))
	}
	if err == nil && len(en.line) > 0 && len(e.parked) > 0 { // its turn is over
		e.used++
		e.park(en)
	}
	e.release(s)
	e.advance(en)
}

// waitLost asks again on another session, but not for ever.
func (e *engine) waitLost(en *entry, err error) {
	if len(en.line) > 0 {
		r := en.line[0]
		if r.tries++; r.tries > 3 || e.closed {
			en.line = en.line[1:]
			e.refuse(r, publicError(err))
		}
	}
	e.advance(en)
}

// await waits for the key, and then until no fenced transaction of a holder before runs any more.
func (w *wait) await() (got bool, err error) {
	if err := w.setSlice(); err != nil {
		return false, err
	}
	got, err = w.lock(w.number, w.shared)
	for got && err == nil {
		var free bool
		free, err = w.own()
		switch {
		case pg.Code(err) == pg.CodeQueryCanceled: // meant for the wait before; it may have left a companion behind
			err = w.giveBack(w.companion())
			continue
		case err != nil:
			return false, w.settled(err)
		case free:
			return true, nil
		}
		if got, err = w.lock(w.companion(), false); err != nil { // while the key is kept
			return false, err
		}
		if !got {
			return false, w.settled(nil)
		}
		err = w.giveBack(w.companion())
	}
	return false, err
}

// giveBack gives back what is held of some numbers. Cancel requests that come late can hit it.
func (w *wait) giveBack(numbers ...int64) error {
	for {
		_, err := w.session.settle(numbers)
		switch {
		case pg.Code(err) == pg.CodeQueryCanceled:
		case err != nil:
			return &brokenError{err}
		default:
			return nil
		}
	}
}

// settled gives back whatever is held, and returns err if that went well.
func (w *wait) settled(err error) error {
	if err != nil && !pg.Rejected(err) {
		return err
	}
	if broken := w.giveBack(withCompanions(w.number)...); broken != nil {
		return broken
	}
	return err
}

// brokenError is an error after which nobody knows what the session holds, whatever the server said.
type brokenError struct{ err error }

func (e *brokenError) Error() string { return e.err.Error() }

// setSlice makes the server end the waits of this session in time. Cancel requests that come late can hit it.
func (w *wait) setSlice() error {
	slice := w.engine.limits.slice
	w.engine.mu.Lock()
	if w.crowded {
		slice = min(slice, w.engine.limits.rush)
	}
	w.engine.mu.Unlock()
	for slice != w.session.slice {
		_, err := w.session.trip(pg.Stmt{SQL: sqlSlice, Args: []any{millis(slice)}})
		switch {
		case err == nil:
			w.session.slice = slice
		case pg.Code(err) != pg.CodeQueryCanceled:
			return err
		}
	}
	return nil
}

// lock waits in the server's queue, slice by slice, for as long as anybody wants the key.
func (w *wait) lock(number int64, shared bool) (got bool, err error) {
	text := sqlQueue
	if shared {
		text = sqlQueueShared
	}
	for {
		ctx, cancel := context.WithTimeout(w.session.ctx, w.session.slice+pg.NetTimeout(w.session.ctx))
		err = w.session.conn.RunAll(ctx, pg.Stmt{SQL: text, Args: []any{number}})
		cancel()
		code := pg.Code(err)
		switch {
		case err == nil:
			return true, nil
		case code != pg.CodeLockTimeout && code != pg.CodeQueryCanceled:
			return false, w.settled(err)
		}
		// It may have been granted in the moment in which it was given up, and then it is held.
		held, err := w.held(number)
		if held || err != nil {
			return held, err
		}
		if !w.wanted(code == pg.CodeLockTimeout) {
			return false, nil
		}
		if err := w.setSlice(); err != nil { // others may want the session by now
			return false, w.settled(err)
		}
	}
}

// held asks whether the session has a lock. A cancel request that comes late can hit the question.
func (w *wait) held(number int64) (bool, error) {
	for {
		var n int64
		_, err := w.session.trip(pg.Stmt{SQL: sqlHeld, Args: []any{number}, Dest: []any{&n}})
		switch {
		case pg.Code(err) == pg.CodeQueryCanceled:
		case err != nil:
			return false, &brokenError{err}
		default:
			return n > 0, nil
		}
	}
}

// wanted reports whether the wait is to go on.
func (w *wait) wanted(sliceOver bool) bool {
	e := w.engine
	e.mu.Lock()
	defer e.unlock()
	line := w.entry.line
	return len(line) > 0 && line[0].cfg.Shared == w.shared && w.session.lost == nil && (!sliceOver || len(e.parked) == 0)
}

// own draws the token, unless a fenced transaction holds the key up.
func (w *wait) own() (free bool, err error) {
	w.sent, err = w.session.trip(pg.Stmt{SQL: w.engine.sql.own, Args: []any{w.companion()}, Dest: []any{&free, &w.sequence}})
	return free, err
}

// companion is the number by which fenced transactions hold the key up.
func (w *wait) companion() int64 { return w.number ^ companionMask(w.shared) }

// interrupt ends a wait that nobody wants any more. The answer of the wait tells what became of it.
func (e *engine) interrupt(s *session) {
	if s.lost != nil {
		time.AfterFunc(time.Second, s.cut) // for a server that does not answer
	}
	if s.halt != nil || !s.blocked {
		return
	}
	halt := make(chan struct{})
	s.halt = halt
	e.wg.Go(func() {
		defer close(halt)
		ctx, cancel := context.WithTimeout(s.ctx, time.Second)
		defer cancel()
		_ = s.conn.Cancel(ctx) // or the slice ends it
		e.mu.Lock()
		defer e.unlock()
		s.halt = nil
	})
}
