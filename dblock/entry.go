package dblock

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// entry is a key in use by this process: held, asked for, or wanted. The table has one entry for a
// number, and an entry one request on the server at a time. That is what makes many callers on one
// session safe, to whom the server would give one lock twice.
type entry struct {
	number int64
	key    Key
	phase  phase
	hold   *hold       // what the server has granted
	line   []*request  // who wants it, first come first served
	room   [1]*request // of the line, for as long as there is one
	waiter *session    // of the sessions for waiting, the one that waits for the key or holds it

	wake chan struct{} // of a wait for a lease: look whether it is still wanted
}

// phase is what an entry has on the server at the moment.
type phase int

const (
	quiet   phase = iota // nothing: free or held
	asking               // a try, or a give-back, on its way: a round trip
	queuing              // a wait in the server's queue
	parking              // wants a connection for waiting
)

// request is a caller that wants a lock.
type request struct {
	ctx     context.Context // the caller's
	work    context.Context // of the tenure's ctx; nil if that keeps only the values of ctx
	outer   *lockContext    // of the tenure in whose work it is asked for
	key     Key
	number  int64 // of the key
	cfg     LockConfig
	patient bool // waits
	handle  handle
	tries   int  // round trips that were lost, or held up for no good reason
	asked   bool // and somebody had it
	began   time.Duration

	// The answer, and what rings when it is there.
	tenure *tenure
	err    error
	bell
}

func (r *request) answered() bool { return r.tenure != nil || r.err != nil }

// hold is one grant of the server. Callers of this process that follow each other within it have tokens of
// its block.
type hold struct {
	entry    *entry
	ground   ground
	shared   bool
	epoch    int64
	sequence int64
	local    int           // tenures so far, less one
	since    time.Duration // when hand-overs began to count
	handed   int           // hand-overs since then
	fenced   bool          // a transaction of the caller's may outlive the tenure, so there are no heirs
	closing  bool          // others queue for it: no more joins
	tenures  []*tenure
	leavers  []*tenure  // who wait until it is given back, or has another tenure
	room     [2]*tenure // of those two, for as long as there is one of each
}

// refuse answers a request with an error. It must be out of its line, or the line gone.
func (e *engine) refuse(r *request, err error) {
	r.err = err
	e.ring(&r.bell)
	e.tell(Event{Kind: Refused, Key: r.key, Err: err}, r.began)
}

// enter puts a request into its line.
func (e *engine) enter(r *request) error {
	if e.closed {
		return ErrClosed
	}
	en := e.entries[r.number]
	if en == nil {
		en = &entry{number: r.number, key: r.key}
		en.line = en.room[:0]
		e.entries[r.number] = en
	} else if en.key != r.key {
		return fmt.Errorf("%w: %s and %s", ErrCollision, en.key, r.key)
	}
	en.line = append(en.line, r)
	e.advance(en)
	return nil
}

// leave takes a request out of its line, if it is still there.
func (e *engine) leave(r *request) {
	en := e.entries[r.number]
	if en == nil {
		return
	}
	first := len(en.line) > 0 && en.line[0] == r
	en.line = slices.DeleteFunc(en.line, func(o *request) bool { return o == r })
	if len(en.line) > 0 {
		if first {
			e.follow(en, r)
		}
		return
	}
	if en.phase == queuing || en.phase == parking {
		e.kind.unqueue(en)
	}
}

// follow goes on when the first in line has left and others have not: who waited behind one for another kind of lock may
// have his at once, or would wait for the wrong kind.
func (e *engine) follow(en *entry, r *request) {
	switch {
	case en.phase == quiet:
		e.advance(en)
	case en.phase == queuing && en.waiter != nil && en.line[0].cfg.Shared != r.cfg.Shared:
		e.interrupt(en.waiter)
	}
}

