//go:build unix

package dblock_test

import (
	"fmt"
	"slices"
	"strings"

	"github.com/anishathalye/porcupine"
	"github.com/pgonce/pgonce/dblock"
)

// step is one thing that became of one lock, at some moment between two times. Sessions and tenures are numbered
// within a history.
type step struct {
	kind    stepKind
	key     int
	token   dblock.Token
	tenure  int
	session int
	shared  bool

	// told, of an end: the process says that the lock was lost.
	told bool

	// struck, of an end: by the end of the connection, for which there was a reason.
	struck bool

	// timely, of a death: the server had to wait for the TTL, so the process knows by its clock.
	timely bool
}

type stepKind int

const (
	granted stepKind = iota
	ended
	refused // somebody had it
	died    // the server took the session apart, and the lock with it
)

func (s step) String() string {
	kind := [...]string{"granted", "ended", "refused", "died"}[s.kind]
	return fmt.Sprintf("%s key=%d tenure=%d session=%d token=%d shared=%t told=%t struck=%t", kind, s.key, s.tenure, s.session, s.token, s.shared, s.told, s.struck)
}

// lockState is a lock, and what is known of the sessions that could have it. Sets are strings, so that states
// can be compared.
type lockState struct {
	writer, session int          // 0: nobody
	readers         string       // pairs of tenure and session
	exclusive, last dblock.Token // the greatest of an exclusive tenure, and of any
	dead            string       // sessions that the server has ended, whose process may not know
	told            string       // sessions whose process knows
	timely          string       // of the dead ones, those whose process must know
}

func has(set string, n int) bool { return strings.ContainsRune(set, rune(n)) }

func with(set string, n int) string {
	if has(set, n) {
		return set
	}
	runes := append([]rune(set), rune(n))
	slices.Sort(runes)
	return string(runes)
}

// lockModel is a lock as it must be.
//
// One exclusive tenure at a time or many shared ones; the token of an exclusive one is greater than all before, that of a shared
// one greater than that of each exclusive one before. The server can end a session, at one moment for the key, and
// with it the tenures there. From that moment until its process knows, which is the limit of a lock without a fence, tenures on
// that session say nothing: others have the lock by then. Once a process knows, it must not give
// out anything on that session. Everything else is exact.
var lockModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		keys := map[int][]porcupine.Operation{}
		for _, op := range history {
			k := op.Input.(step).key
			keys[k] = append(keys[k], op)
		}
		for _, ops := range keys {
			parts = append(parts, ops)
		}
		return parts
	},
	Init: func() any { return lockState{} },
	Step: func(state, input, _ any) (bool, any) {
		s, in := state.(lockState), input.(step)
		switch in.kind {
		case granted:
			return s.grant(in)
		case ended:
			return s.end(in)
		case died:
			return true, s.die(in)
		default:
			return s.writer != 0 || s.readers != "", s
		}
	},
	DescribeOperation: func(input, _ any) string { return input.(step).String() },
	DescribeState:     func(state any) string { return fmt.Sprintf("%+q", fmt.Sprint(state)) },
}

func (s lockState) grant(in step) (bool, lockState) {
	switch {
	case has(s.told, in.session) || has(s.timely, in.session):
		return false, s
	case has(s.dead, in.session):
		return true, s
	case s.writer != 0:
		return false, s
	case in.shared:
		ok := in.token > s.exclusive
		s.read(in.tenure, in.session)
		s.last = max(s.last, in.token)
		return ok, s
	}
	ok := s.readers == "" && in.token > s.last
	s.writer, s.session = in.tenure, in.session
	s.exclusive, s.last = in.token, in.token
	return ok, s
}

func (s lockState) end(in step) (bool, lockState) {
	if in.told {
		s.told = with(s.told, in.session)
	}
	switch {
	case has(s.dead, in.session):
		return true, s
	case in.struck:
		return false, s // it cannot know before it has happened
	case s.writer == in.tenure:
		s.writer, s.session = 0, 0
		return true, s
	}
	before := s.readers
	s.drop(func(tenure, _ int) bool { return tenure == in.tenure })
	return s.readers != before, s
}

func (s lockState) die(in step) lockState {
	s.dead = with(s.dead, in.session)
	if in.timely {
		s.timely = with(s.timely, in.session)
	}
	if s.session == in.session {
		s.writer, s.session = 0, 0
	}
	s.drop(func(_, session int) bool { return session == in.session })
	return s
}

// read puts a reader in. They are kept in one order, so that it does not matter in which they came.
func (s *lockState) read(tenure, session int) {
	pairs := slices.Collect(slices.Chunk(append([]rune(s.readers), rune(tenure), rune(session)), 2))
	slices.SortFunc(pairs, func(a, b []rune) int { return int(a[0] - b[0]) })
	s.readers = string(slices.Concat(pairs...))
}

// drop takes readers out.
func (s *lockState) drop(gone func(tenure, session int) bool) {
	runes, left := []rune(s.readers), []rune(nil)
	for pair := range slices.Chunk(runes, 2) {
		if !gone(int(pair[0]), int(pair[1])) {
			left = append(left, pair...)
		}
	}
	s.readers = string(left)
}
