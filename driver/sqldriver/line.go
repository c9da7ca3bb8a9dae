package sqldriver

import (
	"context"
	"database/sql"
	"io"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/internal/pgerr"
)

// letGo is how long a client library may take to give up a trip whose ctx has ended, before the
// connection is closed under it.
const letGo = time.Second

// line is the connection below a *sql.Conn, where the client library goes on waiting for the
// server after the end of its ctx. The zero line is for one that does not.
//
// lib/pq answers the end of a ctx with a cancel request and then waits for what the server says
// to it, and its BEGIN, COMMIT and ROLLBACK heed no ctx at all. On a network that swallows packets
// that lasts until the kernel gives up, a quarter of an hour or more. Only closing the
// connection ends it, and database/sql cannot: its own verbs queue behind the trip.
//
// Close is the one method that meets another one of the same connection. lib/pq's writes to the
// socket and closes it, and touches nothing else; and whatever another library's does to its
// state, nobody uses that state again. pgx lets go by itself and is left alone.
type line struct {
	conn  io.Closer
	still bool // the client library is not told of the end of a ctx
}

func lineOf(conn *sql.Conn) (l line) {
	_ = conn.Raw(func(c any) error {
		if _, ok := c.(interface{ Conn() *pgx.Conn }); !ok {
			l.conn, _ = c.(io.Closer)
		}
		return nil
	})
	return l
}

// quiet is a line for statements that commit by themselves: a cancel request could end the wait of their commit for a
// synchronous standby, see [pgerr.WithoutCancel]. lib/pq sends one when a ctx ends that it was given.
func (l line) quiet() line {
	l.still = l.conn != nil
	return l
}

// ctx is what the client library gets of ctx.
func (l line) ctx(ctx context.Context) context.Context {
	if l.still {
		return context.WithoutCancel(ctx)
	}
	return ctx
}

// trip runs fn, which uses the connection under ctx, and sees to it that fn returns when ctx
// ends. When trip returns, nothing is left that could close the connection.
func (l line) trip(ctx context.Context, fn func() error) error {
	if l.conn == nil || ctx.Done() == nil {
		return fn()
	}
	over, gone := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(gone)
		timer := time.NewTimer(letGo)
		defer timer.Stop()
		if l.still {
			timer.Reset(0)
		}
		select {
		case <-over:
		case <-timer.C:
			_ = l.conn.Close()
		}
	})
	defer func() { // also when a consumer of rows panics in fn
		close(over)
		if !stop() {
			<-gone
		}
	}()
	return fn()
}

// giveBack gives a connection back to its pool, or up if the end of ctx may have closed it, which the pool does not know of.
func (l line) giveBack(ctx context.Context, conn *sql.Conn) {
	if ctx.Err() != nil {
		discard(conn)
		return
	}
	_ = conn.Close()
}

// withoutCancel is [pgerr.WithoutCancel] where pgx is below.
func withoutCancel(conn *sql.Conn, trip func()) {
	var inner *pgx.Conn
	_ = conn.Raw(func(c any) error {
		if c, ok := c.(interface{ Conn() *pgx.Conn }); ok {
			inner = c.Conn()
		}
		return nil
	})
	if inner == nil {
		trip()
		return
	}
	pgerr.WithoutCancel(inner, trip)
}
