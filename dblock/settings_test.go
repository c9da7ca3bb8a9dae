//go:build unix

package dblock_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/fault"
	"github.com/pgonce/pgonce/internal/localpg"
	"github.com/pgonce/pgonce/internal/pg"
)

// witness keeps the sessions that a client opens.
type witness struct {
	pg.Driver[pgx.Tx]
	mu       sync.Mutex
	sessions []pg.Session
}

func (w *witness) Session(ctx context.Context) (pg.Session, error) {
	s, err := w.Driver.Session(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sessions = append(w.sessions, s)
	return s, err
}

// setting is one of the last session, "none" where the server does not have it. Nobody else may be using it.
func (w *witness) setting(t *testing.T, name string) (value string) {
	t.Helper()
	err := w.sessions[len(w.sessions)-1].Run(t.Context(), pg.Stmt{SQL: `SELECT coalesce(current_setting($1, true), 'none')`, Args: []any{name}, Dest: []any{&value}})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// onLoopback is a server that is reached by TCP, too.
func onLoopback(t *testing.T) (srv *localpg.Server, tcp string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil { // somebody else may take it now, which is unlikely
		t.Fatal(err)
	}
	srv, _ = ownServer(t, &localpg.Config{Port: port})
	return srv, fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", port)
}

// What the server is told of our sessions stands, whatever the database's own settings are: each of these would end
// a session before its holders know. On a unix socket there is no TCP to be told of, and nothing breaks.
func TestSessionSettings(t *testing.T) {
	t.Parallel()
	srv, tcp := onLoopback(t)
	for url, socket := range map[string]bool{tcp: false, srv.URL("postgres"): true} {
		pool, err := pgxpool.New(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		for _, sql := range []string{
			`ALTER DATABASE postgres SET tcp_keepalives_idle = 1`, `ALTER DATABASE postgres SET tcp_keepalives_interval = 1`, `ALTER DATABASE postgres SET tcp_keepalives_count = 1`,
			`ALTER DATABASE postgres SET tcp_user_timeout = 1000`, `ALTER DATABASE postgres SET idle_session_timeout = 1000`, `ALTER DATABASE postgres SET statement_timeout = 1000`,
		} {
			if _, err := pool.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		w := &witness{Driver: pgxdriver.New(pool)}
		clientOn(t, w, &dblock.Config{TTL: time.Hour}) // so that no heartbeat is sent meanwhile
		for name, want := range map[string]string{
			"idle_session_timeout": "1h", "statement_timeout": "0", "lock_timeout": "10s", "transaction_timeout": "3610s",
			"tcp_keepalives_idle": "900", "tcp_keepalives_interval": "900", "tcp_keepalives_count": "3", "tcp_user_timeout": "3600000",
		} {
			got := w.setting(t, name)
			if socket && strings.HasPrefix(name, "tcp_") {
				want = "0"
			}
			if name == "transaction_timeout" && got == "none" { // before Postgres 17
				continue
			}
			if got != want {
				t.Errorf("%s is %s, want %s (unix socket: %t)", name, got, want, socket)
			}
		}
	}
}

// A request comes half through, and then nothing any more, as from a process that is frozen between two packets. The server counts
// the session as busy, so its TTL does not help. The holder knows by the clock. From Postgres 17 on the server ends the
// session by itself; before, when the connection is given up.
func TestHalfARequest(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	proxy := fault.New(t, b.URL)
	c := clientOf(t, b.Via(proxy.URL()).Pool(t), &dblock.Config{TTL: 8 * time.Second})
	other := b.client(t, nil)
	l := acquire(t, c, "1", nil)
	b.holders(t, func(pid int64) { proxy.Arm(pid, fault.MuteInRequest) })
	if e := lost(t, l); e.Kind != dblock.LostSilence {
		t.Errorf("got %v", e)
	}
	if b.Int(t, `SELECT current_setting('server_version_num')::bigint`) < 170000 {
		if n := b.Int(t, `SELECT count(pg_terminate_backend(pid)) `+inARequest); n != 1 { // what keepalives do when the other end has vanished
			t.Errorf("%d sessions are in the middle of a request, want the holder's", n)
		}
	}
	next := acquire(t, other, "1", nil)
	if next.Token() <= l.Token() {
		t.Error("the token went backwards")
	}
	release(t, next)
	if n := b.Int(t, `SELECT count(*) `+inARequest); n != 0 {
		t.Errorf("%d sessions are in the middle of a request", n)
	}
}

const inARequest = `FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND wait_event = 'ClientRead'`
