// Package sqldriver connects pgonce to database/sql. Handlers get a *sql.Tx.
//
//	keys, err := idem.New(sqldriver.New(db), nil)
//
// It works over any Postgres driver for database/sql: pgx's stdlib, lib/pq.
// Statements cost a round trip each, since database/sql has no pipeline.
package sqldriver

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"os"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/internal/pgerr"
	"github.com/pgonce/pgonce/internal/pg"
)

// Tx is what a transaction type must have: *sql.Tx, and those that embed it.
type Tx interface {
	queryer
	Commit() error
	Rollback() error
}

// BeginFunc opens a transaction on one connection.
type BeginFunc[TX Tx] func(ctx context.Context, opts *sql.TxOptions) (TX, error)

// Driver carries the library's statements over database/sql. It opens nothing by itself and
// never closes the pool. Safe for concurrent use.
type Driver[TX Tx] struct {
	db      *sql.DB
	connect func(context.Context) (*sql.Conn, BeginFunc[TX], error)
}

var _ pg.Driver[*sql.Tx] = (*Driver[*sql.Tx])(nil)

// New uses db, which stays the caller's to close. A nil db is reported by the
// constructor that the driver is handed to (idem.New and its like).
func New(db *sql.DB) *Driver[*sql.Tx] {
	return With(db, func(ctx context.Context) (*sql.Conn, BeginFunc[*sql.Tx], error) {
		conn, err := db.Conn(ctx)
		if err != nil {
			return nil, nil, err
		}
		return conn, conn.BeginTx, nil
	})
}

// With serves libraries that wrap database/sql in a transaction type of their
// own. connect takes one connection out of db and says how to begin on it.
func With[TX Tx](db *sql.DB, connect func(context.Context) (*sql.Conn, BeginFunc[TX], error)) *Driver[TX] {
	return &Driver[TX]{db: db, connect: connect}
}

// Err implements the seam.
func (d *Driver[TX]) Err() error {
	if d == nil || d.db == nil || d.connect == nil {
		return errors.New("sqldriver: nil database: pass the *sql.DB of sql.Open")
	}
	return nil
}

// MaxConns implements the seam.
func (d *Driver[TX]) MaxConns() int { return d.db.Stats().MaxOpenConnections }

// Pipelined implements the seam.
func (d *Driver[TX]) Pipelined() bool { return false }

// Pool implements the seam.
func (d *Driver[TX]) Pool() pg.Querier { return poolQuerier{d.db} }

// Tx implements the seam.
func (d *Driver[TX]) Tx(tx TX) pg.TxQuerier { return querier{q: tx} }

// Spoil implements the seam. It closes rows that were left open, as the package's own Rollback does.
func (d *Driver[TX]) Spoil(tx TX) { _ = tx.Rollback() }

// Session implements the seam. It takes a connection out of the pool for as long
// as it lives: database/sql has no other way to come by one.
func (d *Driver[TX]) Session(ctx context.Context) (pg.Session, error) {
	conn, err := d.db.Conn(ctx)
	if err != nil {
		return nil, unavailable(d.db, ctx, err)
	}
	s := &session{querier: querier{conn, lineOf(conn)}, db: d.db, conn: conn}
	if err := s.Run(ctx, pg.Stmt{SQL: pg.SQLBackendPID, Dest: []any{&s.pid}}); err != nil {
		discard(conn)
		return nil, fmt.Errorf("%w: %w", pg.ErrUnavailable, err)
	}
	return s, nil
}

type session struct {
	querier
	db   *sql.DB
	conn *sql.Conn
	pid  int64
}

// Socket is known of pgx only.
func (s *session) Socket() (socket syscall.RawConn) {
	_ = s.conn.Raw(func(c any) error {
		if c, ok := c.(interface{ Conn() *pgx.Conn }); ok {
			socket = pgerr.Socket(c.Conn())
		}
		return nil
	})
	return socket
}

// Cancel needs a second connection, since database/sql does not know the protocol's cancel key.
func (s *session) Cancel(ctx context.Context) error {
	return poolQuerier{s.db}.Run(ctx, pg.Stmt{SQL: pg.SQLCancelBackend, Args: []any{s.pid}})
}

func (s *session) Close(context.Context) error {
	discard(s.conn)
	return nil
}

// mapError turns the server's answer into the seam's error type, without naming
// the client library: pgx's error by its type, any other that knows its SQLSTATE
// and its fields by the letters of the wire protocol (lib/pq) by those.
func mapError(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return fmt.Errorf("%w: %w", pg.ErrTxEnded, err)
	}
	mapped, ok := pgerr.Map(err)
	if ok {
		return mapped
	}
	var e interface {
		SQLState() string
		Get(field byte) string
	}
	if errors.As(err, &e) {
		return &pg.Error{
			Code: e.SQLState(), Fatal: pg.IsFatal(e.Get('S'), e.SQLState()),
			Schema: e.Get('s'), Table: e.Get('t'), Column: e.Get('c'),
			Constraint: e.Get('n'), Detail: e.Get('D'), Err: err,
		}
	}
	return mapped
}

