package dblock

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// op is one thing asked of a session that answers at once. What it is about stays with the caller, in done,
// which runs under the mutex.
type op struct {
	kind   opKind
	number int64
	shared bool
	not    *session // anywhere but here
	done   func(*session, result)
}

type opKind int

const (
	opTake opKind = iota
	opDrop
	opPeek
	opBeat // nothing, to be heard
)

// result is the server's answer to an op.
type result struct {
	got      int // of sqlTake, sqlDrop or sqlPeek
	sequence int64
	err      error
}

// place sends an op to a shard with room, and opens one if there is none.
func (e *engine) place(o *op) {
	if e.closed {
		o.done(nil, result{err: ErrClosed})
		return
	}
	for _, s := range e.shards {
		if s != o.not && (o.kind != opTake || len(s.holds)+s.asked < e.limits.perShard) {
			e.send(s, o)
			return
		}
	}
	e.homeless = append(e.homeless, o)
	if !e.opening {
		e.opening = true
		e.wg.Go(e.openShard)
	}
}

// openShard connects one more shard for the ops that found no room.
func (e *engine) openShard() {
	s, err := e.connect(e.ctx, false)
	e.mu.Lock()
	defer e.unlock()
	e.opening = false
	ops := e.homeless
	e.homeless = nil
	if err == nil && e.closed {
		e.wg.Go(func() { _ = s.conn.Close(s.ctx) })
		err = ErrClosed
	}
	if err != nil {
		for _, o := range ops {
			o.done(nil, result{err: err})
		}
		return
	}
	s.begin()
	e.shards = append(e.shards, s)
	for _, o := range ops {
		e.place(o)
	}
}

// send queues an op on a session. If nobody is sending there, somebody begins to: it takes all that has
// come by then in one request, and what comes meanwhile in the next.
func (e *engine) send(s *session, o *op) {
	if s.lost != nil {
		o.done(s, result{err: errGone})
		return
	}
	if o.kind == opTake {
		s.asked++
	}
	s.queue = append(s.queue, o)
	if !s.leading && !s.blocked {
		s.leading = true
		e.wg.Go(s.lead)
	}
}

// lead sends until there is nothing to send.
func (s *session) lead() {
	e := s.engine
	e.mu.Lock()
	defer e.unlock()
	for s.lost == nil && len(s.queue) > 0 {
		n := min(len(s.queue), e.limits.perBatch)
		batch := s.queue[:n:n]
		s.queue = s.queue[n:]
		e.unlock()
		a := s.ask(batch)
		e.mu.Lock()
		s.finish(batch, a)
	}
	s.leading = false
	if s.lost == nil {
		return
	}
	rest := s.queue
	s.queue = nil
	s.finishEach(rest, func(*op) result { return result{err: errGone} })
	e.wg.Go(s.shut)
}

// finish tells every op of a batch what became of it. If the session is lost, a grant in the answer is lost with it.
func (s *session) finish(batch []*op, a *answers) {
	e := s.engine
	if a.err == nil {
		s.answered(a.sent)
	} else if a.gone {
		e.lose(s, lossKind(a.err), a.err)
	}
	s.finishEach(batch, func(o *op) result {
		switch {
		case s.lost != nil:
			return result{err: errGone}
		case a.err != nil && o.kind == opDrop:
			return result{got: 1} // settled: it is given back
		case a.err != nil:
			return result{err: a.err}
		}
		return result{got: a.of(o), sequence: a.sequence}
	})
}

func (s *session) finishEach(batch []*op, resultOf func(*op) result) {
	for _, o := range batch {
		if o.kind == opTake {
			s.asked--
		}
	}
	for _, o := range batch {
		if o.done != nil {
			o.done(s, resultOf(o))
		}
	}
}

// answers are what the server said to a batch.
type answers struct {
	session  *session
	sent     time.Duration
	got      [opBeat]map[int64]int // by kind
	sequence int64
	err      error
	gone     bool // the session is no good any more
}

