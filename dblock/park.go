package dblock

import (
	"slices"
	"time"
)

// park lines an entry up for a session for waiting. Meanwhile it asks now and then.
func (e *engine) park(en *entry) {
	en.phase = parking
	e.parked = append(e.parked, en)
	for _, w := range e.relaxed { // from here on they take turns
		w.crowded = true
		e.interrupt(w.session)
	}
	e.relaxed = nil
	if !e.polling {
		e.polling = true
		e.wg.Go(e.poll)
	}
}

// unpark takes an entry out of that line, and its count with it.
func (e *engine) unpark(en *entry) {
	e.used--
	e.parked = slices.DeleteFunc(e.parked, func(o *entry) bool { return o == en })
}

// unparkNext gives a session to the entry that has wanted one for the longest time.
func (e *engine) unparkNext() {
	if e.closed || len(e.idle) == 0 && e.waiters >= e.cfg.MaxWaiters {
		return
	}
	i := slices.IndexFunc(e.parked, func(en *entry) bool { return en.phase == parking })
	if i < 0 {
		return
	}
	en := e.parked[i]
	e.parked = slices.Delete(e.parked, i, i+1)
	e.queue(en)
}

// poll asks for all parked keys now and then, in one request.
func (e *engine) poll() {
	for {
		pause := time.NewTimer(5*time.Millisecond + e.jitter(15*time.Millisecond))
		select {
		case <-pause.C:
		case <-e.ctx.Done():
			pause.Stop()
		}
		e.mu.Lock()
		if e.closed || len(e.parked) == 0 {
			e.polling = false
			e.unlock()
			return
		}
		for _, en := range slices.Clone(e.parked) {
			if en.phase == parking {
				e.tryParked(en)
			}
		}
		e.unlock()
	}
}

func (e *engine) tryParked(en *entry) {
	if len(en.line) == 0 {
		return
	}
	en.phase = asking
	e.place(advisory{e}.take(en, en.line[0], (*op).triedParked))
}

func (o *op) triedParked(s *session, res result) {
	e, en := o.engine, o.entry
	en.phase = parking
	switch {
	case res.err == nil && res.got == 1:
		e.unpark(en)
		e.used++
		e.granted(en, s, o.kind == opTakeShared, s.epoch, res.sequence)
	case len(en.line) == 0:
		e.unpark(en)
		en.phase = quiet
		e.advance(en)
	default:
		e.turnAway(en)
		e.unparkNext()
	}
}
