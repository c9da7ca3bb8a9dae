//go:build unix

package pgtest

import (
	"context"
	"net"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgconn"
)

// Wire counts what goes over the connections that are dialled through it.
type Wire struct {
	trips atomic.Int64
}

// Trips is the number of round trips so far: answers that followed a request.
func (w *Wire) Trips() int64 { return w.trips.Load() }

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
		c.wire.trips.Add(1)
	}
	return n, err
}
