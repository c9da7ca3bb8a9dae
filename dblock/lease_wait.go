package dblock

import "time"

// The pause between two questions of a process that waits for a key. There is one who asks for a key in a process, on behalf
// of all in its line. Asking costs an index look-up and writes nothing.
const (
	firstPause = 5 * time.Millisecond
	lastPause  = 250 * time.Millisecond
	spread     = 50 * time.Millisecond // over which those who know when a lease ends ask for it
)

// try asks for the key once.
func (l *leases) try(en *entry, r *request) {
	en.phase = asking
	l.wg.Go(func() {
		got, _, err := l.take(en.key, en.number)
		l.mu.Lock()
		defer l.unlock()
		if got != nil {
			l.land(en, got)
			return
		}
		en.phase = quiet
		l.used--
		switch {
		case err == nil && r.patient:
			r.asked = true
		case len(en.line) > 0 && en.line[0] == r:
			en.line = en.line[1:]
			l.refuse(r, publicError(err))
		}
		l.advance(en)
	})
}

// land makes a hold of a lease. The client may have been closed meanwhile.
func (l *leases) land(en *entry, got *lease) {
	if l.closed {
		en.phase = quiet
		l.used--
		l.wg.Go(func() { _, _ = l.free(got.row) })
		l.advance(en)
		return
	}
	l.granted(en, got, false, got.epoch, got.number)
}

// queue asks for the key again and again. It begins with a pause: somebody has it, or this process has just given it back
// with callers of its own in line, and others shall have a chance.
func (l *leases) queue(en *entry) {
	en.phase = queuing
	en.wake = make(chan struct{}, 1)
	l.wg.Go(func() { l.poll(en) })
	l.turnAway(en)
}

// unqueue wakes the one who asks, who finds that nobody wants the key.
func (*leases) unqueue(en *entry) {
	select {
	case en.wake <- struct{}{}:
	default:
	}
}

func (l *leases) poll(en *entry) {
	var busy time.Duration
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		if !l.pause(en, pause, busy) {
			return
		}
		var got *lease
		var err error
		got, busy, err = l.take(en.key, en.number)
		l.mu.Lock()
		if got != nil {
			l.land(en, got)
			l.unlock()
			return
		}
		if err != nil && len(en.line) > 0 {
			r := en.line[0]
			if r.tries++; r.tries > 3 {
				en.line = en.line[1:]
				l.refuse(r, err)
			}
		}
		l.unlock()
	}
}

// nextLook is how long to wait before the next question: not much longer than the lease of the one who has the key lasts. Its end is
// the same instant for all processes that wait, so they do not ask in it, but each a little later.
func (e *engine) nextLook(pause, busy time.Duration) time.Duration {
	pause = pause/2 + e.jitter(pause/2)
	if busy > 0 {
		pause = min(pause, busy+e.jitter(spread))
	}
	return pause
}

// pause waits before the next question. It reports whether anybody still wants the key.
func (l *leases) pause(en *entry, pause, busy time.Duration) bool {
	timer := time.NewTimer(l.nextLook(pause, busy))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-en.wake:
	case <-l.ctx.Done():
	}
	l.mu.Lock()
	defer l.unlock()
	if len(en.line) > 0 {
		return true
	}
	en.phase = quiet
	l.used--
	l.advance(en)
	return false
}

// peek is for shared locks only.
func (*leases) peek(*entry) {}

// giveBack gives the row back. Callers of this process who want it again begin with a pause.
func (l *leases) giveBack(en *entry, h *hold) {
	held := h.ground.(*lease)
	held.end()
	l.wg.Go(func() {
		missing, err := l.free(held.row)
		if len(missing) > 0 {
			err = errTaken
		}
		l.mu.Lock()
		defer l.unlock()
		l.used--
		en.phase = quiet
		if len(en.line) > 0 {
			en.line[0].asked = en.line[0].patient
		}
		h.left(err)
		l.advance(en)
	})
}
