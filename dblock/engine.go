package dblock

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// engine is what a client is without the type of the caller's transaction.
//
// One mutex guards all of its state: the table of entries, the sessions, the tenures. Nobody holds it
// while anything is sent, waited for or told; what is to be told is kept until it is let go.
type engine struct {
	cfg    Config
	kind   kind
	db     func(context.Context) (pg.Session, error)
	sql    statements
	limits limits
	began  time.Time       // zero of the engine's clock, which is monotonic
	ctx    context.Context // of all that the engine does by itself; ends when it is closed
	end    context.CancelFunc
	wg     sync.WaitGroup // of all its goroutines
	watch  *watch
	number func(Key) int64
	jitter func(time.Duration) time.Duration // less than it is given, at random

	gate, members int64 // the locks of sqlJoin

	mu         sync.Mutex
	closed     bool
	budget     int // locks that may be on the server
	used       int // locks that are on the server, or asked for
	entries    map[int64]*entry
	shards     []*session // open, each with room or without
	opening    bool       // a shard is being connected
	homeless   []*op      // wait for a shard
	leaderless []*session // somebody has to lead there, counted by wg
	waiters    int        // sessions for waiting: connected, or being so
	idle       []*session // of those, the ones without a key
	parked     []*entry   // want one of those, longest first
	relaxed    []*wait    // on those sessions, in slices of full length
	polling    bool       // somebody asks for the parked ones
	news       []func()   // to be told when the mutex is let go

	bells, lastBell *bell // to ring when the mutex is let go
}

// limits are constants that tests change.
type limits struct {
	perShard  int           // locks on one session: a transaction's end costs the more, the more its session holds
	perBatch  int           // keys in one request, which must fit into 8 KB with its Sync
	handOvers int           // in memory, for one grant of the server
	handOver  time.Duration // the same as a time
	slice     time.Duration // of a wait on the server, which keeps it from cleaning up behind its snapshot
	rush      time.Duration // of a wait while others want the connection
}

var defaultLimits = limits{
	perShard: 1000, perBatch: 300, handOvers: 64, handOver: 2 * time.Millisecond,
	slice: 10 * time.Second, rush: time.Second,
}

// statements are the constants of sql.go for the client's schema.
type statements struct {
	epoch, newEpoch, join, takeOne, own string
	batch                               [opBeat]string
}

func newEngine(ctx context.Context, db func(context.Context) (pg.Session, error), cfg Config) *engine {
	e := &engine{
		cfg: cfg, db: db, limits: defaultLimits, began: time.Now(), entries: map[int64]*entry{},
		number: func(k Key) int64 { return k.number(cfg.Schema) },
		jitter: rand.N[time.Duration],
		gate:   pg.LockNumber("pgonce.dblock.gate", cfg.Schema), members: pg.LockNumber("pgonce.dblock.members", cfg.Schema),
		sql: statements{
			epoch: pg.In(cfg.Schema, sqlEpoch), newEpoch: pg.In(cfg.Schema, sqlNewEpoch), join: pg.In(cfg.Schema, sqlJoin),
			takeOne: pg.In(cfg.Schema, sqlTakeOne), own: pg.In(cfg.Schema, sqlOwn),
			batch: [opBeat]string{
				opDrop: sqlDrop, opDropShared: sqlDropShared, opPeek: sqlPeek,
				opTake: pg.In(cfg.Schema, sqlTake), opTakeShared: pg.In(cfg.Schema, sqlTakeShared),
			},
		},
	}
	e.kind = advisory{e}
	e.ctx, e.end = context.WithCancel(context.WithoutCancel(ctx))
	if db != nil { // there will be sessions
		e.watch = newWatch(e)
	}
	return e
}

// now is the engine's clock.
func (e *engine) now() time.Duration { return time.Since(e.began) }

// margin is how much earlier than the server we count our locks as lost: for clocks that run
// differently, and for the way from knowing to stopping.
func (e *engine) margin() time.Duration { return max(e.cfg.TTL/10, 50*time.Millisecond) }

// life is how long a session counts as alive after the last request that was answered was sent. The
// server begins to count later, when it has answered, and counts for longer.
func (e *engine) life() time.Duration { return e.cfg.TTL - e.margin() }

// unlock lets go of the mutex, tells what there is to tell and has sent what there is to send.
func (e *engine) unlock() { e.unlockAs(false) }

// unlockAs is unlock for a caller who may wait for a trip, so that he can send by himself what he has asked for: it
// saves waking up a goroutine twice.
func (e *engine) unlockAs(leader bool) {
	news, led, bells := e.news, e.leaderless, e.bells
	e.news, e.leaderless, e.bells = nil, nil, nil
	e.mu.Unlock()
	for bells != nil {
		b := bells
		bells, b.next = b.next, nil // or a Lock that is kept after its release would keep all that came later
		close(b.rung)
	}
	defer leadAll(led, leader) // also when Observe panics and the caller recovers: others wait for what is sent there
	for _, tell := range news {
		tell()
	}
}

// without lets go of the mutex while fn runs. It is taken again also when Observe panics on the way: a deferred unlock of a
// mutex that nobody has would end the process in another way.
func (e *engine) without(fn func()) {
	defer e.mu.Lock()
	e.unlock()
	fn()
}

func leadAll(led []*session, caller bool) {
	for i, s := range led {
		if caller && i == len(led)-1 {
			s.lead(true)
			return
		}
		go s.lead(false)
	}
}

// tell keeps an event for [engine.unlock], of what has begun at a time.
func (e *engine) tell(ev Event, began time.Duration) {
	if e.cfg.Observe != nil {
		ev.Took = e.now() - began
		e.news = append(e.news, func() { e.cfg.Observe(ev) })
	}
}

// bell wakes a caller, once. Those that are to ring are a list.
type bell struct {
	rung chan struct{}
	next *bell
}

func newBell() bell { return bell{rung: make(chan struct{})} }

// ring keeps a bell for [engine.unlock]: whoever it wakes wants the mutex.
func (e *engine) ring(b *bell) {
	if e.bells == nil {
		e.bells = b
	} else {
		e.lastBell.next = b
	}
	e.lastBell = b
}

// close refuses new callers, tells those that wait, ends every tenure and gives everything back.
func (e *engine) close(ctx context.Context) error {
	e.mu.Lock()
	if !e.closed {
		e.closed = true
		for _, en := range e.entries {
			for _, r := range en.line {
				e.refuse(r, ErrClosed)
			}
			en.line = nil
		}
		e.kind.shutdown()
		e.end() // dials end; sessions end on a ctx of their own
	}
	func() {
		defer e.watch.close() // without the mutex, which its goroutine may be waiting for
		e.unlock()
	}()
	done := make(chan struct{})
	go func() {
		e.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// sessions are all that are open.
func (e *engine) sessions() []*session {
	all := append([]*session(nil), e.shards...)
	all = append(all, e.idle...)
	for _, en := range e.entries {
		if en.waiter != nil {
			all = append(all, en.waiter)
		}
	}
	return all
}
