package dblock

import (
	"cmp"
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

// try asks for the key on a shard. Requests of several keys travel together.
func (a advisory) try(en *entry, r *request) {
	en.phase = asking
	a.place(a.take(en, r, (*op).tried))
}

func (a advisory) take(en *entry, r *request, done func(*op, *session, result)) *op {
	return &op{kind: opTake.of(r.cfg.Shared), number: en.number, engine: a.engine, entry: en, request: r, done: done}
}

// tried goes on after a try.
func (o *op) tried(s *session, res result) {
	e, en := o.engine, o.entry
	en.phase = quiet
	if res.err == nil && res.got == 1 {
		e.granted(en, s, o.kind == opTakeShared, s.epoch, res.sequence)
		return
	}
	e.used--
	advisory{e}.notGranted(en, o.request, res)
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
	en.phase = asking
	a.place(&op{
		kind: opPeek, number: en.number, not: en.hold.ground.(*session),
		engine: a.engine, entry: en, hold: en.hold, done: (*op).peeked,
	})
}

func (o *op) peeked(_ *session, res result) {
	e, en, h := o.engine, o.entry, o.hold
	en.phase = quiet
	if res.err == nil && res.got == 1 {
		h.since, h.handed = e.now(), 0
	} else {
		h.closing = true
		time.AfterFunc(e.limits.rush, h.reopen) // who queued may have left
	}
	e.advance(en)
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
	s := h.ground.(*session)
	delete(s.holds, h)
	a.send(s, &op{kind: opDrop.of(h.shared), number: en.number, engine: a.engine, entry: en, hold: h, done: (*op).dropped})
}

func (o *op) dropped(s *session, res result) {
	e, en := o.engine, o.entry
	e.used--
	en.phase = quiet
	if res.err != nil && s.lost != nil {
		res.err = cmp.Or(s.lost.err, res.err) // why it was lost
	}
	o.hold.left(res.err)
	if s.waiter && en.waiter == s {
		e.dropped(en, s)
		return
	}
	e.advance(en)
}

// carry notes that a hold stands on this session.
func (s *session) carry(h *hold) { s.holds[h] = struct{}{} }

func (s *session) lose(kind LossKind, err error) { s.engine.lose(s, kind, err) }
