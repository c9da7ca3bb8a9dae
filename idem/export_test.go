package idem

import (
	"context"
	"time"
)

// The statements of the purge that have to read their pages only.
const (
	SQLPurgeDelete = sqlPurgeDelete
	SQLPurgeClear  = sqlPurgeClear
	SQLPurgeLook   = sqlPurgeLook
)

// The statements of a new key.
const (
	SQLGuard  = sqlGuard
	SQLLookup = sqlLookup
	SQLInsert = sqlInsert
)

// The statements that store a step, and look for one.
const (
	SQLStore   = sqlStore
	SQLStoreTx = sqlStoreTx
	SQLStep    = sqlStep
)

// MaintainTurn is one turn of a Maintain that has just come, as worker me, and how long it would wait.
func MaintainTurn[TX any](ctx context.Context, s *Store[TX], me int64) (time.Duration, error) {
	return (&maintenance[TX]{store: s, me: me}).turn(ctx)
}

// Followers is how many calls of the store wait in memory.
func Followers[TX any](s *Store[TX]) (n int) {
	s.queue.mu.Lock()
	defer s.queue.mu.Unlock()
	for _, l := range s.queue.lines {
		n += len(l.followers)
	}
	return n
}

// LookEvery makes the store's completer look more often than once a second.
func LookEvery[TX any](s *Store[TX], d time.Duration) { s.look = d }

// Downstream is what a step is called to the other side.
func Downstream(k Key, schema, step string, round int64) string {
	return k.downstream(schema, step, round)
}
