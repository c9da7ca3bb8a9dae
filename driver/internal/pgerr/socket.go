package pgerr

import (
	"net"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// Socket is the socket below a connection, under TLS too, or nil where there is none to be had.
func Socket(conn *pgx.Conn) syscall.RawConn {
	c := conn.PgConn().Conn()
	if inner, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = inner.NetConn()
	}
	if c, ok := c.(syscall.Conn); ok {
		if raw, err := c.SyscallConn(); err == nil {
			return raw
		}
	}
	return nil
}
