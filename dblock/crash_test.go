//go:build unix

package dblock_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// TestMain lets the test binary play a process that holds a lock and is killed or frozen.
func TestMain(m *testing.M) {
	if url := os.Getenv("DBLOCK_HOLDER"); url != "" {
		holdInChild(url, dblock.New[pgx.Tx])
	}
	if url := os.Getenv("DBLOCK_LEASEHOLDER"); url != "" {
		holdInChild(url, dblock.NewLeases[pgx.Tx])
	}
	if role := os.Getenv("DBLOCK_ACTOR"); role != "" {
		actInChild(role)
	}
	os.Exit(m.Run())
}

const childTTL = 2 * time.Second

// holdInChild takes the lock, says so, and then prints what it knows of it each time it reads a line.
func holdInChild(url string, open func(context.Context, pg.Driver[pgx.Tx], *dblock.Config) (*client, error)) {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		panic(err)
	}
	c, err := open(ctx, deafDriver{pgxdriver.New(pool)}, &dblock.Config{TTL: childTTL}) // it goes by the clock alone
	if err != nil {
		panic(err)
	}
	lock, err := c.Acquire(ctx, key("1"), nil)
	if err != nil {
		panic(err)
	}
	fmt.Printf("holding %d\n", lock.Token())
	in := bufio.NewReader(os.Stdin)
	for {
		if _, err := in.ReadString('\n'); err != nil {
			os.Exit(0)
		}
		fmt.Printf("%v %v\n", lock.Context().Err() != nil, errors.Is(context.Cause(lock.Context()), dblock.ErrLost))
	}
}

// holder is such a child, with what it says and hears.
type holder struct {
	*exec.Cmd
	said  *bufio.Reader
	hears *os.File
	token dblock.Token
}

func startHolder(t *testing.T, url string) *holder {
	t.Helper()
	return startChild(t, "DBLOCK_HOLDER="+url)
}

func startChild(t *testing.T, env string) *holder {
	t.Helper()
	h := &holder{Cmd: exec.Command(os.Args[0])}
	h.Env = append(os.Environ(), env)
	h.Stderr = os.Stderr
	stdout, err := h.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, hears, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	h.Stdin, h.hears, h.said = in, hears, bufio.NewReader(stdout)
	if err := h.Start(); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	t.Cleanup(func() {
		_ = h.Process.Kill()
		_ = h.Wait()
		_ = hears.Close()
	})
	if _, err := fmt.Sscanf(h.line(t), "holding %d", &h.token); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *holder) line(t *testing.T) string {
	t.Helper()
	line, err := h.said.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// R3: a process that is killed frees its locks at once, to somebody who waits for one, and long before the TTL.
func TestKilledHolder(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.client(t, nil)
	times := scale(3, 50)
	var longest time.Duration
	for range times {
		h := startHolder(t, b.URL)
		won := make(chan *locked, 1)
		go func() { won <- acquire(t, c, "1", nil) }()
		waiting(t, b, 1)
		killed := time.Now()
		if err := h.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		l := <-won
		longest = max(longest, time.Since(killed))
		if l.Token() <= h.token {
			t.Errorf("token %d after %d", l.Token(), h.token)
		}
		release(t, l)
	}
	t.Logf("R3 holders_killed=%d key_free_within=%v ok", times, longest)
}

// R3: the same for a process that is killed in the middle of a statement, which is its wait in the server's queue: it is not in the
// way of those behind it.
func TestKilledWaiter(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	first, second := b.client(t, nil), b.client(t, nil)
	times := scale(3, 50)
	var longest time.Duration
	for range times {
		l := acquire(t, first, "1", nil)
		h := startWaiter(t, b.URL)
		waiting(t, b, 1)
		won := make(chan *locked, 1)
		go func() { won <- acquire(t, second, "1", nil) }()
		waiting(t, b, 2)
		if err := h.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		killed := time.Now()
		release(t, l)
		release(t, <-won)
		longest = max(longest, time.Since(killed))
	}
	t.Logf("R3 waiters_killed_in_a_statement=%d key_free_within=%v ok", times, longest)
}

// startWaiter is a holder that cannot hold yet.
func startWaiter(t *testing.T, url string) *holder {
	t.Helper()
	h := &holder{Cmd: exec.Command(os.Args[0])}
	h.Env = append(os.Environ(), "DBLOCK_HOLDER="+url)
	in, hears, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	h.Stdin = in
	if err := h.Start(); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	t.Cleanup(func() { _ = hears.Close(); _ = h.Process.Kill(); _ = h.Wait() })
	return h
}

// A process that is frozen loses its locks to others after the TTL, and not before; when it wakes up, the
// first thing it asks of the lock tells it.
func TestFrozenHolder(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	h := startHolder(t, b.URL)
	c := b.client(t, nil)
	if err := h.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	l := acquire(t, c, "1", nil)
	if l.Token() <= h.token {
		t.Errorf("token %d after %d", l.Token(), h.token)
	}
	if _, err := h.hears.WriteString("what now?\n"); err != nil {
		t.Fatal(err)
	}
	if err := h.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if got := h.line(t); got != "true true" {
		t.Errorf("the holder that woke up says %q, want that its ctx has ended, by a loss", got)
	}
	release(t, l)
}

// A process that is frozen while it waits is given the lock, and loses it after the TTL.
func TestFrozenWaiter(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.client(t, nil)
	l := acquire(t, c, "1", nil)
	h := startWaiter(t, b.URL)
	waiting(t, b, 1)
	if err := h.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	release(t, l)
	pgtest.Eventually(t, "the frozen one has it", func() bool {
		l, err := c.TryAcquire(within(t), key("1"), nil)
		if err == nil {
			release(t, l)
		}
		return errors.Is(err, dblock.ErrNotAcquired)
	})
	release(t, acquire(t, c, "1", nil))
}
