//go:build unix

// Package localpg starts a throw-away Postgres from binaries that are on the
// machine, for tests and examples.
//
// The server listens on a unix socket only, unless it is asked for more, so there is no port to clash, and it
// cannot outlive the process that started it: a shell stands between the two,
// blocked on a pipe whose other end is ours, and stops the server and removes its
// folder when the pipe closes. The kernel closes it however we end, by SIGKILL
// too.
package localpg

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// ErrNoBinaries means that there is no Postgres server on this machine to start.
var ErrNoBinaries = errors.New("no Postgres server binaries found")

// Config tunes [Start]. A nil *Config is ready to use.
type Config struct {
	// Durable keeps the data on disk with fsync on, for measurements and for tests
	// that kill the server. The default is a RAM disk, where there is one, and
	// fsync off.
	Durable bool

	// Dir is where the server's folder is made. It has to be short, for there is a socket in
	// it, and writable for the server's user. Defaults to a RAM disk or /tmp, by Durable.
	Dir string

	// Standby starts the server in recovery, without a primary to follow: it answers questions and
	// accepts no write.
	Standby bool

	// Port makes the server listen on this port of 127.0.0.1, too. Whoever may connect there is up to the
	// setting hba_file: by default every user of the machine may, as superuser. Defaults to no port.
	Port int

	// Follow makes the server a copy of another one, whose changes it follows as an asynchronous standby. It needs
	// pg_basebackup beside the server's binaries, or it is [ErrNoBinaries].
	Follow *Server

	// Keep starts the server again whenever it ends, as the init of a machine does.
	Keep bool

	// Env is added to the server's environment, for a library that is loaded into it.
	Env []string

	// Settings are passed to the server, after the defaults.
	Settings map[string]string
}

// Server is a running throw-away server.
type Server struct {
	dir  string
	port string   // "" for the default one, which then only names the socket
	pipe *os.File // closing it stops the server; as a field it stays reachable
	done chan struct{}
	log  bytes.Buffer // what the shell said; to be read after done
}

//go:embed guard.sh
var guardScript string

const startTimeout = 60 * time.Second

// Start creates a cluster and starts its server. As root it runs as user
// "postgres", or else "nobody", because the server refuses root.
func Start(cfg *Config) (*Server, error) {
	if cfg == nil {
		cfg = &Config{}
	}
	bin, err := Binaries()
	if err != nil {
		return nil, err
	}
	if cfg.Follow != nil && !has(beside(bin), "pg_basebackup") {
		return nil, fmt.Errorf("localpg: %w: pg_basebackup is not beside them in %s, as it is in Debian's packages", ErrNoBinaries, bin)
	}
	cred, err := ServerUser()
	if err != nil {
		return nil, err
	}
	s := &Server{dir: newDir(cfg), done: make(chan struct{})}
	if cfg.Port != 0 {
		s.port = strconv.Itoa(cfg.Port)
	}
	if err := s.launch(bin, cred, cfg); err != nil {
		return nil, err
	}
	if err := s.awaitReady(); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// launch runs the guard, which runs initdb and the server.
func (s *Server) launch(bin string, cred *syscall.Credential, cfg *Config) error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = read.Close() }()
	args := append([]string{"-c", guardScript, "guard", bin, s.dir}, settings(cfg)...)
	cmd := exec.Command("/bin/sh", args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin", "HOME=" + s.dir, "TMPDIR=" + s.dir, "LANG=C", "LC_ALL=C"}
	if cfg.Standby {
		cmd.Env = append(cmd.Env, "PGONCE_STANDBY=1")
	}
	if cfg.Keep {
		cmd.Env = append(cmd.Env, "PGONCE_KEEP=1")
	}
	cmd.Env = append(cmd.Env, cfg.Env...)
	if cfg.Follow != nil {
		cmd.Env = append(cmd.Env, "PGONCE_FOLLOW="+cfg.Follow.dir, "PGONCE_BACKUP="+beside(bin))
	}
	cmd.ExtraFiles = []*os.File{read} // file descriptor 3
	cmd.Stderr = &s.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: cred} // Ctrl-C is for us, not for the server
	if err := cmd.Start(); err != nil {
		_ = write.Close()
		return fmt.Errorf("localpg: start: %w", err)
	}
	s.pipe = write
	go func() {
		_ = cmd.Wait()
		close(s.done)
	}()
	return nil
}

func settings(cfg *Config) []string {
	args := []string{
		"-c", "max_connections=200", "-c", "shared_buffers=64MB", "-c", "timezone=UTC",
		"-c", "log_min_messages=fatal", "-c", "autovacuum_naptime=5s",
	}
	if !cfg.Durable {
		args = append(args, "-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")
	}
	if cfg.Port != 0 {
		args = append(args, "-c", "listen_addresses=127.0.0.1", "-c", "port="+strconv.Itoa(cfg.Port))
	}
	for name, value := range cfg.Settings {
		args = append(args, "-c", name+"="+value)
	}
	return args
}

// awaitReady asks the server until it answers.
func (s *Server) awaitReady() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgconn.Connect(ctx, s.URL("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-s.done:
			return fmt.Errorf("localpg: the server did not start: %s", strings.TrimSpace(s.log.String()))
		case <-ctx.Done():
			return fmt.Errorf("localpg: the server did not answer within %v: %w", startTimeout, err)
		case <-tick.C:
		}
	}
}

// URL is the connection string for a database of this server, as superuser, by its socket.
func (s *Server) URL(database string) string {
	where := url.Values{"host": {s.dir}, "sslmode": {"disable"}}
	if s.port != "" {
		where.Set("port", s.port)
	}
	u := url.URL{Scheme: "postgres", User: url.User("postgres"), Path: "/" + database, RawQuery: where.Encode()}
	return u.String()
}

