//go:build unix

package dblock_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/fault"
	"github.com/pgonce/pgonce/internal/localpg"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/migrations"
)

// saboteur does something to the connection or the server right before a statement is sent, once.
type saboteur struct {
	pg.Driver[pgx.Tx]
	text string // of the statement
	skip atomic.Int64
	hit  atomic.Bool
	do   func(s pg.Stmt, run func(pg.Stmt) error) error
}

func (s *saboteur) Pool() pg.Querier { return sabotaged{s.Driver.Pool(), s} }

type sabotaged struct {
	pg.Querier
	by *saboteur
}

func (q sabotaged) Run(ctx context.Context, s pg.Stmt) error {
	run := func(s pg.Stmt) error { return q.Querier.Run(ctx, s) }
	if !strings.Contains(s.SQL, q.by.text) || q.by.skip.Add(-1) >= 0 || q.by.hit.Swap(true) {
		return run(s)
	}
	return q.by.do(s, run)
}

// The answer to an acquire, a heartbeat or a release is lost, with the connection, after the server has done what it was asked to. The nonce
// tells what became of it; the caller notices nothing, and nothing is left behind.
func TestLeaseAnswersLost(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{"acquire": "pgonce_row", "heartbeat": "FOR NO KEY UPDATE", "release": "pgonce_gone"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			proxy := fault.New(t, b.URL)
			cfg := b.Via(proxy.URL()).Config(t)
			cfg.MaxConns = 1
			cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false } // whose answer would be the lost one
			pool := b.Open(t, cfg)
			var pid int64
			if err := pool.QueryRow(t.Context(), pg.SQLBackendPID).Scan(&pid); err != nil {
				t.Fatal(err)
			}
			s := &saboteur{Driver: pgxdriver.New(pool), text: text, do: func(s pg.Stmt, run func(pg.Stmt) error) error {
				proxy.Arm(pid, fault.CutAnswer)
				err := run(s)
				if err == nil {
					t.Error("the answer was not lost")
				}
				return err
			}}
			cfgOfLeases := &dblock.Config{TTL: 5 * time.Second}
			c := leasesOf(t, s, cfgOfLeases)
			l := acquire(t, c, "1", nil)
			pgtest.Eventually(t, "the answer is lost", func() bool { return name == "release" || s.hit.Load() })
			began := time.Now()
			pgtest.Eventually(t, "two TTLs", func() bool { return name != "heartbeat" || time.Since(began) > 10*time.Second })
			if l.Err() != nil {
				t.Error(l.Err())
			}
			if n := b.rows(t); n != 1 {
				t.Errorf("%d rows", n)
			}
			release(t, l)
			if !s.hit.Load() {
				t.Error("no answer was lost")
			}
			if n := b.rows(t); n != 0 {
				t.Errorf("%d rows are left", n)
			}
			release(t, acquire(t, b.leases(t, nil), "1", nil))
		})
	}
}

// The answer to a grant takes longer than the lease lasts. The row is given back, and the key asked for again.
func TestLeaseGrantedTooLate(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const ttl = 4 * time.Second // a slow machine has to answer within it the second time
	s := &saboteur{Driver: pgxdriver.New(b.pool), text: "pgonce_row", do: func(s pg.Stmt, run func(pg.Stmt) error) error {
		err := run(s)
		<-time.After(ttl)
		return err
	}}
	c := leasesOf(t, s, &dblock.Config{TTL: ttl})
	first := int64(0)
	l := acquire(t, c, "1", nil)
	if err := b.pool.QueryRow(t.Context(), `SELECT nonce FROM pgonce.lease`).Scan(&first); err != nil {
		t.Error(err)
	}
	if left := l.Remaining(); left <= 0 || !s.hit.Load() {
		t.Errorf("%v left, and the answer was late: %t", left, s.hit.Load())
	}
	release(t, l)
	if n := b.rows(t); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}

