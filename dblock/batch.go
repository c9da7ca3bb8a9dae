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

// op is one thing asked of a session that answers at once.
type op struct {
	kind   opKind
	number int64
	not    *session // anywhere but here

	// What it is about, and what is done about the answer, under the mutex.
	engine  *engine
	entry   *entry
	request *request
	hold    *hold
	done    func(*op, *session, result)

	// The answer, noted by whoever leads.
	got      int
	sequence int64
}

type opKind int

// The kinds, in the order in which the server is asked.
const (
	opDrop opKind = iota
	opDropShared
	opTake
	opTakeShared
	opPeek
	opBeat // nothing, to be heard
)

func (k opKind) takes() bool { return k == opTake || k == opTakeShared }
func (k opKind) drops() bool { return k == opDrop || k == opDropShared }

// of is the kind for a shared lock, if it is one.
func (k opKind) of(shared bool) opKind {
	if shared {
		return k + 1
	}
	return k
}

// result is the server's answer to an op.
type result struct {
	got      int // 1: it is as it was asked for; else what sqlTake, sqlDrop or sqlPeek say
	sequence int64
	err      error
}

// place sends an op to a shard with room, and opens one if there is none.
func (e *engine) place(o *op) {
	if e.closed {
		o.done(o, nil, result{err: ErrClosed})
		return
	}
	for _, s := range e.shards {
		if s != o.not && (!o.kind.takes() || len(s.holds)+s.asked < e.limits.perShard) {
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
			o.done(o, nil, result{err: err})
		}
		return
	}
	s.begin()
	e.shards = append(e.shards, s)
	for _, o := range ops {
		e.place(o)
	}
}

// send queues an op on a session. If nobody is sending there, somebody begins to when the mutex is let go: it takes
// all that has come by then in one request, and what comes meanwhile in the next.
func (e *engine) send(s *session, o *op) {
	if s.lost != nil {
		o.done(o, s, result{err: errGone})
		return
	}
	if o.kind.takes() {
		s.asked++
	}
	s.queue = append(s.queue, o)
	if !s.leading && !s.blocked {
		s.leading, s.begun = true, e.now()
		e.wg.Add(1)
		e.leaderless = append(e.leaderless, s)
	}
}

// lead sends until there is nothing to send. A caller that leads sends one batch, which has what he wants, and
// leaves the rest to a goroutine.
func (s *session) lead(caller bool) {
	e := s.engine
	e.mu.Lock()
	defer e.unlock()
	for n := 0; s.lost == nil && len(s.queue) > 0; n++ {
		if caller && n > 0 {
			e.leaderless = append(e.leaderless, s)
			return
		}
		n := min(len(s.queue), e.limits.perBatch)
		batch := s.queue[:n:n]
		s.queue = s.queue[n:]
		s.begun = e.now()
		var a *answers
		e.without(func() { a = s.ask(batch) })
		s.finish(batch, a)
	}
	s.leading = false
	defer e.wg.Done()
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
		case a.err != nil && o.kind.drops():
			return result{got: 1} // settled: it is given back
		case a.err != nil:
			return result{err: a.err}
		}
		return result{got: o.got, sequence: o.sequence}
	})
}

func (s *session) finishEach(batch []*op, resultOf func(*op) result) {
	for _, o := range batch {
		if o.kind.takes() {
			s.asked--
		}
	}
	for _, o := range batch {
		if o.done != nil {
			o.done(o, s, resultOf(o))
		}
	}
}

// answers are what the server said to a batch, but for what its ops note.
type answers struct {
	session *session
	sent    time.Duration
	err     error
	gone    bool // the session is no good any more
}

// ask sends a batch in one request, and settles it if anything is wrong with the answer: then every key of it
// is unknown, and whatever the session holds of them is given back.
func (s *session) ask(batch []*op) *answers {
	a := &answers{session: s}
	switch o := batch[0]; {
	case len(batch) == 1 && o.kind == opTake:
		a.takeOne(o)
	case len(batch) == 1 && o.kind == opDrop:
		a.dropOne(o)
	default:
		a.askAll(batch)
	}
	if a.err == nil {
		a.check(batch)
	}
	if a.err != nil && !a.gone {
		a.settle(batch)
	}
	return a
}

