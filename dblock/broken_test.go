//go:build unix

package dblock_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/internal/pg"
)

// Locks that are broken on purpose: each is found out, whatever else happens.
func TestBrokenHistoriesAreFoundOut(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*storm){
		"no exclusion between processes": func(s *storm) {
			s.tamper = func(process int, c *client) {
				c.SetNumber(func(k dblock.Key) int64 { return k.Number() + int64(process) })
			}
		},
		"a lock comes back after its loss": func(s *storm) {
			s.keys, s.callers, s.peace, s.tenures = 20, 2, 5, 1000
			s.meddle = func(c *client, l *locked) bool { return c.Restore(l) }
		},
		"a release that is not sent": func(s *storm) {
			s.peace = 1 << 30
			s.driver = tampering(neverGiveBack)
		},
		"tokens from before the grant": func(s *storm) { s.driver = tampering(drawFirst) },
		"a shared lock beside an exclusive one": func(s *storm) {
			s.readers = 50
			s.driver = tampering(shareAll)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := plainStorm
			s.tenures = 500
			change(&s)
			seed := seedOf(t)
			if v, _ := s.run(t, seed).check(false, 2*time.Minute); v != porcupine.Illegal {
				t.Errorf("the history is %v", v)
			}
		})
	}
}

// tampered is a session whose requests are changed on their way.
type tampered struct {
	pg.Session
	change func(context.Context, *tampered, []pg.Stmt) error
	drawn  int64
}

type tamperedDriver struct {
	pg.Driver[pgx.Tx]
	change func(context.Context, *tampered, []pg.Stmt) error
}

func tampering(change func(context.Context, *tampered, []pg.Stmt) error) func(pg.Driver[pgx.Tx]) pg.Driver[pgx.Tx] {
	return func(d pg.Driver[pgx.Tx]) pg.Driver[pgx.Tx] { return tamperedDriver{d, change} }
}

func (d tamperedDriver) Session(ctx context.Context) (pg.Session, error) {
	s, err := d.Driver.Session(ctx)
	if err != nil {
		return nil, err
	}
	return &tampered{Session: s, change: d.change}, nil
}

func (s *tampered) RunAll(ctx context.Context, stmts ...pg.Stmt) error {
	return s.change(ctx, s, stmts)
}

// neverGiveBack answers a release itself.
func neverGiveBack(ctx context.Context, s *tampered, stmts []pg.Stmt) error {
	var rest []pg.Stmt
	for _, st := range stmts {
		switch st.SQL {
		case dblock.SQLUnlock:
			*st.Dest[0].(*bool) = true
		case dblock.SQLDrop, dblock.SQLDropShared:
			*st.Dest[0].(*int64) = int64(strings.Count(st.Args[0].(string), ",") + 1)
		default:
			rest = append(rest, st)
		}
	}
	if len(rest) == 0 {
		return nil
	}
	return s.Session.RunAll(ctx, rest...)
}