// Restart ends the server by a signal, starts it again and waits until it answers: SIGINT is what an administrator
// does, SIGKILL a crash.
func (s *Server) Restart(sig syscall.Signal) error {
	old, err := s.PID()
	if err != nil {
		return err
	}
	name := map[syscall.Signal]string{syscall.SIGINT: "INT", syscall.SIGQUIT: "QUIT", syscall.SIGKILL: "KILL"}[sig]
	if name == "" {
		return fmt.Errorf("localpg: restart by %v: use SIGINT, SIGQUIT or SIGKILL", sig)
	}
	if _, err := s.pipe.WriteString(name + "\n"); err != nil {
		return fmt.Errorf("localpg: restart: %w", err)
	}
	for deadline := time.Now().Add(startTimeout); ; {
		if pid, err := s.PID(); err == nil && pid != old {
			return s.awaitReady()
		}
		select {
		case <-s.done:
			return fmt.Errorf("localpg: the server did not come back: %s", strings.TrimSpace(s.log.String()))
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("localpg: the server in %s did not come back", s.dir)
		}
	}
}

// Down kills the server's main process by SIGKILL, as a machine does that fails, and returns when it is gone. It stays down
// until [Server.Up] or [Server.Stop]. Other processes of the server may live for a moment longer.
func (s *Server) Down() error {
	pid, err := s.PID()
	if err != nil {
		return err
	}
	if _, err := s.pipe.WriteString("DOWN\n"); err != nil {
		return fmt.Errorf("localpg: down: %w", err)
	}
	for deadline := time.Now().Add(startTimeout); syscall.Kill(pid, 0) == nil; {
		if time.Now().After(deadline) {
			return fmt.Errorf("localpg: the server in %s did not end", s.dir)
		}
		<-time.After(10 * time.Millisecond)
	}
	return nil
}

// Up starts a server again that is down, and waits until it answers.
func (s *Server) Up() error {
	if _, err := s.pipe.WriteString("UP\n"); err != nil {
		return fmt.Errorf("localpg: up: %w", err)
	}
	return s.awaitReady()
}

// Folder is where the server's folder of data ("data"), its log and its socket are.
func (s *Server) Folder() string { return s.dir }

// PID is the server's main process.
func (s *Server) PID() (int, error) {
	text, err := os.ReadFile(filepath.Join(s.dir, "server"))
	if err != nil {
		return 0, fmt.Errorf("localpg: pid: %w", err)
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// Stop ends the server and removes its folder. It may be called twice.
func (s *Server) Stop() error {
	_ = s.pipe.Close()
	select {
	case <-s.done:
		return nil
	case <-time.After(startTimeout):
		return fmt.Errorf("localpg: the server in %s did not stop", s.dir)
	}
}

// Binaries finds the folder that holds initdb and postgres: $PGONCE_PGBIN, then
// PATH, then the places where Debian and Homebrew put them, newest first.
func Binaries() (string, error) {
	if dir := os.Getenv("PGONCE_PGBIN"); dir != "" {
		if !hasServer(dir) {
			return "", fmt.Errorf("localpg: PGONCE_PGBIN=%s: %w there", dir, ErrNoBinaries)
		}
		return dir, nil
	}
	if path, err := exec.LookPath("postgres"); err == nil && hasServer(filepath.Dir(path)) {
		return filepath.Dir(path), nil
	}
	best, newest := "", -1
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", "/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin", "/usr/pgsql-*/bin",
	} {
		dirs, _ := filepath.Glob(pattern) // the patterns are well-formed
		for _, dir := range dirs {
			name := filepath.Base(filepath.Dir(dir))
			major, _ := strconv.Atoi(name[strings.LastIndexAny(name, "@-")+1:])
			if major > newest && hasServer(dir) {
				best, newest = dir, major
			}
		}
	}
	if best == "" {
		return "", fmt.Errorf("localpg: %w: run scripts/setup.sh postgres (Debian, Ubuntu) or brew install postgresql@17 (macOS), "+
			"or set PGONCE_PGBIN to a folder that holds initdb and postgres", ErrNoBinaries)
	}
	return best, nil
}

func hasServer(dir string) bool { return has(dir, "initdb") && has(dir, "postgres") }

func has(dir, name string) bool {
	info, err := os.Stat(filepath.Join(dir, name))
	return err == nil && !info.IsDir()
}

// beside is the folder of the server's program itself, which may be a link elsewhere.
func beside(bin string) string {
	if path, err := filepath.EvalSymlinks(filepath.Join(bin, "postgres")); err == nil {
		return filepath.Dir(path)
	}
	return bin
}

// ServerUser is whom to run as: nil (ourselves) unless we are root.
func ServerUser() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil //nolint:nilnil // nil means no change of user, as in syscall.SysProcAttr
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New(`localpg: running as root, and there is neither a user "postgres" nor "nobody" to run the server as`)
}

// roomy reports a folder with room for a cluster and its WAL. Containers often have a RAM disk of
// 64 MB, which has not.
func roomy(dir string) bool {
	var fs syscall.Statfs_t
	const enough = 2 << 30
	return syscall.Statfs(dir, &fs) == nil && uint64(fs.Bavail)*uint64(fs.Bsize) >= enough //nolint:gosec,unconvert,nolintlint // types differ by platform
}

// newDir is a name for the server's folder, short enough for a socket in it. The guard makes the
// folder, so that there is none without somebody to remove it.
func newDir(cfg *Config) string {
	base := "/tmp"
	if cfg.Dir != "" {
		base = cfg.Dir
	} else if !cfg.Durable && roomy("/dev/shm") {
		base = "/dev/shm"
	}
	return filepath.Join(base, "pgonce-"+strings.ToLower(rand.Text()[:12]))
}
