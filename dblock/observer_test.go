//go:build unix

package dblock_test

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// observer asks the server all the time which sessions are there. It is also who kills them, so that what it
// kills and why sessions die is told by one clock.
type observer struct {
	url  string
	now  func() int64
	hist *history
	kill <-chan uint64 // random numbers
	stop <-chan struct{}

	before int64 // when it last asked
}

const sqlSessions = `SELECT pid, array_agg((classid::bigint << 32) | objid::bigint) FROM pg_locks
	WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) GROUP BY pid`

// sqlKill kills one of the sessions, and says which locks it has: one of them is its liveness lock.
const sqlKill = `WITH victim AS MATERIALIZED (SELECT * FROM (` + sqlSessions + `) AS s (pid, numbers) ORDER BY md5(pid::text || $1) LIMIT 1)
	SELECT numbers, pg_terminate_backend(pid) FROM victim`

// run observes until it is told to stop, and has seen everything that it killed go.
func (o *observer) run(ctx context.Context, t *testing.T) {
	t.Helper()
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(ctx)
		}
	}()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for stopped := false; ; {
		var err error
		if conn == nil {
			if conn, err = pgx.Connect(ctx, o.url); err != nil {
				conn = nil
			}
		}
		if conn != nil {
			if err = o.look(ctx, conn); err != nil {
				_ = conn.Close(ctx)
				conn = nil
			}
		}
		if stopped && err == nil && o.settled() {
			return
		}
		select {
		case <-ctx.Done():
			t.Error("the observer was never done: ", context.Cause(ctx), err)
			return
		case <-o.stop:
			if !stopped {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, time.Minute)
				defer cancel()
			}
			stopped, o.kill = true, nil
			<-tick.C
		case n := <-o.kill:
			if conn != nil {
				o.strike(ctx, conn, n)
			}
		case <-tick.C:
		}
	}
}

// look notes who is there.
func (o *observer) look(ctx context.Context, conn *pgx.Conn) error {
	asked := o.now()
	rows, _ := conn.Query(ctx, sqlSessions)
	there := map[int64]bool{}
	var pid int64
	var numbers []int64
	_, err := pgx.ForEachRow(rows, []any{&pid, &numbers}, func() error {
		for _, n := range numbers {
			there[n] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	answered := o.now()
	for n := range there {
		s := o.hist.sessions[n]
		if s == nil {
			s = &sighting{born: o.before}
			o.hist.sessions[n] = s
		}
		s.seen, s.gone = asked, 0
	}
	for n, s := range o.hist.sessions {
		if !there[n] && s.gone == 0 {
			s.gone = answered
		}
	}
	o.before = asked
	return nil
}

// strike kills a session.
func (o *observer) strike(ctx context.Context, conn *pgx.Conn, n uint64) {
	f := cause{at: o.now()}
	var killed bool
	if err := conn.QueryRow(ctx, sqlKill, strconv.FormatUint(n, 10)).Scan(&f.sessions, &killed); err == nil && killed {
		o.hist.blame(f)
		for _, n := range f.sessions {
			if o.hist.sessions[n] == nil {
				o.hist.sessions[n] = &sighting{born: o.before}
			}
			o.hist.sessions[n].seen = f.at
		}
	}
}

// settled reports whether all that was struck is gone. Nobody holds a key by now, so that goes for their numbers, too.
func (o *observer) settled() bool {
	o.hist.mu.Lock()
	defer o.hist.mu.Unlock()
	for _, f := range o.hist.causes {
		for _, n := range f.sessions {
			if o.hist.sessions[n].gone == 0 {
				return false
			}
		}
	}
	return true
}
