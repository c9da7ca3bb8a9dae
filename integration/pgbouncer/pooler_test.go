//go:build unix

package pgbouncer_test

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/internal/localpg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

const (
	binVariable = "PGONCE_PGBOUNCER"
	built       = "../../.build/pgbouncer/*/pgbouncer" // where scripts/pgbouncer.sh puts them
)

// program is a PgBouncer of this machine.
type program struct {
	path, version string
	prepares      bool // 1.21 or newer: knows prepared statements in transaction mode
}

// programs are the ones that $PGONCE_PGBOUNCER names, or those that are found, one of each version.
func programs() (found []program, err error) {
	named := filepath.SplitList(os.Getenv(binVariable))
	paths := named
	if len(named) == 0 {
		paths, _ = filepath.Glob(built) // the pattern is well-formed
		paths = append(paths, "pgbouncer", "/usr/sbin/pgbouncer", "/opt/homebrew/bin/pgbouncer")
	}
	seen := map[string]bool{}
	for _, path := range paths {
		p, err := programAt(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
			if len(named) == 0 {
				continue
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if !seen[p.version] {
			seen[p.version] = true
			found = append(found, p)
		}
	}
	return found, nil
}

var versionText = regexp.MustCompile(`PgBouncer (\d+)\.(\d+)\.(\d+)`)

func programAt(path string) (p program, err error) {
	if p.path, err = exec.LookPath(path); err != nil {
		return p, err
	}
	if p.path, err = filepath.Abs(p.path); err != nil {
		return p, err
	}
	said, err := exec.Command(p.path, "--version").Output()
	if err != nil {
		return p, fmt.Errorf("ask for its version: %w", err)
	}
	v := versionText.FindSubmatch(said)
	if v == nil {
		return p, fmt.Errorf("its version is %q", said)
	}
	minor, err := strconv.Atoi(string(v[2]))
	p.version = strings.TrimPrefix(string(v[0]), "PgBouncer ")
	p.prepares = string(v[1]) != "1" || minor >= 21
	return p, err
}

// pooler is a running PgBouncer, in front of one server.
type pooler struct {
	program
	dir  string
	url  string
	pipe *os.File
	done chan struct{}
}

//go:embed guard.sh
var guardScript string

// start runs p in front of the server of serverURL, for the life of the test. It listens on a unix socket in a
// folder of its own, so that there is no port to clash. settings are those of [pgbouncer] in its file.
func start(tb testing.TB, p program, serverURL string, settings map[string]string) *pooler {
	tb.Helper()
	b := &pooler{program: p}
	var err error
	if b.dir, err = os.MkdirTemp("/tmp", "bouncer-"); err != nil { //nolint:usetesting // TempDir is too long for a socket
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		b.kill()
		if tb.Failed() {
			if log, err := os.ReadFile(filepath.Join(b.dir, "log")); err == nil {
				tb.Logf("PgBouncer %s said:\n%s", p.version, log)
			}
		}
		_ = os.RemoveAll(b.dir)
	})
	if err := b.configure(serverURL, settings); err != nil {
		tb.Fatal(err)
	}
	b.run(tb)
	return b
}

// configure writes the files that PgBouncer reads, for the user that it will run as.
func (b *pooler) configure(serverURL string, settings map[string]string) error {
	u, err := url.Parse(serverURL)
	if err != nil {
		return err
	}
	host, port := u.Query().Get("host"), "5432" // a folder with the server's socket
	if host == "" {
		if host, port = u.Hostname(), u.Port(); port == "" {
			port = "5432"
		}
	}
	all := map[string]string{
		"listen_addr": "", "listen_port": "5432", "unix_socket_dir": b.dir, "logfile": b.file("log"), "auth_type": "trust", "auth_file": b.file("users"),
		"pool_mode": "transaction", "max_client_conn": "500", "default_pool_size": "30", "ignore_startup_parameters": "extra_float_digits",
		"server_login_retry": "1", "server_round_robin": "1", "query_wait_timeout": "20",
	}
	if b.prepares {
		all["max_prepared_statements"] = "200"
	}
	for name, value := range settings {
		all[name] = value
	}
	text := fmt.Sprintf("[databases]\n* = host=%s port=%s\n[pgbouncer]\n", host, port)
	for name, value := range all {
		text += name + " = " + value + "\n"
	}
	password, _ := u.User.Password()
	users := fmt.Sprintf("%q %q\n", u.User.Username(), password)
	for name, text := range map[string]string{"pgbouncer.ini": text, "users": users, "log": ""} {
		if err := os.WriteFile(b.file(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	query := url.Values{"host": {b.dir}, "sslmode": {"disable"}}
	u.Host, u.RawQuery = "", query.Encode()
	b.url = u.String()
	return b.giveAway()
}

func (b *pooler) file(name string) string { return filepath.Join(b.dir, name) }

// giveAway makes the files the property of the user that PgBouncer runs as: it refuses root.
func (b *pooler) giveAway() error {
	user, err := localpg.ServerUser()
	if err != nil || user == nil {
		return err
	}
	names, err := filepath.Glob(b.file("*"))
	for _, name := range append(names, b.dir) {
		err = errors.Join(err, os.Chown(name, int(user.Uid), int(user.Gid)))
	}
	return err
}

// run starts the process, and waits until it accepts connections.
func (b *pooler) run(tb testing.TB) {
	tb.Helper()
	user, err := localpg.ServerUser()
	if err != nil {
		tb.Fatal(err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = read.Close() }()
	cmd := exec.Command("/bin/sh", "-c", guardScript, "guard", b.path, b.file("pgbouncer.ini"))
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{read} // file descriptor 3
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: user}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	done := make(chan struct{})
	b.pipe, b.done = write, done
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	pgtest.Eventually(tb, "PgBouncer accepts connections", func() bool {
		conn, err := net.Dial("unix", b.file(".s.PGSQL.5432"))
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
}

// kill ends the process, and with it all of its connections. It may be called twice.
func (b *pooler) kill() {
	if b.pipe == nil {
		return
	}
	_ = b.pipe.Close()
	<-b.done
	_ = os.Remove(b.file(".s.PGSQL.5432"))
	b.pipe = nil
}

// admin says something on PgBouncer's console.
func (b *pooler) admin(tb testing.TB, command string) {
	tb.Helper()
	cfg, err := pgx.ParseConfig(b.url)
	if err != nil {
		tb.Fatal(err)
	}
	cfg.Database, cfg.DefaultQueryExecMode = "pgbouncer", pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(tb.Context())) }()
	if _, err := conn.PgConn().Exec(tb.Context(), command).ReadAll(); err != nil {
		tb.Fatal(err)
	}
}