// queryer is what a pool, a connection and a transaction have in common.
type queryer interface {
	ExecContext(ctx context.Context, sql string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, sql string, args ...any) (*sql.Rows, error)
}

// querier runs statements one by one on q.
type querier struct {
	q    queryer
	line line
}

func (x querier) Run(ctx context.Context, s pg.Stmt) error {
	return mapError(x.line.trip(ctx, func() error { return x.run(x.line.ctx(ctx), s) }))
}

func (x querier) run(ctx context.Context, s pg.Stmt) error {
	if s.Dest != nil {
		return x.scanFirst(ctx, s)
	}
	res, err := x.q.ExecContext(ctx, s.SQL, s.Args...)
	if err == nil && s.Rows != nil {
		*s.Rows, err = res.RowsAffected()
	}
	return err
}

// scanFirst reads the first row into s.Dest.
func (x querier) scanFirst(ctx context.Context, s pg.Stmt) error {
	rows, err := x.q.QueryContext(ctx, s.SQL, s.Args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	var n int64
	if rows.Next() {
		n = 1
		if err := rows.Scan(s.Dest...); err != nil {
			return err
		}
	}
	if err := rows.Close(); err != nil {
		return err
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if s.Rows != nil {
		*s.Rows = n
	} else if n == 0 {
		return pg.ErrNoRow
	}
	return nil
}

func (x querier) RunAll(ctx context.Context, stmts ...pg.Stmt) error {
	for _, s := range stmts {
		if err := x.Run(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func (x querier) Query(ctx context.Context, sql string, args ...any) iter.Seq2[pg.Scan, error] {
	return func(yield func(pg.Scan, error) bool) {
		stopped := false
		err := x.line.trip(ctx, func() error {
			rows, err := x.q.QueryContext(x.line.ctx(ctx), sql, args...)
			if err != nil {
				return err
			}
			defer func() { _ = rows.Close() }()
			for err == nil && !stopped && rows.Next() {
				stopped = !yield(rows.Scan, nil)
				err = ctx.Err() // also where what is left has come already
			}
			return cmp.Or(rows.Err(), err)
		})
		if err != nil && !stopped {
			yield(nil, pgerr.Ended(ctx, mapError(err)))
		}
	}
}

// poolQuerier runs single statements, each on whatever connection is free.
type poolQuerier struct{ db *sql.DB }

func (p poolQuerier) Run(ctx context.Context, s pg.Stmt) error {
	conn, err := p.db.Conn(ctx)
	if err != nil {
		return unavailable(p.db, ctx, err)
	}
	line := lineOf(conn).quiet()
	tctx, cancel := context.WithTimeout(ctx, pg.NetTimeout(ctx))
	defer cancel()
	defer line.giveBack(tctx, conn)
	withoutCancel(conn, func() { err = querier{conn, line}.Run(tctx, s) })
	return silent(ctx, tctx, err)
}

func (p poolQuerier) Query(ctx context.Context, sql string, args ...any) iter.Seq2[pg.Scan, error] {
	return func(yield func(pg.Scan, error) bool) {
		conn, err := p.db.Conn(ctx)
		if err != nil {
			yield(nil, unavailable(p.db, ctx, err))
			return
		}
		if err := read(ctx, conn, sql, args, yield); err != nil {
			yield(nil, err) // the connection is back: whoever is told may need it
		}
	}
}

// read runs a query with the network deadline for each wait for the server, and without one while the loop's body runs:
// how long that takes is the caller's affair, and how long all of it takes is not the network's. It gives the connection back.
func read(ctx context.Context, conn *sql.Conn, query string, args []any, body func(pg.Scan, error) bool) (err error) {
	limit := pg.NetTimeout(ctx)
	tctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silence := time.AfterFunc(limit, cancel)
	defer silence.Stop()
	line := lineOf(conn).quiet()
	defer line.giveBack(tctx, conn)
	row := func(scan pg.Scan, failed error) bool {
		if err = failed; err != nil {
			return false
		}
		silence.Stop()
		defer silence.Reset(limit) // what is left is read to its end when the body stops or panics, too
		return body(scan, nil)
	}
	withoutCancel(conn, func() { querier{conn, line}.Query(tctx, query, args...)(row) })
	return silent(ctx, tctx, err)
}

// silent names the end of tctx, which is the network deadline's where ctx has not ended.
func silent(ctx, tctx context.Context, err error) error {
	if err != nil && tctx.Err() != nil && ctx.Err() == nil && !pg.Rejected(err) {
		return fmt.Errorf("%w: %v", os.ErrDeadlineExceeded, err) //nolint:errorlint // the caller's ctx has not ended
	}
	return err
}

// unavailable says in words why there is no connection.
func unavailable(db *sql.DB, ctx context.Context, err error) error {
	switch st := db.Stats(); {
	case ctx.Err() != nil && st.MaxOpenConnections > 0 && st.InUse >= st.MaxOpenConnections:
		return fmt.Errorf("%w: all %d connections of the pool are in use: raise SetMaxOpenConns or shorten what holds them: %w",
			pg.ErrUnavailable, st.MaxOpenConnections, err)
	default:
		return fmt.Errorf("%w: no connection: %w", pg.ErrUnavailable, mapError(err))
	}
}
