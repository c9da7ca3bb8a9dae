package idem

import (
	"context"
	"slices"
	"sync"
	"time"
)

// queue makes the callers of one key in one process wait for each other in memory, first come
// first served. One of them leads: it alone asks the server. If it learns the answer, all get it.
// If it fails for a reason of its own, exactly one of the others takes the lead.
//
// It is a matter of cost, not of safety: that a key executes once is the server's doing.
type queue struct {
	mu    sync.Mutex
	lines map[identity]*line
}

// line is the callers of one key.
type line struct {
	busy      bool      // somebody is executing the key: here, or in another process
	since     time.Time // when that was found out
	followers []*follower
}

// follower is a caller that waits for its leader.
type follower struct {
	patient bool         // stays while the key is busy
	word    chan verdict // has room for the one word that it gets
}

// verdict is what a follower is told.
type verdict struct {
	lead *turn // it is its turn
	rec  record
	err  error
	age  time.Duration // of the execution that is in the way
}

// turn is the lead of a line. All of its verbs may be called again, and do nothing once it is over.
type turn struct {
	queue *queue
	key   identity
	line  *line
	over  bool
}

// join returns the verdict at once for the first caller of a key, who leads. The others wait: for as
// long as patience while the key is busy, and for as long as ctx in any case. A leader that is
// only looking is waited for without patience, as the caller's own look would be.
func (q *queue) join(ctx context.Context, key identity, patience time.Duration) verdict {
	q.mu.Lock()
	l := q.lines[key]
	if l == nil {
		if q.lines == nil {
			q.lines = map[identity]*line{}
		}
		l = &line{}
		q.lines[key] = l
		q.mu.Unlock()
		return verdict{lead: &turn{queue: q, key: key, line: l}}
	}
	if l.busy && patience <= 0 {
		age := time.Since(l.since)
		q.mu.Unlock()
		return verdict{err: ErrInFlight, age: age}
	}
	f := &follower{patient: patience > 0, word: make(chan verdict, 1)}
	l.followers = append(l.followers, f)
	q.mu.Unlock()
	return q.await(ctx, l, f, patience)
}

func (q *queue) await(ctx context.Context, l *line, f *follower, patience time.Duration) verdict {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	expired := timer.C
	for {
		select {
		case v := <-f.word:
			return v
		case <-ctx.Done():
			return q.leave(l, f, context.Cause(ctx))
		case <-expired:
			expired = nil
			if !q.losePatience(l, f) {
				return q.leave(l, f, ErrInFlight)
			}
		}
	}
}

// losePatience reports whether the follower may stay nevertheless, since nobody is known to
// execute the key.
func (q *queue) losePatience(l *line, f *follower) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	f.patient = false
	return !l.busy
}

// leave takes a follower out of its line. If the lead was given to it in that moment, it
// goes to the next one.
func (q *queue) leave(l *line, f *follower, err error) verdict {
	q.mu.Lock()
	l.followers = slices.DeleteFunc(l.followers, func(o *follower) bool { return o == f })
	age := time.Since(l.since)
	q.mu.Unlock()
	select {
	case v := <-f.word:
		if v.lead == nil {
			return v
		}
		v.lead.pass()
	default:
	}
	return verdict{err: err, age: age}
}

// busy says that the key is being executed, so that those who will not wait for that can go.
func (t *turn) busy() {
	t.queue.mu.Lock()
	defer t.queue.mu.Unlock()
	if t.over || t.line.busy {
		return
	}
	t.line.busy, t.line.since = true, time.Now()
	t.line.followers = slices.DeleteFunc(t.line.followers, func(f *follower) bool {
		if !f.patient {
			f.word <- verdict{err: ErrInFlight}
		}
		return !f.patient
	})
}

// answer ends the line with what every follower is told.
func (t *turn) answer(rec record, err error) {
	t.queue.mu.Lock()
	defer t.queue.mu.Unlock()
	if t.over {
		return
	}
	t.over = true
	delete(t.queue.lines, t.key)
	if len(t.line.followers) > 0 {
		rec = rec.forOthers()
	}
	for _, f := range t.line.followers {
		f.word <- verdict{rec: rec, err: err}
	}
	t.line.followers = nil
}

// pass gives the lead to the next in line.
func (t *turn) pass() {
	t.queue.mu.Lock()
	defer t.queue.mu.Unlock()
	if t.over {
		return
	}
	t.over = true
	t.line.busy = false
	if len(t.line.followers) == 0 {
		delete(t.queue.lines, t.key)
		return
	}
	next := t.line.followers[0]
	t.line.followers = t.line.followers[1:]
	next.word <- verdict{lead: &turn{queue: t.queue, key: t.key, line: t.line}}
}