// advance does for an entry what can be done: grants what is held, refuses those who do not wait, gives back
// what nobody wants, asks for what is wanted. Whoever changes an entry calls it.
func (e *engine) advance(en *entry) {
	if en.hold != nil && !en.hold.ground.alive() {
		en.hold.ground.lose(LostSilence, nil) // which comes back here
		return
	}
	for len(en.line) > 0 && e.admits(en, en.line[0]) {
		r := en.line[0]
		en.line = en.line[1:]
		e.grant(en.hold, r)
	}
	switch {
	case en.phase == asking:
		return
	case en.phase != quiet || en.hold != nil && len(en.hold.tenures) > 0:
		e.turnAway(en)
		if en.phase == quiet && len(en.line) > 0 && en.hold.mayPeek(en.line[0]) {
			e.kind.peek(en)
		}
	case en.hold != nil:
		e.drop(en)
	case len(en.line) == 0:
		delete(e.entries, en.number)
	default:
		e.ask(en)
	}
}

// turnAway refuses those who do not wait, unless the one in front may still get in.
func (e *engine) turnAway(en *entry) {
	for i := 0; i < len(en.line); {
		r := en.line[i]
		if r.patient || i == 0 && en.phase == quiet && en.hold.mayPeek(r) {
			i++
			continue
		}
		en.line = slices.Delete(en.line, i, i+1)
		e.refuse(r, ErrNotAcquired)
	}
}

// admits reports whether the hold has room for one more tenure: a hand-over, or another shared one.
func (e *engine) admits(en *entry, r *request) bool {
	h := en.hold
	if en.phase != quiet || h == nil || h.shared != r.cfg.Shared || h.fenced || h.closing {
		return false
	}
	if len(h.tenures) > 0 && !h.shared {
		return false
	}
	return h.local < 0 || h.local < maxLocal && h.handed < e.limits.handOvers && e.now()-h.since < e.limits.handOver
}

// mayPeek reports whether a shared hold that takes no more tenures by itself could after a look at the
// server's queue.
func (h *hold) mayPeek(r *request) bool {
	return h != nil && h.shared && r.cfg.Shared && !h.fenced && !h.closing && h.local < maxLocal
}

// grant makes a tenure of the hold.
func (e *engine) grant(h *hold, r *request) {
	if h.local++; h.local > 0 {
		h.handed++
	}
	t := newTenure(e, h, r)
	h.tenures = append(h.tenures, t)
	h.left(nil) // who has left it meanwhile does not wait for the one who has it now
	e.tell(Event{Kind: Acquired, Key: r.key, Token: t.token}, r.began)
	r.tenure = t
	e.ring(&r.bell)
}

// granted makes a hold of what the server has given.
func (e *engine) granted(en *entry, g ground, shared bool, epoch, sequence int64) {
	h := &hold{entry: en, ground: g, shared: shared, epoch: epoch, sequence: sequence, local: -1, since: e.now()}
	h.tenures, h.leavers = h.room[:0:1], h.room[1:1]
	en.hold, en.phase = h, quiet
	g.carry(h)
	e.advance(en) // which ends it at once if the answer took longer than the server's patience may have
}

// ask asks the server for the key of a free entry: one try; after that a wait.
func (e *engine) ask(en *entry) {
	r := en.line[0]
	if e.used >= e.budget {
		en.line = en.line[1:]
		e.refuse(r, fmt.Errorf("%w: this client has %d locks on the server: see Config.MaxLocks", ErrCapacity, e.used))
		e.advance(en)
		return
	}
	e.used++
	if r.asked {
		e.kind.queue(en)
		return
	}
	e.kind.try(en, r)
}

// drop gives a hold back that has no tenure any more.
func (e *engine) drop(en *entry) {
	h := en.hold
	en.hold, en.phase = nil, asking
	e.kind.giveBack(en, h)
}

// left tells those who wait for it that the hold is given back, or what else has become of it.
func (h *hold) left(err error) {
	for _, t := range h.leavers {
		if err != nil {
			t.err = t.lostError(lossKind(err), err)
		}
		t.engine.ring(&t.left)
	}
	h.leavers = h.leavers[:0]
}
