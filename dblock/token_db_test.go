//go:build unix

package dblock_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/migrations"
)

// Tokens go on growing when the sequence falls back, as it does by pg_upgrade and by a restore into another
// cluster, another database or in place; and the epoch grows by a promotion, before the first token after it.
func TestTokensSurviveWhatTheSequenceDoesNot(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]string{
		"promoted":            `UPDATE pgonce.epoch SET timeline = timeline - 1`,
		"in another cluster":  `UPDATE pgonce.epoch SET cluster = cluster + 1`,
		"in another database": `UPDATE pgonce.epoch SET database = database + 1`,
		"dropped and created": `UPDATE pgonce.epoch SET sequence = sequence + 1`,
		"timeline back":       `UPDATE pgonce.epoch SET timeline = timeline + 5`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			var last dblock.Token
			for round := range 3 {
				c, err := dblock.New(t.Context(), pgxdriver.New(b.pool), nil)
				if err != nil {
					t.Fatal(err)
				}
				l := acquire(t, c, "1", nil)
				if l.Token() <= last && name != "promoted" {
					t.Errorf("round %d: token %d after %d", round, l.Token(), last)
				}
				last = l.Token()
				release(t, l)
				if err := c.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
				b.Exec(t, change+`; SELECT setval('pgonce.fence', 1)`)
				before := b.Int(t, `SELECT base + timeline FROM pgonce.epoch`)
				release(t, acquire(t, b.client(t, nil), "1", nil))
				if after := b.Int(t, `SELECT base + timeline FROM pgonce.epoch`); after <= before {
					t.Errorf("round %d: the epoch went from %d to %d", round, before, after)
				}
			}
		})
	}
}

// Whoever drops the schema drops the memory of tokens, also for clients that stay connected. They grow again when the row of
// "epoch" is put back, or its base is set from a token, and clients are made anew.
func TestTokensAfterTheSchemaWasDropped(t *testing.T) {
	t.Parallel()
	for name, mend := range map[string]string{
		"the row is put back":         `INSERT INTO pgonce.epoch TABLE kept_epoch`,
		"the base is set by a token":  `UPDATE pgonce.epoch SET base = (SELECT (max(token) >> 48) + 1 FROM kept_token)`,
		"and the row was there again": `DELETE FROM pgonce.epoch; INSERT INTO pgonce.epoch TABLE kept_epoch`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			connected := b.client(t, nil)
			var last dblock.Token
			for range 3 {
				l := acquire(t, connected, "1", nil)
				last = l.Token()
				release(t, l)
			}
			b.Exec(t, fmt.Sprintf(`CREATE TABLE kept_token AS SELECT %d::bigint AS token; CREATE TABLE kept_epoch AS TABLE pgonce.epoch; DROP SCHEMA pgonce CASCADE`, last))
			if _, err := connected.Acquire(t.Context(), key("1"), nil); !errors.Is(err, dblock.ErrSchema) {
				t.Errorf("without a schema: %v", err)
			}
			if _, err := migrations.UpPool(t.Context(), b.pool, nil); err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(mend, "INSERT") {
				b.Exec(t, mend)
			}
			l := acquire(t, connected, "1", nil)
			if l.Token() > last { // the page says that this is what happens
				t.Errorf("token %d after %d by a client from before", l.Token(), last)
			}
			release(t, l)
			if !strings.HasPrefix(mend, "INSERT") {
				release(t, acquire(t, b.client(t, nil), "2", nil))
				b.Exec(t, mend)
			}
			l = acquire(t, b.client(t, nil), "1", nil)
			if l.Token() <= last {
				t.Errorf("token %d after %d", l.Token(), last)
			}
			release(t, l)
		})
	}
}

// Sessions that find an old epoch at the same time make one new one.
func TestEpochIsRaisedOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	release(t, acquire(t, b.client(t, nil), "0", nil))
	b.Exec(t, `UPDATE pgonce.epoch SET cluster = cluster + 1`)
	before := b.Int(t, `SELECT base + timeline FROM pgonce.epoch`)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			c, err := dblock.New(t.Context(), pgxdriver.New(b.pool), nil)
			if err != nil {
				t.Error(err)
				return
			}
			release(t, acquire(t, c, fmt.Sprint(i), nil))
			if err := c.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if after := b.Int(t, `SELECT base + timeline FROM pgonce.epoch`); after != before+1 {
		t.Errorf("the epoch went from %d to %d", before, after)
	}
}

// Sessions do not wait until their numbers are on disk, so the first one moves the sequence past all that a crash may have
// forgotten, and nobody else does while one is alive.
func TestTheFirstSessionMovesTheSequence(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	last := func() int64 { return b.Int(t, `SELECT last_value FROM pgonce.fence`) }
	for round := range 3 {
		before := last()
		var wg sync.WaitGroup
		clients := make([]*dblock.Client[pgx.Tx], 6)
		for i := range clients {
			wg.Go(func() {
				var err error
				if clients[i], err = dblock.New(t.Context(), pgxdriver.New(b.pool), nil); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		if moved := (last() - before) >> 26; moved != 1 {
			t.Errorf("round %d: the sequence was moved %d times", round, moved)
		}
		for _, c := range clients {
			release(t, acquire(t, c, "1", nil))
			if err := c.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
}

// The server crashes after it has given out tokens that were never on disk: of a session that does not wait for it, and
// of a window that another session has logged and not committed. The sequence falls back; the tokens do not. Every lock is
// lost, and its holder is told.
func TestTokensSurviveACrash(t *testing.T) {
	t.Parallel()
	srv, pool := ownServer(t, flushesLate())
	c := clientOf(t, pool, nil)
	for round := range 3 {
		for i := range 100 {
			release(t, acquire(t, c, fmt.Sprint("warm", i), nil))
		}
		logs, err := pgx.Connect(t.Context(), srv.URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := logs.Exec(t.Context(), `BEGIN`); err != nil {
			t.Fatal(err)
		}
		var pid int
		var number, behind int64
		if err := logs.QueryRow(t.Context(), `SELECT pg_backend_pid(), max(nextval('pgonce.fence')) FROM generate_series(1, 33)`).Scan(&pid, &number); err != nil {
			t.Fatal(err)
		}
		l := acquire(t, c, "1", nil)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if e := lost(t, l); e.Kind != dblock.LostConnection {
			t.Errorf("got %v", e)
		}
		pgtest.Eventually(t, "the server is back", func() bool { // a process of before may still answer on a connection of before
			conn, err := pgx.Connect(t.Context(), srv.URL("postgres"))
			if err != nil {
				return false
			}
			defer func() { _ = conn.Close(t.Context()) }()
			return conn.QueryRow(t.Context(), `SELECT last_value FROM pgonce.fence`).Scan(&behind) == nil
		})
		t.Logf("round %d: the sequence went from %d back to %d", round, number, behind)
		if behind >= number {
			t.Errorf("round %d: the server had the numbers on disk", round)
		}
		next := acquire(t, c, "1", nil)
		if next.Token() <= l.Token() {
			t.Errorf("round %d: token %d after %d", round, next.Token(), l.Token())
		}
		release(t, next)
		_ = logs.Close(t.Context())
	}
}
