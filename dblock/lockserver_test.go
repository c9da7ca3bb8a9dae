package dblock

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// lockServer is a model of the server's session advisory locks, which several sessions hold and wait for, as
// the server's documentation has it: first come first served, shared ones together, a try that fails behind a
// waiter it conflicts with.
type lockServer struct {
	mu       sync.Mutex
	locks    map[int64]*serverLock
	sessions []*lockSession
	sequence int64
	refuse   bool // takes no connections
	exhaust  int  // so many takes run out of memory, after they have taken their keys
	betray   int  // so many waits end in a time-out although they were granted
}

type serverLock struct {
	held  map[*lockSession]*[2]int // how often: exclusively, shared
	queue []*serverWait
}

type serverWait struct {
	session *lockSession
	shared  bool
	answer  chan error
}

// lockSession is one session on it.
type lockSession struct {
	server  *lockServer
	pid     int64
	alone   int64
	timeout time.Duration
	cancel  chan struct{} // of the wait under way
	killed  chan struct{}
}

var errKilled = errors.New("connection reset")

func refusal(code string) error { return &pg.Error{Code: code, Err: errors.New(code)} }

func (v *lockServer) connect(context.Context) (pg.Session, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.refuse {
		return nil, errNoServer
	}
	return v.open(), nil
}

func (v *lockServer) open() *lockSession {
	s := &lockSession{server: v, pid: int64(100 + len(v.sessions)), killed: make(chan struct{})}
	v.sessions = append(v.sessions, s)
	return s
}

func (v *lockServer) lock(n int64) *serverLock {
	l := v.locks[n]
	if l == nil {
		l = &serverLock{held: map[*lockSession]*[2]int{}}
		v.locks[n] = l
	}
	return l
}

// conflicts reports whether another session holds the lock in a mode that excludes this one.
func (l *serverLock) conflicts(s *lockSession, shared bool) bool {
	for o, n := range l.held {
		if o != s && (n[0] > 0 || !shared) {
			return true
		}
	}
	return false
}

func (l *serverLock) grant(s *lockSession, shared bool) {
	if l.held[s] == nil {
		l.held[s] = &[2]int{}
	}
	l.held[s][btoi(shared)]++
}

func (l *serverLock) try(s *lockSession, shared bool) bool {
	has := l.held[s] != nil && l.held[s][btoi(shared)] > 0
	ahead := slices.ContainsFunc(l.queue, func(w *serverWait) bool { return !w.shared || !shared })
	if !has && (ahead || l.conflicts(s, shared)) {
		return false
	}
	l.grant(s, shared)
	return true
}

func (v *lockServer) unlock(s *lockSession, n int64, shared bool) bool {
	l := v.lock(n)
	c := l.held[s]
	if c == nil || c[btoi(shared)] == 0 {
		return false
	}
	if c[btoi(shared)]--; *c == [2]int{} {
		delete(l.held, s)
	}
	v.wake(l)
	return true
}

// wake grants what can be granted from the front of the queue.
func (v *lockServer) wake(l *serverLock) {
	for len(l.queue) > 0 {
		w := l.queue[0]
		if l.conflicts(w.session, w.shared) {
			return
		}
		l.queue = l.queue[1:]
		l.grant(w.session, w.shared)
		if v.betray > 0 && w.session.alone != 0 {
			v.betray--
			w.answer <- refusal(pg.CodeLockTimeout)
			continue
		}
		w.answer <- nil
	}
}

// end frees all that a session holds.
func (v *lockServer) end(s *lockSession) {
	for _, l := range v.locks {
		delete(l.held, s)
		l.queue = slices.DeleteFunc(l.queue, func(w *serverWait) bool { return w.session == s })
		v.wake(l)
	}
	v.sessions = slices.DeleteFunc(v.sessions, func(o *lockSession) bool { return o == s })
}

func (v *lockServer) kill(s *lockSession) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.end(s)
	close(s.killed)
}