// The network swallows everything. The holder is told by the clock, before the server gives the lock to
// anybody else.
func TestLeaseBlackHole(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	proxy := fault.New(t, b.URL)
	cfg := b.Via(proxy.URL()).Config(t)
	cfg.MaxConns = 1
	pool := b.Open(t, cfg)
	c := leasesOf(t, pgxdriver.New(pool), &dblock.Config{TTL: 2 * time.Second})
	other := b.leases(t, nil)
	l := acquire(t, c, "1", nil)
	told := make(chan struct{})
	context.AfterFunc(l.Context(), func() { close(told) })
	var pid int64
	if err := pool.QueryRow(t.Context(), pg.SQLBackendPID).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	proxy.Arm(pid, fault.MuteNext)
	proxy.Refuse()
	next := acquire(t, other, "1", nil)
	if l.Context().Err() == nil {
		t.Error("the next holder had it before the first one could know")
	}
	<-told
	if e := lost(t, l); e.Kind != dblock.LostSilence || l.Err() == nil {
		t.Errorf("got %v", e)
	}
	if next.Token() <= l.Token() {
		t.Error("the token went backwards")
	}
	if _, err := c.Acquire(within(t), key("2"), nil); !errors.Is(err, dblock.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	release(t, next)
}

// Every backend of the pool is killed. Leases live on: no session holds them.
func TestLeasesOutliveTheirConnections(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.leases(t, &dblock.Config{TTL: 4 * time.Second})
	l := acquire(t, c, "1", nil)
	for range 5 {
		b.KillOthers(t)
		release(t, acquire(t, c, "2", nil))
	}
	began := time.Now()
	pgtest.Eventually(t, "two TTLs", func() bool { return time.Since(began) > 8*time.Second })
	release(t, l)
}

// All connections are in use, in transactions of the caller's. Callers are told so, and heartbeats go on when there is one again.
func TestLeasesWithoutAConnection(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	cfg := b.Config(t)
	cfg.MaxConns = 1
	pool := b.Open(t, cfg)
	c := leasesOf(t, pgxdriver.New(pool), &dblock.Config{TTL: 4 * time.Second})
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.TryAcquire(within(t), key("1"), nil); !errors.Is(err, dblock.ErrUnavailable) || !contains(err, "raise MaxConns") {
		t.Errorf("got %v", err)
	}
	conn.Release()
	release(t, acquire(t, c, "1", nil))
}

// Tokens grow across everything that the sequence and the epoch's row do not survive, and it may come at any
// moment in the life of a client.
func TestLeaseTokensSurviveWhatTheSequenceDoesNot(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]string{
		"promoted":            `UPDATE pgonce.epoch SET timeline = timeline - 1`,
		"in another cluster":  `UPDATE pgonce.epoch SET cluster = cluster + 1`,
		"in another database": `UPDATE pgonce.epoch SET database = database + 1`,
		"dropped and created": `UPDATE pgonce.epoch SET sequence = sequence + 1`,
		"timeline back":       `UPDATE pgonce.epoch SET timeline = timeline + 5`,
		"forgotten":           `UPDATE pgonce.epoch SET base = base + 1, timeline = timeline - 1`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			a, c := b.leases(t, nil), b.leases(t, nil)
			var last dblock.Token
			for round := range 3 {
				for _, c := range []*client{a, c} {
					l := acquire(t, c, "1", nil)
					if l.Token() <= last && name != "promoted" {
						t.Errorf("round %d: token %d after %d", round, l.Token(), last)
					}
					last = l.Token()
					release(t, l)
				}
				before := b.Int(t, `SELECT base + timeline FROM pgonce.epoch`)
				b.Exec(t, change+`; SELECT setval('pgonce.fence', 1)`)
				if name == "promoted" {
					before = b.Int(t, `SELECT base + timeline FROM pgonce.epoch`)
				}
				release(t, acquire(t, a, "2", nil))
				if after := b.Int(t, `SELECT base + timeline FROM pgonce.epoch`); after <= before {
					t.Errorf("round %d: the epoch went from %d to %d", round, before, after)
				}
			}
		})
	}
}

// crashable is a server that keeps what it has flushed, and nothing else, and a way to crash it.
func crashable(t *testing.T) (pool *pgxpool.Pool, crash func()) {
	t.Helper()
	pgtest.New(t) // skips where there is no server to start, and watches for leaks
	srv, err := localpg.Start(&localpg.Config{Durable: true, Settings: map[string]string{"wal_writer_delay": "10s", "max_connections": "50"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Stop(); err != nil {
			t.Error(err)
		}
	})
	cfg, err := pgxpool.ParseConfig(srv.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.ConnConfig.RuntimeParams["synchronous_commit"] = "off" // which leases have to override
	pool, err = pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if _, err := migrations.UpPool(t.Context(), pool, nil); err != nil {
		t.Fatal(err)
	}
	return pool, func() {
		t.Helper()
		var pid int
		witness, err := pgx.Connect(t.Context(), srv.URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		conn, err := pgx.Connect(t.Context(), srv.URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.QueryRow(t.Context(), pg.SQLBackendPID).Scan(&pid); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close(t.Context())
		pgtest.Eventually(t, "the server has noticed", func() bool { return witness.Ping(t.Context()) != nil })
		pgtest.Eventually(t, "the server is back", func() bool {
			conn, err := pgx.Connect(t.Context(), srv.URL("postgres"))
			if err != nil {
				return false
			}
			defer func() { _ = conn.Close(t.Context()) }()
			return conn.Ping(t.Context()) == nil
		})
	}
}

// The server crashes between grants, again and again, and the client does not know. Tokens grow, though others have drawn numbers
// that were never flushed, and though the role does not wait for the flush of its commits; and what was held is held still.
func TestLeaseTokensSurviveACrash(t *testing.T) {
	t.Parallel()
	pool, crash := crashable(t)
	c := leasesOf(t, pgxdriver.New(pool), &dblock.Config{TTL: time.Minute})
	held := acquire(t, c, "held", nil)
	last := held.Token()
	for round := range 4 {
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// A window of numbers is logged and not flushed; the next token comes out of it.
		if _, err := conn.Exec(t.Context(), `BEGIN; SELECT max(nextval('pgonce.fence')) FROM generate_series(1, 40); ROLLBACK`); err != nil {
			t.Fatal(err)
		}
		conn.Release()
		l := acquire(t, c, fmt.Sprint(round), nil)
		if l.Token() <= last {
			t.Errorf("round %d: token %d after %d", round, l.Token(), last)
		}
		last = l.Token()
		number := int64(last>>10) & (1<<38 - 1)
		crash()
		var behind int64
		pgtest.Eventually(t, "the server answers", func() bool {
			return pool.QueryRow(t.Context(), `SELECT last_value FROM pgonce.fence`).Scan(&behind) == nil
		})
		if behind < number {
			t.Errorf("round %d: the crash forgot number %d: the sequence is at %d", round, number, behind)
		}
		release(t, l)
	}
	if _, err := c.TryAcquire(within(t), key("held"), nil); !errors.Is(err, dblock.ErrNotAcquired) {
		t.Errorf("got %v", err)
	}
	other := leasesOf(t, pgxdriver.New(pool), nil)
	if _, err := other.TryAcquire(within(t), key("held"), nil); !errors.Is(err, dblock.ErrNotAcquired) {
		t.Errorf("got %v", err)
	}
	release(t, held)
}
