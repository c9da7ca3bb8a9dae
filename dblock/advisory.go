package dblock

import (
	"context"
	"fmt"
	"time"
)

// advisory is the kind of [New]: session advisory locks, many on one session.
type advisory struct{ *engine }

var (
	_ kind   = advisory{}
	_ ground = (*session)(nil)
)

// verify probes the server.
func (a advisory) verify(ctx context.Context) (budget int, err error) {
	f, err := a.probe(ctx)
	if err == nil && int64(a.cfg.MaxLocks) > f.room {
		err = fmt.Errorf("%w: Config.MaxLocks is %d, the server has room for %d", ErrCapacity, a.cfg.MaxLocks, f.room)
	}
	return int(f.room / budgetFraction), err
}

// start connects the first shard.
func (a advisory) start(ctx context.Context) error {
	e := a.engine
	s, err := e.connect(ctx, false)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.unlock()
	s.begin()
	e.shards = append(e.shards, s)
	return nil
}

func (advisory) shares() bool { return true }

func (a advisory) shutdown() {
	for _, s := range a.sessions() {
		a.lose(s, LostClosed, ErrClosed)
	}
}

// try asks for the key on a shard.
// Requests of several keys travel together.
func (a advisory) try(en *entry, r *request) {
	e := a.engine
	en.phase = asking
	shared := r.cfg.Shared
	e.place(&op{kind: opTake, number: en.number, shared: shared, done: func(s *session, res result) {
		en.phase = quiet
		if res.err == nil && res.got == 1 {
			e.granted(en, s, shared, s.epoch, res.sequence)
			return
		}
		e.used--
		a.notGranted(en, r, res)
	}})
}

// notGranted goes on after a try that failed. The request may have left meanwhile.
func (a advisory) notGranted(en *entry, r *request, res result) {
	e := a.engine
	again := res.err == errGone || res.got < 0 && r.cfg.Shared //nolint:errorlint // it is never wrapped
	switch {
	case again && r.tries < 3:
		r.tries++
	case res.err == nil && r.patient:
		r.asked = true
	case len(en.line) > 0 && en.line[0] == r:
		en.line = en.line[1:]
		e.refuse(r, publicError(res.err))
	}
	e.advance(en)
}

// unqueue ends a wait that nobody wants any more.
func (a advisory) unqueue(en *entry) {
	switch {
	case en.phase == parking:
		a.unpark(en)
		en.phase = quiet
		a.advance(en)
	case en.waiter != nil:
		a.interrupt(en.waiter)
	}
}

// peek asks whether somebody queues for an exclusive lock where shared ones are held: if nobody does,
// there may be more of them. The question goes to another session than the one that holds the
// lock, to which the server would say yes in any case.
func (a advisory) peek(en *entry) {
	e, h := a.engine, en.hold
	en.phase = asking
	e.place(&op{kind: opPeek, number: en.number, not: h.ground.(*session), done: func(_ *session, res result) {
		en.phase = quiet
		if res.err == nil && res.got == 1 {
			h.since, h.handed = e.now(), 0
		} else {
			h.closing = true
			time.AfterFunc(e.limits.rush, h.reopen) // who queued may have left
		}
		e.advance(en)
	}})
}

// reopen lets shared callers ask again whether they may join.
func (h *hold) reopen() {
	e := h.ground.(*session).engine
	e.mu.Lock()
	defer e.unlock()
	if h.entry.hold == h {
		h.closing = false
		e.advance(h.entry)
	}
}

// giveBack tells the session to give the key back.
func (a advisory) giveBack(en *entry, h *hold) {
	e, s := a.engine, h.ground.(*session)
	delete(s.holds, h)
	e.send(s, &op{kind: opDrop, number: en.number, shared: h.shared, done: func(s *session, res result) {
		e.used--
		en.phase = quiet
		h.left(res.err)
		if s.waiter && en.waiter == s {
			e.dropped(en, s)
			return
		}
		e.advance(en)
	}})
}

// carry notes that a hold stands on this session.
func (s *session) carry(h *hold) { s.holds[h] = struct{}{} }

func (s *session) lose(kind LossKind, err error) { s.engine.lose(s, kind, err) }
