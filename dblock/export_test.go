package dblock

import (
	"context"
	"syscall"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// Number is the number of the key's lock in the default schema.
func (k Key) Number() int64 { return k.number("pgonce") }

// SetNumber makes the client number its keys by fn.
func (c *Client[TX]) SetNumber(fn func(Key) int64) { c.engine.number = fn }

// SetLimits changes the client's constants. It comes before the first lock.
func (c *Client[TX]) SetLimits(perShard int, slice, rush time.Duration) {
	c.engine.limits.perShard, c.engine.limits.slice, c.engine.limits.rush = perShard, slice, rush
}

// Used is how many locks the client counts on the server, and how many keys it knows.
func (c *Client[TX]) Used() (locks, keys int) {
	c.engine.mu.Lock()
	defer c.engine.mu.Unlock()
	return c.engine.used, len(c.engine.entries)
}

// The masks of a lock's companions.
const (
	CompanionExclusive = companionExclusive
	CompanionAny       = companionAny
)

// InLine is how many callers of this process wait for the key.
func (c *Client[TX]) InLine(k Key) int {
	c.engine.mu.Lock()
	defer c.engine.mu.Unlock()
	if en := c.engine.entries[c.engine.number(k)]; en != nil {
		return len(en.line)
	}
	return 0
}

// OnTheirWay is how many keys are being asked for, and how many are held and not being given back.
func (c *Client[TX]) OnTheirWay() (asked, held int) {
	c.engine.mu.Lock()
	defer c.engine.mu.Unlock()
	for _, s := range c.engine.sessions() {
		asked, held = asked+s.asked, held+len(s.holds)
	}
	return asked, held
}

// SetHandOver changes for how long a lock is handed over in memory.
func (c *Client[TX]) SetHandOver(d time.Duration) { c.engine.limits.handOver = d }

// WatchHandles does what a heartbeat does for handles that are not watched yet.
func (c *Client[TX]) WatchHandles() {
	c.engine.mu.Lock()
	defer c.engine.mu.Unlock()
	for _, s := range c.engine.sessions() {
		s.watchHandles()
	}
}

// Beat renews all leases at once.
func (c *Client[TX]) Beat() {
	l := c.engine.kind.(*leases)
	l.mu.Lock()
	var rows []row
	for _, held := range l.held {
		rows = append(rows, held.row)
	}
	l.mu.Unlock()
	if _, err := l.renew(rows); err != nil {
		panic(err)
	}
}

// SessionOf is the session that the lock was granted on, by its liveness lock.
func SessionOf[TX any](l *Lock[TX]) int64 { return l.tenure.hold.ground.(*session).alone }

// What sessions are asked, for tests that change it on the way.
const (
	SQLTake        = sqlTake
	SQLTakeShared  = sqlTakeShared
	SQLTakeOne     = sqlTakeOne
	SQLUnlock      = sqlUnlock
	SQLDrop        = sqlDrop
	SQLDropShared  = sqlDropShared
	SQLQueue       = sqlQueue
	SQLQueueShared = sqlQueueShared
	SQLOwn         = sqlOwn
	SQLHeld        = sqlHeld
	SQLFence       = sqlFence
)

// Restore is what must never be done: it brings a lock back that was lost, if nobody wants it at the moment.
func (c *Client[TX]) Restore(l *Lock[TX]) bool {
	e, h := c.engine, l.tenure.hold
	e.mu.Lock()
	defer e.unlock()
	en := e.entries[h.entry.number]
	if en == nil {
		en = h.entry
		e.entries[en.number] = en
	}
	if en.phase != quiet || en.hold != nil || len(en.line) > 0 {
		return false
	}
	s := &session{engine: e, conn: deadSession{}, alone: h.ground.(*session).alone, epoch: h.epoch, sent: e.now()}
	s.ctx, s.cut = context.WithCancel(context.WithoutCancel(e.ctx))
	again := &hold{entry: en, ground: s, epoch: h.epoch, shared: h.shared, sequence: h.sequence, local: h.local, since: e.now()}
	s.holds = map[*hold]struct{}{again: {}}
	s.begin()
	en.hold = again
	e.used++
	return true
}

// Join is what a session asks for to be one of those that may draw tokens, in the default schema.
func Join() (sql string, gate, members int64) {
	return sqlJoin, pg.LockNumber("pgonce.dblock.gate", pg.DefaultSchema), pg.LockNumber("pgonce.dblock.members", pg.DefaultSchema)
}

// deadSession is one that has ended.
type deadSession struct{ pg.Session }

func (deadSession) Socket() syscall.RawConn                  { return nil }
func (deadSession) Run(context.Context, pg.Stmt) error       { return errGone }
func (deadSession) RunAll(context.Context, ...pg.Stmt) error { return errGone }
func (deadSession) Close(context.Context) error              { return nil }
