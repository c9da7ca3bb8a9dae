package dblock

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// session is one connection of ours with the locks that it holds: a shard, which never waits for a lock, or
// one for waiting.
type session struct {
	engine *engine
	conn   pg.Session
	waiter bool
	pid    int64
	alone  int64 // the liveness lock: a number that nobody else uses
	epoch  int64
	ctx    context.Context // of its trips
	cut    context.CancelFunc

	// Under the engine's mutex.
	lost    *loss // terminal: it is out of all lists, and has no holds
	holds   map[*hold]struct{}
	asked   int           // keys it is being asked for
	queue   []*op         // to be sent
	leading bool          // somebody is sending
	blocked bool          // it waits in the server's queue
	halt    chan struct{} // somebody asks the server to cancel that wait, and closes it then; else nil
	sent    time.Duration // when the last request that was answered was sent
	begun   time.Duration // when the leader began with the batch under way
	slice   time.Duration // its lock_timeout; of full length while it connects, where one waits for others that do
	timer   *time.Timer
	watched int32 // by the engine's watch, under this number
	hungup  bool  // the server has closed the connection while we waited on it
}

// loss is how a session ended.
type loss struct {
	kind LossKind
	err  error
}

var (
	errGone   = errors.New("session lost")                         // the request was on such a one
	errHangup = errors.New("the server has closed the connection") // and nothing was being asked
)

// alive reports whether the server has surely not given the session's locks to others because of
// silence. It asks the clock: after a freeze of this process a timer is late.
func (s *session) alive() bool { return s.lost == nil && s.left() > 0 }

// left is how long the session is good for without another answer.
func (s *session) left() time.Duration { return s.sent + s.engine.life() - s.engine.now() }

// connect opens a session and makes it ours: settings, epoch, liveness. The mutex is not held.
func (e *engine) connect(ctx context.Context, waiter bool) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, pg.NetTimeout(ctx))
	defer cancel()
	conn, err := e.db(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	s := &session{engine: e, conn: conn, waiter: waiter, holds: map[*hold]struct{}{}, slice: defaultLimits.slice}
	s.alone = rand.Int64() //nolint:gosec // it has to be unused, not secret
	if err := s.prepare(ctx); err != nil {
		_ = conn.Close(ctx)
		return nil, err
	}
	s.ctx, s.cut = context.WithCancel(context.WithoutCancel(e.ctx))
	return s, nil
}

func (s *session) prepare(ctx context.Context) error {
	f, err := factsOf(ctx, s.conn)
	if err != nil {
		return err
	}
	if err := f.check(); err != nil {
		return err
	}
	s.pid = f.pid
	s.sent = s.engine.now()
	cfg := s.engine.cfg
	name := sessionName{tag: sessionTag(cfg.Schema, s.alone), ttl: cfg.TTL, holder: cfg.Holder}
	var alone bool
	var found int64
	err = s.conn.RunAll(ctx,
		pg.Stmt{SQL: sqlSettings, Args: []any{millis(cfg.TTL), millis(s.slice), name.String()}},
		serverSettings(cfg.TTL, s.slice),
		pg.Stmt{SQL: s.engine.sql.epoch, Dest: []any{&s.epoch}, Rows: &found},
		pg.Stmt{SQL: sqlAlive, Args: []any{s.alone}, Dest: []any{&alone}})
	if err != nil {
		return s.explain(err)
	}
	if !alone {
		return fmt.Errorf("%w: a random lock is taken", ErrUnsupported)
	}
	if found == 0 {
		if err := s.conn.Run(ctx, pg.Stmt{SQL: s.engine.sql.newEpoch}); err != nil {
			return s.explain(err)
		}
		if err := s.conn.Run(ctx, pg.Stmt{SQL: s.engine.sql.epoch, Dest: []any{&s.epoch}}); err != nil {
			return s.explain(err)
		}
	}
	return s.join(ctx)
}

// join makes the session one of those that may draw tokens.
func (s *session) join(ctx context.Context) error {
	e := s.engine
	var shared, left bool
	err := s.conn.Run(ctx, pg.Stmt{SQL: e.sql.join, Args: []any{e.gate, e.members}, Dest: []any{&shared, &left}})
	if err != nil {
		return s.explain(err)
	}
	if !shared || !left {
		return fmt.Errorf("%w: lock %d is taken by somebody else", ErrUnsupported, e.members)
	}
	if err := s.conn.Run(ctx, pg.Stmt{SQL: sqlReady}); err != nil {
		return s.explain(err)
	}
	return nil
}

func (s *session) explain(err error) error {
	return publicError(pg.ExplainSchema(s.engine.cfg.Schema, err))
}

// serverSettings bound what idle_session_timeout does not: a request of which the end never comes. The server counts a session as
// idle from its answer to the first whole message of the next request, and after that message it reads on for ever.
//
// None of them may end a session before the TTL, counted from when the server last heard of us: its holders still count on it then. So they
// also stand in the way of shorter ones of the server's or the role's.
//   - A host that has vanished: the connection is given up after four quarters of the TTL, rounded up to seconds.
//   - Answers that are not acknowledged: after the TTL.
//   - A process that is frozen while its kernel still answers: transaction_timeout (Postgres 17), which a wait in the server's queue, cut into
//     slices, does not reach. Before 17 nothing ends it; a batch is one write(), so that it takes a freeze in the middle of that.
func serverSettings(ttl, slice time.Duration) pg.Stmt {
	quarter := strconv.FormatInt(int64((ttl+4*time.Second-1)/(4*time.Second)), 10)
	names := "{tcp_keepalives_idle,tcp_keepalives_interval,tcp_keepalives_count,tcp_user_timeout,transaction_timeout}"
	values := "{" + strings.Join([]string{quarter, quarter, "3", millis(ttl), millis(ttl + slice)}, ",") + "}"
	return pg.Stmt{SQL: sqlServerSettings, Args: []any{names, values}}
}

