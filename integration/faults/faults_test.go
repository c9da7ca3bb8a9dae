//go:build linux

// Package faults runs the library on a server whose disk is full, and on one whose clock is stepped.
package faults_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/internal/localpg"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/migrations"
)

// faketime is the library that gives a server a clock of its own; "" where there is none.
var faketime = find("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib/faketime/libfaketime.so.1", "/usr/lib64/faketime/libfaketime.so.1")

// namespace says that this process has mounts of its own, which go with it.
const namespace = "PGONCE_FAULTS_NAMESPACE"

func TestMain(m *testing.M) {
	missing := map[string]string{}
	if os.Geteuid() != 0 {
		missing["a full disk"] = "only root may mount a file system of a chosen size"
	}
	if faketime == "" {
		missing["a clock that is stepped"] = "there is no libfaketime here: run scripts/setup.sh faults"
	}
	if os.Getenv(namespace) == "" {
		for what, why := range missing {
			fmt.Printf("integration/faults: NOT RUN: %s: %s\n", what, why)
		}
		if len(missing) > 0 && os.Getenv("CI") != "" {
			os.Exit(1)
		}
		if os.Geteuid() == 0 {
			os.Exit(inNamespace())
		}
	}
	os.Exit(m.Run())
}

// inNamespace runs the tests in a process with mounts of its own, so that none is left however it ends.
func inNamespace() int {
	child := exec.Command(os.Args[0], os.Args[1:]...)
	child.Env = append(os.Environ(), namespace+"=1")
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := child.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(1, exit.ExitCode())
	}
	if err != nil {
		fmt.Printf("integration/faults: NOT RUN: no mounts of our own: %v\n", err)
		return 1
	}
	return 0
}

func find(patterns ...string) string {
	for _, pattern := range patterns {
		if found, _ := filepath.Glob(pattern); len(found) > 0 { // the patterns are well-formed
			return found[0]
		}
	}
	return ""
}

// start starts a server for one test.
func start(t *testing.T, cfg *localpg.Config) *localpg.Server {
	t.Helper()
	pgtest.New(t) // skips where there is no server to start, and watches for leaks
	s, err := localpg.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// open is a pool on a database of the server.
func open(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 16
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// migrate puts the library's schema and the test's tables there.
func migrate(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	if _, err := migrations.UpPool(t.Context(), pool, nil); err != nil {
		t.Fatal(err)
	}
	say(t, pool, tables)
}

func say(t *testing.T, pool *pgxpool.Pool, statements ...string) {
	t.Helper()
	for _, sql := range statements {
		if _, err := pool.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

func number(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) (n int64) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Errorf("%s: %v", sql, err)
	}
	return n
}
