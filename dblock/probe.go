package dblock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// oldest is the first version that ends idle sessions (idle_session_timeout), on which a holder that has
// fallen silent depends.
const oldest = 140000

// facts are what a session says of its server.
type facts struct {
	pid, version, room int64
	standby            bool
}

func factsOf(ctx context.Context, q pg.Querier) (f facts, err error) {
	err = q.Run(ctx, pg.Stmt{SQL: sqlFacts, Dest: []any{&f.pid, &f.version, &f.standby, &f.room}})
	switch {
	case pg.Rejected(err):
		return f, fmt.Errorf("%w: %w", ErrUnsupported, err)
	case err != nil:
		return f, unavailable(err)
	}
	return f, nil
}

func (f facts) check() error {
	switch {
	case f.version < oldest:
		return fmt.Errorf("%w: version %d.%d, this needs Postgres 14 or newer", ErrUnsupported, f.version/10000, f.version%10000)
	case f.standby:
		return ErrReadOnly
	}
	return nil
}

// probe finds out by two bare sessions whether advisory locks of sessions hold here, and leaves nothing
// behind on them.
func (e *engine) probe(ctx context.Context) (f facts, err error) {
	ctx, cancel := context.WithTimeout(ctx, pg.NetTimeout(ctx))
	defer cancel()
	a, err := e.db(ctx)
	if err != nil {
		return f, unavailable(err)
	}
	defer func() { _ = a.Close(ctx) }()
	if f, err = factsOf(ctx, a); err != nil {
		return f, err
	}
	if err := f.check(); err != nil {
		return f, err
	}
	b, err := e.db(ctx)
	if err != nil {
		return f, unavailable(err)
	}
	defer func() { _ = b.Close(ctx) }()
	if err := pinned(ctx, a, b, f.pid); err != nil {
		return f, err
	}
	if err = excludes(ctx, a, b); errors.Is(err, ErrUnsupported) { // or it only seems so
		err = cmp.Or(pinned(ctx, a, b, f.pid), pinned(ctx, a, b, f.pid), err)
	}
	return f, err
}

// excludes holds the server's advisory locks to what they must do. Some databases have functions of that name that
// lock nothing.
func excludes(ctx context.Context, a, b pg.Session) error {
	canary := rand.Int64() //nolint:gosec // a number that nobody else uses
	for _, step := range []struct {
		session pg.Session
		sql     string
		want    bool
	}{
		{a, sqlAlive, true},
		{b, sqlAlive, false},  // it excludes
		{b, sqlUnlock, false}, // nobody gives back what he does not have
		{a, sqlUnlock, true},
		{b, sqlAlive, true}, // others get it then
		{a, sqlAlive, false},
		{b, sqlUnlock, true},
	} {
		if err := expect(ctx, step.session, step.sql, canary, step.want); err != nil {
			return err
		}
	}
	return nil
}

// expect runs a function of one lock, and refuses another answer than the one a server must give.
func expect(ctx context.Context, q pg.Querier, sql string, number int64, want bool) error {
	var got bool
	err := q.Run(ctx, pg.Stmt{SQL: sql, Args: []any{number}, Dest: []any{&got}})
	switch {
	case pg.Rejected(err):
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	case err != nil:
		return unavailable(err)
	case got != want:
		return fmt.Errorf("%w: its advisory locks do not exclude: %s said %t", ErrUnsupported, sql, got)
	}
	return nil
}

// pinned finds out whether two sessions are two server processes, and stay so while both are busy. A
// pooler in transaction mode gives one that is free to whoever asks: so b is asked first, when the process of a
// is free. And a is asked again and again for as long as b is busy: where others are at work, or where
// the pooler takes its connections in turns, a may get the same one once, but not each time. It has to be known before
// the first lock is taken: a lock on a pooler's connection stays there, and nobody could give it back.
func pinned(ctx context.Context, a, b pg.Session, pid int64) error {
	var aPID, bPID int64
	asked := make(chan error, 1)
	go func() { asked <- b.Run(ctx, pg.Stmt{SQL: sqlBusyPID, Dest: []any{&bPID}}) }()
	pause := time.NewTicker(headStart)
	defer pause.Stop()
	var err, bErr error
	for n, busy := 0, true; err == nil && (busy || n < asks); n++ {
		select {
		case bErr = <-asked:
			busy, asked = false, nil
		case <-pause.C:
		case <-ctx.Done():
		}
		err = a.Run(ctx, pg.Stmt{SQL: pg.SQLBackendPID, Dest: []any{&aPID}})
		if err == nil && aPID != pid {
			break
		}
	}
	if asked != nil {
		bErr = <-asked
	}
	if err := errors.Join(err, bErr); err != nil {
		return unavailable(err)
	}
	if aPID != pid || bPID == pid {
		return ErrSessionNotPinned
	}
	return alone(ctx, a, b, pid, bPID)
}

// alone asks both in an order in which neither a pooler that gives out what came back last, nor one that takes turns, can
// answer as two server processes do. It catches the one that has just two, of which b had the other one while it was busy.
func alone(ctx context.Context, a, b pg.Session, aPID, bPID int64) error {
	for range 3 {
		for _, s := range []struct {
			session pg.Session
			pid     int64
		}{{a, aPID}, {b, bPID}, {b, bPID}, {a, aPID}} {
			var pid int64
			if err := s.session.Run(ctx, pg.Stmt{SQL: pg.SQLBackendPID, Dest: []any{&pid}}); err != nil {
				return unavailable(err)
			}
			if pid != s.pid {
				return ErrSessionNotPinned
			}
		}
	}
	return nil
}

const (
	headStart = 2 * time.Millisecond // by which b is asked earlier than a, and between two questions; b is busy for 50
	asks      = 10                   // at least, on a server or a network that is slow
)