// millis is a duration as a setting of the server. Zero would be no limit.
func millis(d time.Duration) string { return strconv.FormatInt(max(1, d.Milliseconds()), 10) }

// begin starts the session's clockwork. The mutex is held.
func (s *session) begin() {
	s.timer = time.AfterFunc(s.beat(), s.tick)
	s.engine.watch.add(s)
}

// beat is the pause between two looks at the session.
func (s *session) beat() time.Duration { return min(s.engine.cfg.TTL, pg.NetTimeout(s.ctx)) / 3 }

// tick sees to it that a silent session sends a heartbeat, and one that gets no answer is given up.
func (s *session) tick() {
	e := s.engine
	e.mu.Lock()
	defer e.unlock()
	if s.lost != nil {
		return
	}
	s.watchHandles()
	beat := s.beat()
	switch quiet := e.now() - s.sent; {
	case s.blocked:
	case !s.alive(), s.leading && e.now()-s.begun > pg.NetTimeout(s.ctx):
		e.lose(s, LostSilence, nil)
		return
	case quiet < e.cfg.TTL/3:
		beat = min(beat, e.cfg.TTL/3-quiet)
	case s.leading:
		beat = min(s.left(), e.cfg.TTL/10)
	case s.superfluous():
		e.lose(s, LostClosed, nil)
		return
	default:
		e.send(s, &op{kind: opBeat})
		beat = min(beat, s.left())
	}
	s.timer.Reset(max(beat, time.Millisecond))
}

// superfluous reports a session that nobody uses and that can be had again: all but one shard.
func (s *session) superfluous() bool {
	if len(s.holds) > 0 || s.asked > 0 || len(s.queue) > 0 {
		return false
	}
	return s.waiter && slices.Contains(s.engine.idle, s) || !s.waiter && len(s.engine.shards) > 1 && !s.engine.opening
}

// trip sends statements and waits for the answers, at most until the session's locks count as lost. It is for what
// tick does not see to. The mutex is not held.
func (s *session) trip(stmts ...pg.Stmt) (sent time.Duration, err error) {
	e := s.engine
	sent = e.now()
	ctx, cancel := context.WithTimeout(s.ctx, min(e.life(), pg.NetTimeout(s.ctx)))
	defer cancel()
	return sent, s.conn.RunAll(ctx, stmts...)
}

// answered notes that a request was answered that was sent at the given time. An answer that comes when the locks
// already count as lost does not bring them back: their holders may have been told.
func (s *session) answered(sent time.Duration) {
	if !s.blocked && !s.alive() {
		s.engine.lose(s, LostSilence, nil)
		return
	}
	s.sent = sent
}

// lose ends a session and every tenure on it. It comes from silence, from the end of the connection and from
// Close, and it is terminal: another session never brings these locks back.
func (e *engine) lose(s *session, kind LossKind, err error) {
	if s.lost != nil {
		return
	}
	s.lost = &loss{kind, err}
	s.timer.Stop()
	e.watch.remove(s)
	e.forget(s)
	for h := range s.holds {
		e.used--
		en := h.entry
		en.hold = nil
		for _, t := range h.tenures {
			t.lose(kind, err)
		}
		h.left(errGone)
	}
	switch {
	case s.blocked:
		e.interrupt(s) // whoever waits on it closes it
	case s.leading:
		if kind == LostClosed {
			s.timer = time.AfterFunc(pg.NetTimeout(s.ctx), s.cut) // the server may have fallen silent
		} else {
			s.cut() // whoever leads closes it
		}
	default:
		e.wg.Go(s.shut)
	}
	for h := range s.holds {
		e.advance(h.entry)
	}
	clear(s.holds)
}

// hungUp is what the kernel says of a session. Whoever waits on it reads from it, and hears the reason.
func (e *engine) hungUp(s *session) {
	s.hungup = true
	if !s.blocked {
		e.lose(s, LostConnection, errHangup)
	}
}

// forget takes a session out of the lists.
func (e *engine) forget(s *session) {
	same := func(o *session) bool { return o == s }
	e.shards = slices.DeleteFunc(e.shards, same)
	e.idle = slices.DeleteFunc(e.idle, same)
	if !s.waiter {
		return
	}
	e.waiters--
	for h := range s.holds {
		if h.entry.waiter == s {
			h.entry.waiter = nil
		}
	}
	e.unparkNext()
}

// shut closes the connection. Where it still answers, its locks are given back first, so that others find them
// free when it returns.
func (s *session) shut() {
	s.timer.Stop()
	ctx := pg.WithNetTimeout(s.ctx, time.Second)
	if s.lost.kind == LostClosed {
		tctx, cancel := pg.TripContext(ctx)
		_ = s.conn.Run(tctx, pg.Stmt{SQL: sqlDropAll})
		cancel()
	}
	_ = s.conn.Close(ctx)
	s.cut()
}
