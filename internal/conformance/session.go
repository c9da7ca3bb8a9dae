//go:build unix

package conformance

import (
	"context"
	"testing"
	"time"

	"github.com/pgonce/pgonce/internal/fault"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

func seamSession[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	d := c.Open(t, db, 2).Driver
	s, err := d.Session(t.Context())
	noErr(t, err)
	noErr(t, s.Run(t.Context(), pg.Stmt{SQL: `SELECT pg_advisory_lock(1)`}))
	var one, two, three int64
	noErr(t, s.RunAll(t.Context(), pg.Stmt{SQL: `SELECT 1`, Dest: []any{&one}}, pg.Stmt{SQL: `SELECT 2`, Dest: []any{&two}}))
	err = s.RunAll(t.Context(), pg.Stmt{SQL: `SELECT 1 / $1::int`, Args: []any{0}}, pg.Stmt{SQL: `SELECT 3`, Dest: []any{&three}})
	if !pg.Rejected(err) || one != 1 || two != 2 || three != 0 {
		t.Errorf("several statements: %d, %d, %d, %v", one, two, three, err)
	}
	if socket := s.Socket(); socket != nil { // which a client library need not give away
		noErr(t, socket.Control(func(uintptr) {}))
	}

	result := make(chan error, 1)
	go func() { result <- s.Run(t.Context(), pg.Stmt{SQL: `SELECT pg_sleep(601)`}) }()
	pgtest.Eventually(t, "the session is busy", func() bool {
		select {
		case err := <-result:
			t.Fatalf("the session is not busy: %v", err)
		default:
		}
		return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_sleep(601)%' AND pid <> pg_backend_pid() AND state = 'active'`) == 1
	})
	noErr(t, s.Cancel(t.Context()))
	if err := <-result; pg.Code(err) != "57014" {
		t.Errorf("cancelled statement: got %v, want 57014", err)
	}
	wantInt(t, "the lock outlives a cancelled statement", db.Int(t, locksHeld), 1)
	noErr(t, s.Close(t.Context()))
	pgtest.Eventually(t, "closing ends the server's session", func() bool { return db.Int(t, locksHeld) == 0 })
}

// The network swallows what a session or a query sends. The end of ctx ends the wait, although no
// answer ever comes.
func seamSilentNetwork[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	proxy := fault.New(t, db.URL)
	d := c.Open(t, db.Via(proxy.URL()), 1).Driver
	mute := func(q pg.Querier) (ctx context.Context) {
		var pid int64
		noErr(t, q.Run(t.Context(), pg.Stmt{SQL: pg.SQLBackendPID, Dest: []any{&pid}}))
		proxy.Arm(pid, fault.MuteNext)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	s, err := d.Session(t.Context())
	noErr(t, err)
	if err := s.Run(mute(s), pg.Stmt{SQL: `SELECT 1`}); err == nil || pg.Rejected(err) {
		t.Errorf("session: got %v", err)
	}
	_ = s.Close(t.Context()) // there may be nobody left to say goodbye to

	for _, err = range d.Pool().Query(mute(d.Pool()), `SELECT 1`) {
	}
	if err == nil || pg.Rejected(err) {
		t.Errorf("query: got %v", err)
	}
	noErr(t, d.Pool().Run(t.Context(), pg.Stmt{SQL: `SELECT 1`})) // the only connection was given up

	for _, end := range []func(pg.OwnedTx[TX], context.Context){pg.OwnedTx[TX].Rollback, pg.OwnedTx[TX].Abandon} {
		var pid int64
		tx, err := d.Begin(t.Context(), "", pg.Stmt{ // the server learns of the end by a limit of its own
			SQL: `SELECT pg_backend_pid(), set_config('idle_in_transaction_session_timeout', '1s', true)`, Dest: []any{&pid, new(string)},
		})
		noErr(t, err)
		proxy.Arm(pid, fault.MuteNext)
		end(tx, pg.WithNetTimeout(t.Context(), time.Second))
		noErr(t, d.Pool().Run(t.Context(), pg.Stmt{SQL: `SELECT 1`})) // so was this one
	}
}

const locksHeld = `SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
	WHERE locktype = 'advisory' AND d.datname = current_database()`
