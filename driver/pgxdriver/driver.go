// Package pgxdriver connects pgonce to a pgx pool. Handlers get a pgx.Tx.
//
//	keys, err := idem.New(pgxdriver.New(pool), nil)
//
// First statements travel with BEGIN and last statements with COMMIT, one round
// trip each. All five query exec modes of pgx work.
package pgxdriver

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/internal/pgerr"
	"github.com/pgonce/pgonce/internal/pg"
)

// Driver carries the library's statements over a pgx pool. It opens nothing by itself and never
// closes the pool. Safe for concurrent use.
type Driver struct {
	pool *pgxpool.Pool
	mode *execMode
}

// execMode is how the pool's connections execute. It is found at the first use: a pool that was never opened is good
// enough to write a migration.
type execMode struct {
	once  sync.Once
	mode  pgx.QueryExecMode
	mixed bool // a hook of the pool may give a connection another one
}

func (m *execMode) find(pool *pgxpool.Pool) {
	m.once.Do(func() {
		cfg := pool.Config()
		m.mode, m.mixed = cfg.ConnConfig.DefaultQueryExecMode, cfg.BeforeConnect != nil
	})
}

var _ pg.Driver[pgx.Tx] = (*Driver)(nil)

// New uses pool, which stays the caller's to close. A nil pool is reported by the
// constructor that the driver is handed to (idem.New and its like).
func New(pool *pgxpool.Pool) *Driver { return &Driver{pool, new(execMode)} }

// Err implements the seam.
func (d *Driver) Err() error {
	if d == nil || d.pool == nil {
		return errors.New("pgxdriver: nil pool: pass the *pgxpool.Pool of pgxpool.New")
	}
	return nil
}

// MaxConns implements the seam.
func (d *Driver) MaxConns() int { return int(d.pool.Stat().MaxConns()) }

// Pipelined implements the seam.
func (d *Driver) Pipelined() bool { return true }

// Pool implements the seam.
func (d *Driver) Pool() pg.Querier { return poolQuerier{d} }

// Tx implements the seam.
func (d *Driver) Tx(tx pgx.Tx) pg.TxQuerier { return txQuerier{tx} }

// Spoil implements the seam. The server rolls back when it finds the socket closed.
func (d *Driver) Spoil(tx pgx.Tx) {
	if conn := tx.Conn(); conn != nil {
		closeNow(conn)
	}
}

// Session implements the seam. The connection is dialled beside the pool, with
// the pool's own settings and hooks, so that a lock never takes one of the
// connections that the application counts on.
func (d *Driver) Session(ctx context.Context) (pg.Session, error) {
	cfg := d.pool.Config()
	if cfg.BeforeConnect != nil {
		if err := cfg.BeforeConnect(ctx, cfg.ConnConfig); err != nil {
			return nil, fmt.Errorf("%w: %w", pg.ErrUnavailable, err)
		}
	}
	conn, err := pgx.ConnectConfig(ctx, cfg.ConnConfig)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", pg.ErrUnavailable, mapError(err))
	}
	if cfg.AfterConnect != nil {
		if err := cfg.AfterConnect(ctx, conn); err != nil {
			closeNow(conn)
			return nil, fmt.Errorf("%w: %w", pg.ErrUnavailable, err)
		}
	}
	return &session{conn: conn, socket: conn.PgConn().Conn()}, nil
}

// session breaks off what it runs when its ctx ends. pgx would start a goroutine for that with every trip, which costs
// a lock as much as the rest of the trip. A ctx that several calls share is watched once, without one.
type session struct {
	conn   *pgx.Conn
	socket net.Conn
	ctx    context.Context // the one that is watched
	bare   context.Context // the same without its end, which is not for pgx
	stop   func() bool     // ends that
	ended  chan struct{}   // closed when the end of ctx has reached the socket
}

func (s *session) Run(ctx context.Context, st pg.Stmt) error { return s.RunAll(ctx, st) }

func (s *session) Query(ctx context.Context, sql string, args ...any) iter.Seq2[pg.Scan, error] {
	return query(ctx, s.conn, sql, args)
}

// RunAll implements the seam. When ctx ends, reading and writing fail, and pgx closes the connection.
func (s *session) RunAll(ctx context.Context, stmts ...pg.Stmt) error {
	if ctx != s.ctx {
		s.watch(ctx)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx) // nothing is sent
	}
	err := s.runAll(stmts)
	if err != nil && ctx.Err() != nil && !pg.Rejected(err) {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}

// watch has the socket fail when ctx ends, and not any more when the ctx before does.
func (s *session) watch(ctx context.Context) {
	s.unwatch()
	ended := make(chan struct{})
	s.ctx, s.bare, s.ended = ctx, context.WithoutCancel(ctx), ended
	s.stop = context.AfterFunc(ctx, func() {
		defer close(ended)
		if s.socket.SetDeadline(time.Unix(1, 0)) != nil { // it has none, as in an SSH tunnel
			_ = s.socket.Close()
		}
	})
}

func (s *session) unwatch() {
	if s.ctx != nil && !s.stop() {
		<-s.ended
		if !s.conn.IsClosed() { // else pgx takes leave of the server, within a deadline of its own
			_ = s.socket.SetDeadline(time.Time{}) // nothing was under way then
		}
	}
	s.ctx = nil
}

func (s *session) runAll(stmts []pg.Stmt) error {
	if len(stmts) == 1 {
		return run(s.bare, s.conn, stmts[0])
	}
	return sendAll(s.bare, s.conn, stmts)
}

func (s *session) Socket() syscall.RawConn { return pgerr.Socket(s.conn) }

func (s *session) Cancel(ctx context.Context) error { return s.conn.PgConn().CancelRequest(ctx) }

func (s *session) Close(ctx context.Context) error {
	s.unwatch()
	if s.conn.IsClosed() {
		closeNow(s.conn)
		return nil
	}
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	return mapError(s.conn.Close(tctx))
}

// mapError turns the server's answer into the seam's error type.
func mapError(err error) error {
	if errors.Is(err, pgx.ErrTxClosed) {
		return fmt.Errorf("%w: %w", pg.ErrTxEnded, err)
	}
	mapped, _ := pgerr.Map(err)
	return mapped
}

// closeNow closes the socket without a farewell. pgx closes a broken connection
// in the background and keeps its place in the pool for up to 15 s while it
// tries to be polite; with the socket gone there is nothing left to wait for.
func closeNow(conn *pgx.Conn) { _ = conn.PgConn().Conn().Close() }
