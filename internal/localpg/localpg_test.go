package localpg_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/internal/localpg"
)

// TestMain lets the test binary play the process that is killed.
func TestMain(m *testing.M) {
	if os.Getenv("LOCALPG_CHILD") == "1" {
		s, err := localpg.Start(nil)
		if err != nil {
			panic(err)
		}
		println(s.URL("postgres"))
		select {}
	}
	os.Exit(m.Run())
}

func TestServerDiesWithASIGKILLedProcess(t *testing.T) {
	t.Parallel()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "LOCALPG_CHILD=1")
	stderr, err := child.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	url, err := bufio.NewReader(stderr).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	url = strings.TrimSpace(url)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatalf("the server of the child does not answer: %v", err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	dir := conn.Config().Host

	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // "signal: killed"

	eventually(t, "the server's folder is gone", func() bool {
		_, err := os.Stat(dir)
		return errors.Is(err, os.ErrNotExist)
	})
	if _, err := pgx.Connect(t.Context(), url); err == nil {
		t.Error("the server still answers after its owner was killed")
	}
}

func TestStartReportsWhatTheServerSaid(t *testing.T) {
	t.Parallel()
	_, err := localpg.Start(&localpg.Config{Settings: map[string]string{"no_such_setting": "1"}})
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Fatalf("got %v, want the server's own complaint", err)
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