// drawFirst draws the token before it asks for the lock.
func drawFirst(ctx context.Context, s *tampered, stmts []pg.Stmt) error {
	for _, st := range stmts {
		if st.SQL != dblock.SQLTake && st.SQL != dblock.SQLTakeShared && st.SQL != dblock.SQLTakeOne && st.SQL != dblock.SQLQueue {
			continue
		}
		if err := s.Run(ctx, pg.Stmt{SQL: `SELECT nextval('"pgonce"."fence"')`, Dest: []any{&s.drawn}}); err != nil {
			return err
		}
		timer := time.NewTimer(time.Duration(s.drawn%4) * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	if err := s.Session.RunAll(ctx, stmts...); err != nil {
		return err
	}
	for _, st := range stmts {
		switch st.SQL {
		case dblock.SQLTake, dblock.SQLTakeShared:
			*st.Dest[2].(*int64) = s.drawn
		case dblock.SQLOwn:
			*st.Dest[1].(*int64) = s.drawn
		case dblock.SQLTakeOne:
			if got := st.Dest[0].(*int64); *got > 0 {
				*got = s.drawn
			}
		}
	}
	return nil
}

// shareAll asks for shared locks only.
func shareAll(ctx context.Context, s *tampered, stmts []pg.Stmt) error {
	for i, st := range stmts {
		switch st.SQL {
		case dblock.SQLTake:
			stmts[i].SQL, stmts[i].Args = dblock.SQLTakeShared, st.Args[:2]
		case dblock.SQLDrop:
			stmts[i].SQL = dblock.SQLDropShared
		case dblock.SQLTakeOne:
			stmts[i].SQL = strings.ReplaceAll(st.SQL, "pg_try_advisory_lock($1", "pg_try_advisory_lock_shared($1")
		case dblock.SQLUnlock:
			stmts[i].SQL = "SELECT pg_advisory_unlock_shared($1::bigint)"
		case dblock.SQLQueue:
			stmts[i].SQL = dblock.SQLQueueShared
		}
	}
	return s.Session.RunAll(ctx, stmts...)
}

// The model tells what a lock may do from what it may not.
func TestLockModel(t *testing.T) {
	t.Parallel()
	get := func(tenure, session int, token dblock.Token) step {
		return step{kind: granted, tenure: tenure, session: session, token: token}
	}
	share := func(s step) step { s.shared = true; return s }
	end := func(tenure, session int) step { return step{kind: ended, tenure: tenure, session: session} }
	told := func(tenure, session int) step { return step{kind: ended, tenure: tenure, session: session, told: true} }
	struck := func(s step) step { s.struck = true; return s }
	die := func(session int) step { return step{kind: died, session: session} }
	timely := func(s step) step { s.timely = true; return s }
	busy := step{kind: refused}
	for name, tc := range map[string]struct {
		steps []step
		ok    bool
	}{
		"one after the other":              {[]step{get(1, 1, 1), end(1, 1), get(2, 2, 2), busy, end(2, 2)}, true},
		"two at once":                      {[]step{get(1, 1, 1), get(2, 2, 2)}, false},
		"a token that does not grow":       {[]step{get(1, 1, 2), end(1, 1), get(2, 2, 2)}, false},
		"an end twice":                     {[]step{get(1, 1, 1), end(1, 1), end(1, 1)}, false},
		"refused by nobody":                {[]step{get(1, 1, 1), end(1, 1), busy}, false},
		"shared":                           {[]step{share(get(1, 1, 2)), share(get(2, 2, 1)), end(1, 1), busy, end(2, 2), get(3, 1, 3)}, true},
		"exclusive beside shared":          {[]step{share(get(1, 1, 1)), share(get(2, 2, 2)), end(1, 1), get(3, 1, 3)}, false},
		"shared beside exclusive":          {[]step{get(1, 1, 1), share(get(2, 2, 2))}, false},
		"shared with an old token":         {[]step{get(1, 1, 2), end(1, 1), share(get(2, 2, 1))}, false},
		"exclusive with that of a reader":  {[]step{share(get(1, 1, 2)), end(1, 1), get(2, 2, 1)}, false},
		"a death frees":                    {[]step{get(1, 1, 1), die(1), get(2, 2, 2), struck(told(1, 1)), end(2, 2)}, true},
		"a death frees shared ones":        {[]step{share(get(1, 1, 1)), share(get(2, 2, 2)), die(1), end(2, 2), get(3, 3, 3)}, true},
		"a death of another session":       {[]step{get(1, 1, 1), die(3), get(2, 2, 2)}, false},
		"unheard of, and handed over":      {[]step{get(1, 1, 1), die(1), get(2, 2, 1<<10), end(1, 1), get(3, 1, 2), end(3, 1), end(2, 2)}, true},
		"heard of, and handed over":        {[]step{get(1, 1, 1), die(1), struck(told(1, 1)), get(2, 1, 2)}, false},
		"told before it happened":          {[]step{get(1, 1, 1), struck(told(1, 1)), die(1)}, false},
		"handed over after the TTL":        {[]step{get(1, 1, 1), timely(die(1)), end(1, 1), get(2, 1, 2)}, false},
		"given up by itself":               {[]step{get(1, 1, 1), told(1, 1), get(2, 2, 2)}, true},
		"given up by itself, handed over":  {[]step{get(1, 1, 1), told(1, 1), get(2, 1, 2)}, false},
		"two of a session that is alive":   {[]step{get(1, 1, 1), end(1, 1), get(2, 1, 2), get(3, 2, 3), die(1)}, false},
		"dead, and others beside another":  {[]step{get(1, 1, 1), die(1), get(2, 2, 2), get(3, 3, 3)}, false},
		"a shared one dead, others beside": {[]step{share(get(1, 1, 1)), die(1), get(2, 2, 2), share(get(3, 1, 1)), busy, end(3, 1), end(2, 2), get(4, 3, 3)}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var ops []porcupine.Operation
			for i, s := range tc.steps {
				ops = append(ops, porcupine.Operation{Input: s, Call: int64(2 * i), Return: int64(2*i + 1)})
			}
			if got := porcupine.CheckOperations(lockModel, ops); got != tc.ok {
				t.Errorf("got %t", got)
			}
		})
	}
}