// run sends the statements of one request. How long that may take is seen to by tick.
func (a *answers) run(stmts ...pg.Stmt) {
	s := a.session
	a.sent = s.engine.now()
	a.err = s.conn.RunAll(s.ctx, stmts...)
	a.gone = a.err != nil && !pg.Rejected(a.err)
}

// takeOne is a batch of one key, which costs the server half of what an array of one does.
func (a *answers) takeOne(o *op) {
	var got int64
	a.run(pg.Stmt{
		SQL: a.session.engine.sql.takeOne, Args: []any{o.number, o.number ^ companionMask(false)}, Dest: []any{&got},
	})
	o.got, o.sequence = int(min(got, 1)), max(got, 0)
}

func (a *answers) dropOne(o *op) {
	var held bool
	a.run(pg.Stmt{SQL: sqlUnlock, Args: []any{o.number}, Dest: []any{&held}})
	o.got = btoi(held)
}

func (a *answers) askAll(batch []*op) {
	var said [opBeat]saying
	var pid int64
	stmts := make([]pg.Stmt, 0, 2)
	for kind := range opBeat {
		if keys := said[kind].keys(batch, kind); keys != "" {
			stmts = append(stmts, said[kind].stmt(a.session.engine.sql.batch[kind], kind, keys))
		}
	}
	if len(stmts) == 0 {
		stmts = append(stmts, pg.Stmt{SQL: pg.SQLBackendPID, Dest: []any{&pid}})
	}
	a.run(stmts...)
	if pid != 0 && pid != a.session.pid {
		a.err, a.gone = ErrSessionNotPinned, true
	}
	for kind := range opBeat {
		if a.err == nil {
			a.err = said[kind].note(batch, kind)
		}
	}
}

// saying is what the server says of the keys of one kind.
type saying struct {
	asked, ones int64
	others      string
	sequence    int64
}

// keys is the text of their array, or nothing.
func (y *saying) keys(batch []*op, kind opKind) string {
	text := []byte{'{'}
	for _, o := range batch {
		if o.kind == kind {
			y.asked++
			text = append(strconv.AppendInt(text, o.number, 10), ',')
		}
	}
	if y.asked == 0 {
		return ""
	}
	text[len(text)-1] = '}'
	return string(text)
}

func (y *saying) stmt(sql string, kind opKind, keys string) pg.Stmt {
	st := pg.Stmt{SQL: sql, Args: []any{keys}, Dest: []any{&y.ones, &y.others}}
	if kind.takes() {
		st.Args = append(st.Args, companionMask(kind == opTakeShared))
		st.Dest = append(st.Dest, &y.sequence)
	}
	return st
}

// note notes the answers with the ops that they are for. Each key is counted or named, or else nobody knows what
// became of it.
func (y *saying) note(batch []*op, kind opKind) error {
	named := map[int64]int{}
	for pair := range strings.SplitSeq(y.others, ",") {
		number, got, _ := strings.Cut(pair, ":")
		n, err1 := strconv.ParseInt(number, 10, 64)
		g, err2 := strconv.Atoi(got)
		if err1 == nil && err2 == nil {
			named[n] = g
		}
	}
	found := y.ones
	for _, o := range batch {
		if o.kind != kind {
			continue
		}
		o.got, o.sequence = 1, y.sequence
		if got, ok := named[o.number]; ok {
			o.got = got
			found++
		}
	}
	if found != y.asked {
		return fmt.Errorf("the server said of %d locks what became of them, and was asked for %d", found, y.asked)
	}
	return nil
}

// check sees to it that what is given back had been held.
func (a *answers) check(batch []*op) {
	for _, o := range batch {
		if o.kind.drops() && o.got != 1 {
			a.err, a.gone = fmt.Errorf("%w: the server did not have lock %d", ErrNotHeld, o.number), true
		}
	}
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
	return []int64{number, number ^ companionAny, number ^ companionExclusive}
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
