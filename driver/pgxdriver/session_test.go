//go:build unix

package pgxdriver_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// A ctx that ends between two calls of a session, or as the next one begins, does not reach that one, nor Close.
func TestSessionOutlivesItsContexts(t *testing.T) {
	t.Parallel()
	s, err := pgxdriver.New(pgtest.New(t).Pool(t)).Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for n := range 2000 {
		ctx, cancel := context.WithCancel(t.Context())
		var pid int64
		if err := s.RunAll(ctx, pg.Stmt{SQL: pg.SQLBackendPID, Dest: []any{&pid}}); err != nil {
			t.Fatalf("call %d: %v", n, err)
		}
		cancel()
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// oddSocket is a socket whose answers can get lost, and that may have no deadlines.
type oddSocket struct {
	net.Conn
	deaf, timeless               atomic.Bool
	asked                        chan struct{} // since it is deaf, something was sent
	leaving                      chan struct{} // since it is deaf, pgx has set a deadline: for taking leave of the server
	closed                       chan struct{}
	onAsked, onLeaving, onClosed sync.Once
}

func (o *oddSocket) Write(p []byte) (int, error) {
	n, err := o.Conn.Write(p)
	if o.deaf.Load() {
		o.onAsked.Do(func() { close(o.asked) })
	}
	return n, err
}

func (o *oddSocket) Read(p []byte) (int, error) {
	for {
		n, err := o.Conn.Read(p)
		if err != nil || !o.deaf.Load() {
			return n, err
		}
	}
}

func (o *oddSocket) SetDeadline(at time.Time) error {
	if o.timeless.Load() {
		return errors.New("deadline not supported")
	}
	err := o.Conn.SetDeadline(at)
	if o.deaf.Load() && at.After(time.Now()) {
		o.onLeaving.Do(func() { close(o.leaving) })
	}
	return err
}

func (o *oddSocket) Close() error {
	o.onClosed.Do(func() { close(o.closed) })
	return o.Conn.Close()
}

// oddSession is a session on such a socket, whose server ends no connection by itself while the test lasts.
func oddSession(t *testing.T) (pg.Session, *oddSocket) {
	t.Helper()
	db := pgtest.New(t)
	cfg := db.Config(t)
	dial := cfg.ConnConfig.DialFunc
	odd := &oddSocket{asked: make(chan struct{}), leaving: make(chan struct{}), closed: make(chan struct{})}
	var first atomic.Bool
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil || !first.CompareAndSwap(false, true) {
			return conn, err
		}
		odd.Conn = conn
		return odd, nil
	}
	s, err := pgxdriver.New(db.Open(t, cfg)).Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s, odd
}

// breakOff has the ctx of a call end while its answer does not come.
func breakOff(t *testing.T, s pg.Session, odd *oddSocket) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-odd.asked
		cancel()
	}()
	odd.deaf.Store(true)
	if err := s.Run(ctx, pg.Stmt{SQL: pg.SQLBackendPID, Dest: []any{new(int64)}}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// pgx takes leave of a server that does not answer, for up to 15 s, or for ever if its deadline was taken away. Close ends
// that.
func TestSessionOfASilentServerIsClosed(t *testing.T) {
	t.Parallel()
	s, odd := oddSession(t)
	breakOff(t, s, odd)
	<-odd.leaving
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	select {
	case <-odd.closed:
	default:
		t.Error("the socket is open")
	}
}

// The end of a ctx reaches a call on a socket that has no deadlines, as in an SSH tunnel.
func TestSessionWithoutDeadlines(t *testing.T) {
	t.Parallel()
	s, odd := oddSession(t)
	odd.timeless.Store(true)
	breakOff(t, s, odd)
	<-odd.closed
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
