//go:build linux

package faults_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/internal/localpg"
)

// disk is a small file system that the server may write to.
type disk struct{ dir string }

func newDisk(t *testing.T, megabytes int) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may mount a file system of a chosen size")
	}
	dir, err := os.MkdirTemp("/tmp", "disk-") //nolint:usetesting // it has to be reached by the server's user
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("pgonce", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0755", megabytes)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(syscall.Unmount(dir, syscall.MNT_DETACH), os.Remove(dir)); err != nil {
			t.Error(err)
		}
	})
	return &disk{dir}
}

// give makes a path on the disk the property of the server's user.
func (d *disk) give(t *testing.T, path string) {
	t.Helper()
	user, err := localpg.ServerUser()
	if err == nil {
		err = os.Chown(path, int(user.Uid), int(user.Gid))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (d *disk) fill(t *testing.T) {
	t.Helper()
	f, err := os.Create(filepath.Join(d.dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 1<<20); len(block) > 0; {
		if _, err := f.Write(block); err != nil {
			block = block[:len(block)/2]
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func (d *disk) free(t *testing.T) {
	t.Helper()
	if err := os.Remove(filepath.Join(d.dir, "filler")); err != nil {
		t.Fatal(err)
	}
}

// underLoad has a service at work while the disk fills up, until full says that it has been felt, and until the service has gone on
// after space was freed.
func underLoad(t *testing.T, s *service, d *disk, full func() bool) {
	t.Helper()
	stop := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { s.run(ctx, stop) })
	defer wg.Wait()
	defer cancel() // where the test fails
	const enough = 100
	waitFor(t, "there is something to lose", func() bool { return s.acknowledged() >= enough })
	d.fill(t)
	waitFor(t, "the disk is full", full)
	d.free(t)
	before := s.acknowledged()
	waitFor(t, "it goes on", func() bool { return s.acknowledged() >= before+enough })
	close(stop)
	wg.Wait() // each ends what it has begun
}

// waitFor waits for longer than pgtest does: a server may crash and recover several times.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.After(5 * time.Minute); !ok(); {
		select {
		case <-deadline:
			t.Fatalf("timed out: %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func verdict(t *testing.T, s *service, what string) {
	t.Helper()
	lost, doubled, alone := s.audit(t)
	if lost+doubled+alone > 0 {
		t.Errorf("lost %d, doubled %d, alone %d", lost, doubled, alone)
	}
	word := "ok"
	if t.Failed() {
		word = "short"
	}
	fmt.Printf("faults %s acknowledged=%d refused=%d unavailable=%d unknown=%d lost=%d doubled=%d alone=%d %s\n", what, s.acknowledged(),
		s.said("disk full"), s.said("unavailable"), s.said("unknown outcome"), lost, doubled, alone, word)
}

// No table can grow any more: whoever has to write gets the server's error, and nothing of his is there; who repeats gets
// his answer. When there is space again, all goes on without a restart.
func TestTablesDiskIsFull(t *testing.T) {
	t.Parallel()
	d := newDisk(t, 64)
	server := start(t, &localpg.Config{Durable: true})
	place := filepath.Join(d.dir, "space")
	if err := os.Mkdir(place, 0o700); err != nil {
		t.Fatal(err)
	}
	d.give(t, place)
	admin := open(t, server.URL("postgres"))
	say(t, admin, `CREATE TABLESPACE small LOCATION '`+place+`'`, `CREATE DATABASE app TABLESPACE small`)
	pool := open(t, server.URL("app"))
	migrate(t, pool)
	s := newService(t, pool)
	if !s.once(t.Context(), 1<<20) { // a key that is known before
		t.Fatal(s.strange, s.errs)
	}
	underLoad(t, s, d, func() bool {
		if s.said("disk full") < 50 {
			return false
		}
		if res, err := s.refund(t.Context(), fmt.Sprint(1<<20)); err != nil || !res.Replayed {
			t.Errorf("a repeat while the disk is full: %+v, %v", res, err)
		}
		return true
	})
	verdict(t, s, "tables-full")
}

// The disk of the WAL is full, because the slot of a standby that is gone keeps all of it: the server crashes, and crashes again until there
// is space. Nothing that was acknowledged is lost, and what was not is settled by asking again.
func TestWALDiskIsFull(t *testing.T) {
	t.Parallel()
	d := newDisk(t, 160)
	server := start(t, &localpg.Config{Durable: true, Keep: true, Settings: map[string]string{
		"min_wal_size": "32MB", "max_wal_size": "48MB", "max_slot_wal_keep_size": "-1", "log_min_messages": "warning",
	}})
	moveWAL(t, server, d)
	pool := open(t, server.URL("postgres"))
	migrate(t, pool)
	say(t, pool, `SELECT pg_create_physical_replication_slot('gone', true)`)
	s := newService(t, pool)
	writing, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var begin sync.Once // not before the disk is filled: nobody would free what this writes
	underLoad(t, s, d, func() bool {
		begin.Do(func() { wg.Go(func() { writeWAL(writing, pool) }) })
		full := panics(t, server) > 0 && s.said("unavailable")+s.said("unknown outcome") > 0
		if full {
			cancel()
		}
		return full
	})
	fmt.Printf("faults wal-full panics=%d\n", panics(t, server))
	verdict(t, s, "wal-full")
}

// moveWAL puts the server's WAL on the disk.
func moveWAL(t *testing.T, server *localpg.Server, d *disk) {
	t.Helper()
	if err := server.Down(); err != nil {
		t.Fatal(err)
	}
	from, to := filepath.Join(server.Folder(), "data", "pg_wal"), filepath.Join(d.dir, "pg_wal")
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := errors.Join(os.RemoveAll(from), os.Symlink(to, from)); err != nil {
		t.Fatal(err)
	}
	if err := server.Up(); err != nil {
		t.Fatal(err)
	}
}

// writeWAL fills the WAL, a segment at a time.
func writeWAL(ctx context.Context, pool *pgxpool.Pool) {
	for ctx.Err() == nil {
		_, _ = pool.Exec(ctx, `SELECT pg_logical_emit_message(false, '', repeat('x', 1000000)), pg_switch_wal()`) // until it crashes
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// panics counts what the server says of its end.
func panics(t *testing.T, server *localpg.Server) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(server.Folder(), "log"))
	if err != nil {
		t.Error(err)
	}
	return bytes.Count(text, []byte("PANIC:  could not write to file")) + bytes.Count(text, []byte("FATAL:  could not write to file"))
}