// wait waits in the queue of a lock.
func (s *lockSession) wait(ctx context.Context, n int64, shared bool) error {
	v := s.server
	v.mu.Lock()
	l := v.lock(n)
	if l.try(s, shared) {
		v.mu.Unlock()
		return nil
	}
	w := &serverWait{s, shared, make(chan error, 1)}
	l.queue = append(l.queue, w)
	s.cancel = make(chan struct{}, 1)
	cancel := s.cancel
	v.mu.Unlock()
	timeout := time.NewTimer(s.timeout)
	defer timeout.Stop()
	var err error
	select {
	case err := <-w.answer:
		return err
	case <-s.killed:
		return errKilled
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-timeout.C:
		err = refusal(pg.CodeLockTimeout)
	case <-cancel:
		err = refusal(pg.CodeQueryCanceled)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	l.queue = slices.DeleteFunc(l.queue, func(o *serverWait) bool { return o == w })
	v.wake(l)
	return err // also when it has just been granted: that is the race
}

func (s *lockSession) Cancel(context.Context) error {
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	select {
	case s.cancel <- struct{}{}:
	default:
	}
	return nil
}

func (s *lockSession) Close(context.Context) error {
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	s.server.end(s)
	return nil
}

func (*lockSession) Socket() syscall.RawConn { return nil }
func (*lockSession) Query(context.Context, string, ...any) iter.Seq2[pg.Scan, error] {
	return func(func(pg.Scan, error) bool) {}
}

func (s *lockSession) Run(ctx context.Context, st pg.Stmt) error { return s.RunAll(ctx, st) }

func (s *lockSession) RunAll(ctx context.Context, stmts ...pg.Stmt) error {
	for _, st := range stmts {
		select {
		case <-s.killed:
			return errKilled
		default:
		}
		var err error
		if st.SQL == sqlQueue || st.SQL == sqlQueueShared {
			err = s.wait(ctx, st.Args[0].(int64), st.SQL == sqlQueueShared)
		} else {
			s.server.mu.Lock()
			err = s.run(st)
			s.server.mu.Unlock()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// run is one statement that answers at once.
func (s *lockSession) run(st pg.Stmt) error {
	v := s.server
	switch st.SQL {
	case sqlFacts:
		*st.Dest[0].(*int64), *st.Dest[1].(*int64), *st.Dest[3].(*int64) = s.pid, oldest, 1000
	case sqlSettings:
		s.timeout = setting(st.Args[1])
	case sqlSlice:
		s.timeout = setting(st.Args[0])
	case sqlEpoch:
		*st.Dest[0].(*int64), *st.Rows = 1, 1
	case sqlServerSettings, sqlReady:
	case sqlJoin:
		*st.Dest[0].(*bool), *st.Dest[1].(*bool) = true, true
	case pg.SQLBackendPID:
		*st.Dest[0].(*int64) = s.pid
	case sqlAlive:
		s.alone = st.Args[0].(int64)
		*st.Dest[0].(*bool) = v.lock(s.alone).try(s, false)
	case sqlTake, sqlTakeShared:
		return s.take(st, st.SQL == sqlTakeShared)
	case sqlTakeOne:
		return s.takeOne(st)
	case sqlUnlock:
		*st.Dest[0].(*bool) = v.unlock(s, st.Args[0].(int64), false)
	case sqlDrop, sqlDropShared:
		each(st, func(n int64) int { return btoi(v.unlock(s, n, st.SQL == sqlDropShared)) })
	case sqlPeek:
		each(st, func(n int64) int {
			return btoi(v.lock(n).try(s, true) && v.unlock(s, n, true))
		})
	case sqlDropAll:
		for n := range v.locks {
			s.drop(n)
		}
	case sqlHeld:
		*st.Dest[0].(*int64) = int64(btoi(v.lock(st.Args[0].(int64)).held[s] != nil))
	case sqlSettle:
		for _, n := range numbersOf(st.Args[0]) {
			s.drop(n)
		}
	case sqlOwn:
		free, sequence := s.free(st.Args[0].(int64)), int64(0)
		if free {
			v.sequence++
			sequence = v.sequence
		}
		*st.Dest[0].(*bool), *st.Dest[1].(*int64) = free, sequence
	default:
		return fmt.Errorf("the model does not know %s", st.SQL)
	}
	return nil
}

func (s *lockSession) drop(n int64) {
	for _, shared := range []bool{false, true} {
		for s.server.unlock(s, n, shared) { //nolint:revive // until nothing is left
		}
	}
}

// free reports whether nobody has a number.
func (s *lockSession) free(n int64) bool {
	return s.server.lock(n).try(s, false) && s.server.unlock(s, n, false)
}

func (s *lockSession) take(st pg.Stmt, shared bool) error {
	mask := st.Args[1].(int64)
	each(st, func(n int64) int { return s.takeKey(n, n^mask, shared) })
	s.server.sequence++
	*st.Dest[2].(*int64) = s.server.sequence
	return s.server.memory()
}

func (s *lockSession) takeOne(st pg.Stmt) error {
	got := int64(s.takeKey(st.Args[0].(int64), st.Args[1].(int64), false))
	if got == 1 {
		s.server.sequence++
		got = s.server.sequence
	}
	*st.Dest[0].(*int64) = got
	return s.server.memory()
}

func (s *lockSession) takeKey(n, companion int64, shared bool) int {
	switch v := s.server; {
	case !v.lock(n).try(s, shared):
		return 0
	case !s.free(companion):
		v.unlock(s, n, shared)
		return -1
	}
	return 1
}

// memory is the error of a statement that ran out of it when all was done.
func (v *lockServer) memory() error {
	if v.exhaust > 0 {
		v.exhaust--
		return refusal(pg.CodeOutOfMemory)
	}
	return nil
}

// each counts the keys for which do says 1, and names the others.
func each(st pg.Stmt, do func(n int64) int) {
	var ones int64
	var others []string
	for _, n := range numbersOf(st.Args[0]) {
		if got := do(n); got == 1 {
			ones++
		} else {
			others = append(others, fmt.Sprintf("%d:%d", n, got))
		}
	}
	*st.Dest[0].(*int64), *st.Dest[1].(*string) = ones, strings.Join(others, ",")
}

func numbersOf(arg any) (all []int64) {
	for part := range strings.SplitSeq(strings.Trim(arg.(string), "{}"), ",") {
		n, err := strconv.ParseInt(part, 10, 64)
		if err != nil {
			panic(err)
		}
		all = append(all, n)
	}
	return all
}

func setting(arg any) time.Duration {
	d, err := time.ParseDuration(arg.(string) + "ms")
	if err != nil {
		panic(err)
	}
	return d
}
