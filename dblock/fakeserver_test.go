package dblock

import (
	"context"
	"errors"
	"iter"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// fakeServer is a session on which every lock is free. It can fall silent, and be slow.
type fakeServer struct {
	mu                  sync.Mutex
	silent              bool
	delay               time.Duration
	takes, drops, beats int
	sequence, pid       int64
	forgetful           bool // it holds nothing that is given back
}

func (f *fakeServer) RunAll(ctx context.Context, stmts ...pg.Stmt) error {
	f.mu.Lock()
	silent, delay := f.silent, f.delay
	f.mu.Unlock()
	if silent {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	if delay > 0 {
		time.Sleep(delay) //nolint:forbidigo // in a bubble of synctest
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range stmts {
		switch s.SQL {
		case sqlTakeOne:
			f.takes++
			f.sequence++
			*s.Dest[0].(*int64) = f.sequence
		case sqlUnlock:
			f.drops++
			*s.Dest[0].(*bool) = !f.forgetful
		case sqlPeek:
			sayYes(s)
		case sqlDrop, sqlDropShared:
			sayYes(s)
			f.drops++
		case sqlTake, sqlTakeShared:
			sayYes(s)
			f.takes++
			f.sequence++
			*s.Dest[2].(*int64) = f.sequence
		case pg.SQLBackendPID:
			f.beats++
			*s.Dest[0].(*int64) = f.pid
		}
	}
	return nil
}

// sayYes answers for all keys of a statement as one expects.
func sayYes(s pg.Stmt) { *s.Dest[0].(*int64) = int64(strings.Count(s.Args[0].(string), ",") + 1) }

func (f *fakeServer) Run(ctx context.Context, s pg.Stmt) error { return f.RunAll(ctx, s) }
func (*fakeServer) Query(context.Context, string, ...any) iter.Seq2[pg.Scan, error] {
	return func(func(pg.Scan, error) bool) {}
}
func (*fakeServer) Cancel(context.Context) error { return nil }
func (*fakeServer) Close(context.Context) error  { return nil }
func (*fakeServer) Socket() syscall.RawConn      { return nil }

func (f *fakeServer) set(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
}

var errNoServer = errors.New("no server")

// fakeClient has one shard, on a fake server, and can have no other.
func fakeClient(t *testing.T) (*Client[struct{}], *fakeServer) {
	t.Helper()
	return fakeClientOf(t, nil)
}

func fakeClientOf(t *testing.T, c *Config) (*Client[struct{}], *fakeServer) {
	t.Helper()
	cfg, err := c.resolved()
	if err != nil {
		t.Fatal(err)
	}
	e := newEngine(t.Context(), func(context.Context) (pg.Session, error) { return nil, errNoServer }, cfg)
	e.watch.close() // its goroutine waits for the kernel, which would stop the clock of the bubble
	e.watch = nil
	e.wg.Wait()
	f := &fakeServer{pid: 1}
	s := &session{engine: e, conn: f, pid: 1, holds: map[*hold]struct{}{}, sent: e.now()}
	s.ctx, s.cut = context.WithCancel(context.WithoutCancel(t.Context()))
	e.budget = 1000
	e.shards = append(e.shards, s)
	s.begin()
	return &Client[struct{}]{engine: e}, f
}

func end(t *testing.T, c *Client[struct{}]) {
	t.Helper()
	if err := c.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
