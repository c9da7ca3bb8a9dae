//go:build unix

package dblock_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
)

// role is what a process of a storm is told. Callers are numbered across processes.
type role struct {
	URL, File      string
	First, Callers int
	Keys, Readers  int
	TTL            time.Duration
	Seed           uint64
	Work           string        // what is done instead: the way of TestReadModifyWrite
	Nap            time.Duration // between tenures of a caller
}

// callersEach is the room for callers' numbers in a process.
const callersEach = 100

// line is one of the file that a process appends to: with one write each, so that a kill does not tear what was said before.
type line struct {
	Tenure  *tenure `json:",omitempty"`
	Commits int     `json:",omitempty"`
	Error   string  `json:",omitempty"`
}

// actInChild plays a process of a storm until nobody holds the other end of its input.
func actInChild(text string) {
	var r role
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		panic(err)
	}
	out, err := os.OpenFile(r.File, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	var mu sync.Mutex
	say := func(l line) {
		text, err := json.Marshal(l)
		if err != nil {
			panic(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if _, err := out.Write(append(text, '\n')); err != nil {
			panic(err)
		}
	}
	fail := func(err error) { say(line{Error: err.Error()}) }
	stop := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	rec := recorder{now: monotonic, fail: fail, tenure: func(t tenure) { say(line{Tenure: &t}) }}
	act(r, rec, say, stop)
	os.Exit(0)
}

func act(r role, rec recorder, say func(line), stop <-chan struct{}) {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, r.URL)
	if err != nil {
		panic(err)
	}
	var c *client
	for c == nil {
		c, err = dblock.New(ctx, pgxdriver.New(pool), &dblock.Config{TTL: r.TTL, Holder: fmt.Sprint("actor", r.First/callersEach)})
		if err != nil && pause(stop, 50*time.Millisecond) { // the server is being started again
			return
		}
	}
	var wg sync.WaitGroup
	for i := range r.Callers {
		random := rand.New(rand.NewPCG(r.Seed, uint64(r.First+i)))
		if r.Work != "" {
			wg.Go(func() { work(ctx, r, pool, c, say, stop) })
			continue
		}
		wg.Go(func() {
			for nap := time.Duration(0); !pause(stop, nap); nap = r.Nap {
				ctx, cancel := context.WithTimeout(ctx, time.Duration(random.IntN(5000))*time.Millisecond)
				shared, hold := random.IntN(100) < r.Readers, time.Duration(max(0, random.IntN(30)-20))*time.Millisecond
				if !rec.once(ctx, c, r.First+i, random.IntN(r.Keys), shared, hold) {
					pause(stop, 10*time.Millisecond)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if err := c.Close(ctx); err != nil {
		rec.fail(err)
	}
}

// pause waits, and reports whether it is time to stop.
func pause(stop <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-stop:
		return true
	case <-timer.C:
		select {
		case <-stop:
			return true
		default:
			return false
		}
	}
}

// actor is such a process.
type actor struct {
	*exec.Cmd
	role  role
	stdin io.Closer
	read  int64 // bytes of its file
	rest  []byte
	ended bool
}

func startActor(t *testing.T, r role) *actor {
	t.Helper()
	r.File = filepath.Join(t.TempDir(), "steps")
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	a := &actor{Cmd: exec.Command(os.Args[0]), role: r}
	a.Env = append(os.Environ(), "DBLOCK_ACTOR="+string(text))
	a.Stderr = os.Stderr
	if a.stdin, err = a.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.kill() })
	return a
}

// kill ends the process at once.
func (a *actor) kill() {
	if !a.ended {
		a.ended = true
		_ = a.Process.Kill()
		_ = a.Wait()
	}
}

// stop lets the process finish what it has begun.
func (a *actor) stop(t *testing.T) {
	t.Helper()
	if a.ended {
		return
	}
	a.ended = true
	_ = a.stdin.Close()
	if err := a.Wait(); err != nil {
		t.Error(err)
	}
}

// plays reports whether a caller is one of the process.
func (a *actor) plays(caller int) bool {
	return caller >= a.role.First && caller < a.role.First+callersEach
}

// script is what processes have written so far. The last that was said of a tenure counts.
type script struct {
	tenures map[[2]int64]tenure
	done    int
	commits int
}

// follow reads on in a process' file.
func (s *script) follow(t *testing.T, a *actor) {
	t.Helper()
	f, err := os.Open(a.role.File)
	if err != nil {
		return // nothing said yet
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Seek(a.read, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(bufio.NewReader(f))
	if err != nil {
		t.Fatal(err)
	}
	a.read += int64(len(text))
	text = append(a.rest, text...)
	for {
		one, rest, whole := bytes.Cut(text, []byte{'\n'})
		if !whole {
			break
		}
		text = rest
		var l line
		if err := json.Unmarshal(one, &l); err != nil {
			t.Fatal(err)
		}
		if l.Error != "" {
			t.Error(l.Error)
		}
		s.commits += l.Commits
		if l.Tenure != nil {
			s.tenures[[2]int64{int64(l.Tenure.Client), l.Tenure.Call}] = *l.Tenure
			if l.Tenure.Gone != 0 {
				s.done++
			}
		}
	}
	a.rest = bytes.Clone(text)
}