// ask sends a batch in one request, and settles it if anything is wrong with the answer: then every key of it
// is unknown, and whatever the session holds of them is given back.
func (s *session) ask(batch []*op) *answers {
	a := &answers{session: s}
	var texts [opBeat]string
	var pid int64
	stmts := make([]pg.Stmt, 0, 2)
	for kind := opTake; kind < opBeat; kind++ {
		keys, shared := arrays(batch, kind)
		if keys == "" {
			continue
		}
		switch text := &texts[kind]; kind {
		case opTake:
			stmts = append(stmts, pg.Stmt{SQL: s.engine.sql.take, Args: []any{keys, shared, int64(companionExclusive), int64(companionShared)}, Dest: []any{text, &a.sequence}})
		case opDrop:
			stmts = append(stmts, pg.Stmt{SQL: sqlDrop, Args: []any{keys, shared}, Dest: []any{text}})
		case opPeek:
			stmts = append(stmts, pg.Stmt{SQL: sqlPeek, Args: []any{keys}, Dest: []any{text}})
		case opBeat:
		}
	}
	if len(stmts) == 0 {
		stmts = append(stmts, pg.Stmt{SQL: pg.SQLBackendPID, Dest: []any{&pid}})
	}
	a.sent, a.err = s.trip(stmts...)
	switch {
	case a.err != nil:
		a.gone = !pg.Rejected(a.err)
	case pid != 0 && pid != s.pid:
		a.err, a.gone = ErrSessionNotPinned, true
	default:
		a.read(batch, texts)
	}
	if a.err != nil && !a.gone {
		a.settle(batch)
	}
	return a
}

// read takes the answers apart. Each key of the batch must be there, and what is given back must have been held.
func (a *answers) read(batch []*op, texts [opBeat]string) {
	for kind, text := range texts {
		a.got[kind] = map[int64]int{}
		for pair := range strings.SplitSeq(text, ",") {
			number, got, _ := strings.Cut(pair, ":")
			n, err1 := strconv.ParseInt(number, 10, 64)
			g, err2 := strconv.Atoi(got)
			if err1 == nil && err2 == nil {
				a.got[kind][n] = g
			}
		}
	}
	for _, o := range batch {
		if o.kind == opBeat {
			continue
		}
		switch got, ok := a.got[o.kind][o.number]; {
		case !ok:
			a.err = fmt.Errorf("the server did not say what became of lock %d", o.number)
		case o.kind == opDrop && got == 0:
			a.err, a.gone = fmt.Errorf("%w: the server did not have lock %d", ErrNotHeld, o.number), true
		}
	}
}

func (a *answers) of(o *op) int {
	if o.kind == opBeat {
		return 1
	}
	return a.got[o.kind][o.number]
}

// settle gives back whatever the session holds of the batch. If that fails, the session is lost, and all
// of its locks with it.
func (a *answers) settle(batch []*op) {
	var keys []int64
	for _, o := range batch {
		if o.kind != opBeat {
			keys = append(keys, withCompanions(o.number)...)
		}
	}
	sent, err := a.session.settle(keys)
	if err != nil {
		a.err, a.gone = errors.Join(a.err, err), true
		return
	}
	a.sent = sent
	a.err = a.session.explain(a.err)
}

// withCompanions is a key's number with those of its companions.
func withCompanions(number int64) []int64 {
	return []int64{number, number ^ companionExclusive, number ^ companionShared}
}

// settle gives back whatever the session holds of some numbers. The mutex is not held.
func (s *session) settle(numbers []int64) (sent time.Duration, err error) {
	for part := range slices.Chunk(numbers, s.engine.limits.perBatch) {
		var list strings.Builder
		for _, n := range part {
			appendNumber(&list, n)
		}
		sent, err = s.trip(pg.Stmt{SQL: sqlSettle, Args: []any{"{" + list.String() + "}"}, Dest: []any{new(int64)}})
		if err != nil {
			return 0, err
		}
	}
	return sent, nil
}

// arrays are the keys of one kind, and their modes, as the text of Postgres arrays.
func arrays(batch []*op, kind opKind) (keys, shared string) {
	var k, m strings.Builder
	for _, o := range batch {
		if o.kind != kind {
			continue
		}
		appendNumber(&k, o.number)
		if m.Len() > 0 {
			m.WriteByte(',')
		}
		m.WriteByte("ft"[btoi(o.shared)])
	}
	if k.Len() == 0 {
		return "", ""
	}
	return "{" + k.String() + "}", "{" + m.String() + "}"
}

func appendNumber(b *strings.Builder, n int64) {
	if b.Len() > 0 {
		b.WriteByte(',')
	}
	b.WriteString(strconv.FormatInt(n, 10))
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
