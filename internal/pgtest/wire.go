//go:build unix

package pgtest

import (
	"context"
	"net"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgconn"
)

// Wire counts what goes over the connections that are dialled through it, and can hold
// answers back.
type Wire struct {
	trips atomic.Int64
	limit atomic.Int64 // hold answers beyond this many trips; 0 holds none
	goOn  chan struct{}
}

// NewWire makes a wire that lets everything through.
func NewWire() *Wire { return &Wire{goOn: make(chan struct{})} }

// Trips is the number of round trips so far: answers that followed a request.
func (w *Wire) Trips() int64 { return w.trips.Load() }

// HoldAfter lets n more answers through and holds the next ones back until [Wire.Release].
func (w *Wire) HoldAfter(n int64) { w.limit.Store(w.trips.Load() + n) }

// Release lets the held answers through, and all that follow. It may be called once.
func (w *Wire) Release() { close(w.goOn) }

// Dial is a dial function that counts.
func (w *Wire) Dial(dial pgconn.DialFunc) pgconn.DialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &wireConn{Conn: conn, wire: w}, nil
	}
}

type wireConn struct {
	net.Conn
	wire *Wire
	sent atomic.Bool // since the last answer
}

func (c *wireConn) Write(p []byte) (int, error) {
	c.sent.Store(true)
	return c.Conn.Write(p)
}

func (c *wireConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && c.sent.Swap(false) {
		trip := c.wire.trips.Add(1)
		if limit := c.wire.limit.Load(); limit > 0 && trip > limit {
			<-c.wire.goOn
		}
	}
	return n, err
}
