//go:build unix

package failover_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/internal/localpg"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/migrations"
)

// pair is a primary with a standby. Clients know both by names that stay, as of two hosts, whoever is which.
type pair struct {
	dir     string
	primary *localpg.Server
	standby *localpg.Server
	names   map[*localpg.Server]string
}

// newPair starts a primary with the library's schema, and a standby that follows it.
func newPair(t *testing.T) *pair {
	t.Helper()
	pgtest.New(t)                             // skips where there is no server to start, and watches for leaks
	dir, err := os.MkdirTemp("/tmp", "pair-") //nolint:usetesting // TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := &pair{dir: dir, names: map[*localpg.Server]string{}}
	p.primary = p.start(t, "a", nil)
	db := connect(t, p.primary)
	defer func() { _ = db.Close(t.Context()) }()
	script, err := migrations.Script(nil)
	if err != nil {
		t.Fatal(err)
	}
	say(t, db, script, tables)
	p.standby = p.start(t, "b", p.primary)
	return p
}

// start starts a server under a name. Data is durable: what survives a crash is to be what Postgres promises.
func (p *pair) start(t *testing.T, name string, follow *localpg.Server) *localpg.Server {
	t.Helper()
	s, err := localpg.Start(&localpg.Config{Durable: true, Follow: follow})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	p.names[s] = name
	link := filepath.Join(p.dir, name)
	_ = os.Remove(link) // of the server before
	if err := os.Symlink(s.Folder(), link); err != nil {
		t.Fatal(err)
	}
	return s
}

// url is for clients: both hosts, of which the one is meant that can be written to.
func (p *pair) url() string {
	query := url.Values{
		"host": {filepath.Join(p.dir, "a") + "," + filepath.Join(p.dir, "b")}, "sslmode": {"disable"},
		"target_session_attrs": {"read-write"}, "connect_timeout": {"5"},
	}
	return (&url.URL{Scheme: "postgres", User: url.User("postgres"), Path: "/postgres", RawQuery: query.Encode()}).String()
}

// synchronous has every commit wait for the standby, and returns when that is so. The setting alone does not say so: another process of
// the server has to have read it too. So at first commits wait for nobody.
func (p *pair) synchronous(t *testing.T) {
	t.Helper()
	db, canary := connect(t, p.primary), connect(t, p.primary)
	defer func() { _ = db.Close(t.Context()) }()
	say(t, db, `ALTER SYSTEM SET synchronous_standby_names = 'nobody'`, `SELECT pg_reload_conf()`)
	var waits atomic.Bool
	over := make(chan struct{})
	go func() {
		defer close(over)
		for !waits.Load() && !t.Failed() {
			say(t, canary, `INSERT INTO canary VALUES (1)`)
		}
		_ = canary.Close(t.Context())
	}()
	pgtest.Eventually(t, "commits wait", func() bool {
		waits.Store(number(t, db, `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%canary%'`) > 0)
		return waits.Load()
	})
	say(t, db, `ALTER SYSTEM SET synchronous_standby_names = '*'`, `SELECT pg_reload_conf()`)
	<-over
	pgtest.Eventually(t, "the standby is synchronous", func() bool {
		return number(t, db, `SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'`) == 1
	})
}

// cutOff has the standby hear nothing more from its primary.
func (p *pair) cutOff(t *testing.T) {
	t.Helper()
	standby, primary := connect(t, p.standby), connect(t, p.primary)
	defer func() { _ = standby.Close(t.Context()); _ = primary.Close(t.Context()) }()
	say(t, standby, `ALTER SYSTEM SET primary_conninfo = ''`, `SELECT pg_reload_conf()`)
	pgtest.Eventually(t, "it follows no more", func() bool {
		return number(t, primary, `SELECT count(*) FROM pg_stat_replication`) == 0
	})
}

// failOver lets the primary die as a machine dies, and promotes the standby.
func (p *pair) failOver(t *testing.T) (old *localpg.Server) {
	t.Helper()
	old = p.primary
	powerOff(t, old)
	db := connect(t, p.standby)
	defer func() { _ = db.Close(t.Context()) }()
	if number(t, db, `SELECT pg_promote(true, 300)::int`) != 1 {
		t.Fatal("the standby was not promoted")
	}
	p.primary, p.standby = p.standby, nil
	return old
}

// rebuild makes a standby in the place of the server that has died. Of its data nothing is used again.
func (p *pair) rebuild(t *testing.T, old *localpg.Server) {
	t.Helper()
	if err := old.Stop(); err != nil {
		t.Fatal(err)
	}
	p.standby = p.start(t, p.names[old], p.primary)
}

// powerOff kills all processes of a server at once: one that lives a moment longer could still answer a client.
func powerOff(t *testing.T, s *localpg.Server) {
	t.Helper()
	pid, err := s.PID()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil { // it makes no new process from here on
		t.Fatal(err)
	}
	for _, child := range children(pid) {
		_ = syscall.Kill(child, syscall.SIGKILL) // it may have ended by itself
	}
	if err := s.Down(); err != nil {
		t.Fatal(err)
	}
}

// children are the processes that a process has started, where the system tells.
func children(parent int) (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is well-formed
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		var pid, ppid int
		var state string
		_, after, _ := strings.Cut(string(text), ") ") // its name may have anything in it
		if _, err := fmt.Sscan(string(text), &pid); err != nil {
			continue
		}
		if _, err := fmt.Sscan(after, &state, &ppid); err == nil && ppid == parent {
			pids = append(pids, pid)
		}
	}
	return pids
}

func connect(t *testing.T, s *localpg.Server) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func say(t *testing.T, db *pgx.Conn, statements ...string) {
	t.Helper()
	for _, sql := range statements {
		if _, err := db.PgConn().Exec(context.WithoutCancel(t.Context()), sql).ReadAll(); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

func number(t *testing.T, db *pgx.Conn, sql string) (n int64) {
	t.Helper()
	if err := db.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Errorf("%s: %v", sql, err)
	}
	return n
}

// drained waits until the standby has all that its primary has written.
func (p *pair) drained(t *testing.T) {
	t.Helper()
	db := connect(t, p.primary)
	defer func() { _ = db.Close(t.Context()) }()
	pgtest.Eventually(t, "the standby has everything", func() bool {
		return number(t, db, `SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= pg_current_wal_flush_lsn()`) == 1
	})
}
