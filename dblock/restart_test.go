//go:build unix

package dblock_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/internal/localpg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// grants keeps the greatest token of each key. A key's own order is kept by its lock, except around a restart: the server's
// processes do not all end at once, so a key can be given out on one session while the holder on another one has yet to hear that his has ended.
type grants struct {
	mu   sync.Mutex
	last map[string]dblock.Token
	n    int64
	late int // whose token is not greater, and who have to turn out to have lost the lock
}

func (g *grants) note(t *testing.T, k string, l *locked) {
	t.Helper()
	g.mu.Lock()
	last := g.last[k]
	g.last[k] = max(last, l.Token())
	g.n++
	if l.Token() > last || t.Failed() {
		g.mu.Unlock()
		return
	}
	g.late++
	g.mu.Unlock()
	if !pause(l.Context().Done(), 30*time.Second) {
		t.Errorf("key %s: token %d after %d, of a lock that is held", k, l.Token(), last)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.late--
}

// count is how many there were; settled, that all of them were in order, or of locks that were lost.
func (g *grants) count() (n int64, settled bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.n, g.late == 0
}

// A server is restarted under load: by its administrator, by a crash of a process and by kill -9 of its main process, with durable data. Holders are told,
// callers that wait go on, tokens go on growing, and no lock is left.
func TestRestartUnderLoad(t *testing.T) {
	t.Parallel()
	srv, pool := ownServer(t, &localpg.Config{Durable: true, Settings: map[string]string{"wal_writer_delay": "10s"}})
	g := &grants{last: map[string]dblock.Token{}}
	var told atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	clients := []*client{clientOf(t, pool, nil), clientOf(t, pool, nil), clientOf(t, pool, nil)}
	for p, c := range clients {
		for i := range 6 {
			k := fmt.Sprint((p + i) % 3)
			wg.Go(func() {
				for !pause(stop, 0) {
					ctx, cancel := context.WithCancel(t.Context())
					l, err := c.Acquire(ctx, key(k), nil)
					if err == nil {
						g.note(t, k, l)
						if i == 0 {
							pause(l.Context().Done(), thinkTime)
						}
						err = l.Release(ctx)
					}
					cancel()
					switch {
					case errors.Is(err, dblock.ErrLost):
						told.Add(1)
					case errors.Is(err, dblock.ErrUnavailable):
						pause(stop, thinkTime)
					case err != nil:
						t.Error(err)
					}
				}
			})
		}
	}
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL} {
		held := acquire(t, clients[0], "held", nil)
		if err := srv.Restart(sig); err != nil {
			t.Fatal(err)
		}
		if e := lost(t, held); e.Kind != dblock.LostConnection {
			t.Errorf("%v: got %v", sig, e)
		}
		var next *locked
		pgtest.Eventually(t, "it can be had again", func() bool {
			var err error
			next, err = clients[1].Acquire(within(t), key("held"), nil)
			return err == nil
		})
		if next.Token() <= held.Token() {
			t.Errorf("%v: token %d after %d", sig, next.Token(), held.Token())
		}
		release(t, next)
		before, _ := g.count()
		pgtest.Eventually(t, "all go on", func() bool { // before the next restart, which is the loss of all
			n, settled := g.count()
			return n > before+30 && (settled || t.Failed())
		})
	}
	close(stop)
	wg.Wait()
	t.Logf("R2 restarts=3 grants=%d told=%d", g.n, told.Load())
	for k := range 3 {
		var n int
		pgtest.Eventually(t, "no lock is left", func() bool {
			err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND (classid::bigint << 32) | objid::bigint = $1`, keyNumber(k).Number()).Scan(&n)
			return err == nil && n == 0
		})
	}
	for _, c := range clients {
		if locks, keys := c.Used(); locks != 0 || keys != 0 {
			t.Errorf("%d locks and %d keys are still counted", locks, keys)
		}
	}
}

// An asynchronous standby that is behind is promoted: tokens of the new primary
// are greater than all that the old one has given out, also those that the standby never heard of.
func TestTokensSurviveAPromotion(t *testing.T) {
	t.Parallel()
	primary, pool := ownServer(t, nil)
	before := clientOf(t, pool, nil)
	release(t, acquire(t, before, "1", nil)) // the epoch's row is there
	standby, err := localpg.Start(&localpg.Config{Follow: primary})
	if errors.Is(err, localpg.ErrNoBinaries) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Stop(); err != nil {
			t.Error(err)
		}
	})
	after, err := pgxpool.New(t.Context(), standby.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(after.Close)
	for _, sql := range []string{`ALTER SYSTEM SET primary_conninfo = ''`, `SELECT pg_reload_conf()`} { // it hears nothing from here on
		if _, err := after.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	pgtest.Eventually(t, "it follows no more", func() bool {
		var n int
		err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_replication`).Scan(&n)
		return err == nil && n == 0
	})
	var last dblock.Token
	for range 100 { // more than what is logged ahead
		l := acquire(t, before, "1", nil)
		last = l.Token()
		release(t, l)
	}
	var sequence, behind int64
	if err := pool.QueryRow(t.Context(), `SELECT last_value FROM pgonce.fence`).Scan(&sequence); err != nil {
		t.Fatal(err)
	}
	if err := primary.Stop(); err != nil { // at once, and for good: what it has not sent is gone
		t.Fatal(err)
	}
	if _, err := after.Exec(t.Context(), `SELECT pg_promote()`); err != nil {
		t.Fatal(err)
	}
	if err := after.QueryRow(t.Context(), `SELECT last_value FROM pgonce.fence`).Scan(&behind); err != nil {
		t.Fatal(err)
	}
	l := acquire(t, clientOf(t, after, nil), "1", nil)
	now := int64(l.Token()>>10) & (1<<38 - 1)
	if behind >= sequence {
		t.Errorf("the standby was not behind, so this shows nothing: %d, %d, %d", sequence, behind, now)
	}
	if l.Token() <= last {
		t.Errorf("token %d after %d", l.Token(), last)
	}
	t.Logf("R2 promotion: token %d, sequence %d -> token %d, sequence %d", last, sequence, l.Token(), now)
	release(t, l)
}
