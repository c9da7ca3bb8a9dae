package localpg_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/internal/localpg"
)

// TestMain lets the test binary play the process that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("LOCALPG_CHILD"); dir != "" {
		s, err := localpg.Start(&localpg.Config{Dir: dir})
		if err != nil {
			panic(err)
		}
		println(s.URL("postgres"))
		select {}
	}
	os.Exit(m.Run())
}

// Whenever the process is killed, nothing is left of its server: neither folder nor process.
func TestServerDiesWithASIGKILLedProcess(t *testing.T) {
	t.Parallel()
	for name, reached := range map[string]func(dir string) bool{
		"as its folder appears":     func(dir string) bool { return len(glob(t, dir, "pgonce-*")) == 1 },
		"in initdb":                 func(dir string) bool { return len(glob(t, dir, "pgonce-*/data/PG_VERSION")) == 1 },
		"as initdb ends":            func(dir string) bool { return len(glob(t, dir, "pgonce-*/data/base/*")) == 3 }, // template1, template0, postgres
		"as the server starts":      func(dir string) bool { return len(glob(t, dir, "pgonce-*/data/postmaster.pid")) == 1 },
		"as the server's socket is": func(dir string) bool { return len(glob(t, dir, "pgonce-*/.s.PGSQL.5432")) == 1 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := shortDir(t)
			child := exec.Command(os.Args[0])
			child.Env = append(os.Environ(), "LOCALPG_CHILD="+dir)
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = child.Process.Kill() }) // should the test end before its time
			eventually(t, name, func() bool { return reached(dir) })
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = child.Wait() // "signal: killed"
			eventually(t, "the folder is gone", func() bool { return len(glob(t, dir, "*")) == 0 })
			eventually(t, "no process works there", func() bool { return len(processesIn(t, dir)) == 0 })
		})
	}
}

func TestServerDiesWithASIGKILLedProcessInUse(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "LOCALPG_CHILD="+dir)
	stderr, err := child.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = child.Process.Kill() })
	url, err := bufio.NewReader(stderr).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), strings.TrimSpace(url))
	if err != nil {
		t.Fatalf("the server of the child does not answer: %v", err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // "signal: killed"
	eventually(t, "the folder is gone", func() bool { return len(glob(t, dir, "*")) == 0 })
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("the server still answers after its owner was killed")
	}
}

// shortDir is a folder that the server's user may enter, with a name short enough for a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "lpg") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

func glob(t *testing.T, dir, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// processesIn are the processes whose command line names dir. Where there is no /proc, none are
// found, and the folder's end has to do.
func processesIn(t *testing.T, dir string) (pids []string) {
	t.Helper()
	for _, file := range glob(t, "/proc", "[0-9]*/cmdline") {
		line, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(line), dir+"/") {
			pids = append(pids, file)
		}
	}
	return pids
}

func TestStartReportsWhatTheServerSaid(t *testing.T) {
	t.Parallel()
	_, err := localpg.Start(&localpg.Config{Settings: map[string]string{"no_such_setting": "1"}})
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Fatalf("got %v, want the server's own complaint", err)
	}
}

// With a port the server is reached by TCP too, from this machine, and by its socket as before.
func TestPortListensOnTheLoopback(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil { // somebody else may take it now, which is unlikely
		t.Fatal(err)
	}
	s, err := localpg.Start(&localpg.Config{Port: port})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Stop() }()
	for _, url := range []string{s.URL("postgres"), fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", port)} {
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		var listens string
		err = conn.QueryRow(t.Context(), `SHOW listen_addresses`).Scan(&listens)
		if err != nil || listens != "127.0.0.1" {
			t.Errorf("listens on %q: %v", listens, err)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestBinariesNamesTheFix(t *testing.T) {
	t.Setenv("PGONCE_PGBIN", t.TempDir())
	_, err := localpg.Start(nil)
	if !errors.Is(err, localpg.ErrNoBinaries) || !strings.Contains(err.Error(), "PGONCE_PGBIN") {
		t.Fatalf("got %v, want ErrNoBinaries naming PGONCE_PGBIN", err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("timed out: %s", what)
		case <-tick.C:
		}
	}
}

// A server that is restarted, or killed, comes back with what was committed, and its standby can be promoted.
func TestRestartAndPromotion(t *testing.T) {
	t.Parallel()
	primary, err := localpg.Start(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := primary.Stop(); err != nil {
			t.Error(err)
		}
	}()
	run := func(s *localpg.Server, sql string) error {
		conn, err := pgx.Connect(t.Context(), s.URL("postgres"))
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(t.Context()) }()
		_, err = conn.Exec(t.Context(), sql)
		return err
	}
	if err := run(primary, `CREATE TABLE seen (n int)`); err != nil {
		t.Fatal(err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL, syscall.SIGQUIT} {
		if err := primary.Restart(sig); err != nil {
			t.Fatal(sig, err)
		}
		if err := run(primary, `INSERT INTO seen VALUES (1)`); err != nil {
			t.Fatal(sig, err)
		}
	}
	if err := primary.Down(); err != nil {
		t.Fatal(err)
	}
	if err := run(primary, `INSERT INTO seen VALUES (1)`); err == nil {
		t.Error("a server that is down answers")
	}
	if err := primary.Up(); err != nil {
		t.Fatal(err)
	}
	standby, err := localpg.Start(&localpg.Config{Follow: primary})
	if errors.Is(err, localpg.ErrNoBinaries) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := standby.Stop(); err != nil {
			t.Error(err)
		}
	}()
	if err := run(standby, `INSERT INTO seen VALUES (1)`); err == nil {
		t.Error("a standby writes")
	}
	if err := run(standby, `SELECT pg_promote()`); err != nil {
		t.Fatal(err)
	}
	if err := run(standby, `INSERT INTO seen VALUES (1)`); err != nil {
		t.Error(err)
	}
}
