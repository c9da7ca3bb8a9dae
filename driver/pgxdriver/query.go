package pgxdriver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/internal/pgerr"
	"github.com/pgonce/pgonce/internal/pg"
)

// queryer is what a pool, a connection and a transaction have in common.
type queryer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// run sends one statement.
func run(ctx context.Context, q queryer, s pg.Stmt) error {
	if s.Dest == nil {
		tag, err := q.Exec(ctx, s.SQL, s.Args...)
		if err == nil && s.Rows != nil {
			*s.Rows = tag.RowsAffected()
		}
		return mapError(err)
	}
	rows, err := q.Query(ctx, s.SQL, s.Args...)
	if err != nil {
		return mapError(err)
	}
	return mapError(scanFirst(rows, &s))
}

// scanFirst reads the first row into s.Dest and closes rows.
func scanFirst(rows pgx.Rows, s *pg.Stmt) error {
	defer rows.Close()
	var n int64
	if rows.Next() {
		n = 1
		if err := rows.Scan(s.Dest...); err != nil {
			return err
		}
	}
	rows.Close()
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

func query(ctx context.Context, q queryer, sql string, args []any) iter.Seq2[pg.Scan, error] {
	return func(yield func(pg.Scan, error) bool) {
		rows, err := q.Query(ctx, sql, args...)
		if err != nil {
			yield(nil, pgerr.Ended(ctx, mapError(err)))
			return
		}
		defer rows.Close()
		for rows.Next() {
			if !yield(rows.Scan, nil) {
				return
			}
			if err = ctx.Err(); err != nil {
				break // also where what is left has come already
			}
		}
		rows.Close()
		if err = cmp.Or(rows.Err(), err); err != nil {
			yield(nil, pgerr.Ended(ctx, mapError(err)))
		}
	}
}

// batch is an empty one with room for the statements and some more.
func batch(more int, stmts []pg.Stmt) *pgx.Batch {
	return &pgx.Batch{QueuedQueries: make([]*pgx.QueuedQuery, 0, len(stmts)+more)}
}

// queue adds the statements to a batch.
func queue(b *pgx.Batch, stmts []pg.Stmt) {
	for i := range stmts {
		b.Queue(stmts[i].SQL, stmts[i].Args...)
	}
}

// receive takes in the results of statements that were queued, up to the first error. The batch has to be closed after it.
func receive(br pgx.BatchResults, stmts []pg.Stmt) error {
	for i := range stmts {
		s := &stmts[i]
		if s.Dest != nil {
			rows, err := br.Query()
			if err == nil {
				err = scanFirst(rows, s)
			}
			if err != nil {
				return err
			}
			continue
		}
		tag, err := br.Exec()
		if err != nil {
			return err
		}
		if s.Rows != nil {
			*s.Rows = tag.RowsAffected()
		}
	}
	return nil
}

// sendAll sends the statements as one batch.
func sendAll(ctx context.Context, q interface {
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}, stmts []pg.Stmt,
) error {
	b := batch(0, stmts)
	queue(b, stmts)
	br := q.SendBatch(ctx, b)
	err := receive(br, stmts)
	return mapError(cmp.Or(err, br.Close()))
}

// oneTrip is a connection on which a statement that is alone is described and executed as the same statement, also
// behind a pooler in transaction mode. [pgx.QueryExecModeDescribeExec] prepares it without a name in one trip and executes
// what has no name in the next one, where the pooler may have put another server connection below: with
// the statement of somebody else. In a batch the second trip carries the text again.
type oneTrip struct {
	*pgx.Conn
	splits bool
}

// alone is the connection for statements that are alone. Its mode is the pool's, if it can be no other: to ask it, pgx copies all
// of its settings.
func (d *Driver) alone(conn *pgxpool.Conn) oneTrip {
	d.mode.find(d.pool)
	mode := d.mode.mode
	if d.mode.mixed {
		mode = conn.Conn().Config().DefaultQueryExecMode
	}
	return oneTrip{conn.Conn(), mode == pgx.QueryExecModeDescribeExec}
}

func (c oneTrip) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if !c.splits {
		return c.Conn.Exec(ctx, sql, args...)
	}
	br := c.batch(ctx, sql, args)
	tag, err := br.Exec()
	return tag, cmp.Or(err, br.Close())
}

func (c oneTrip) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if !c.splits {
		return c.Conn.Query(ctx, sql, args...)
	}
	br := c.batch(ctx, sql, args)
	rows, err := br.Query()
	if err != nil {
		_ = br.Close() // says the same
		return nil, err
	}
	return &batchRows{Rows: rows, batch: br}, nil
}

func (c oneTrip) batch(ctx context.Context, sql string, args []any) pgx.BatchResults {
	var b pgx.Batch
	b.Queue(sql, args...)
	return c.SendBatch(ctx, &b)
}

// batchRows are the only rows of a batch, which ends with them. What the server refuses at the very end, such as a
// deferred constraint, comes after the last row.
type batchRows struct {
	pgx.Rows
	batch pgx.BatchResults
	end   error
}

func (r *batchRows) Close() {
	r.Rows.Close()
	r.end = cmp.Or(r.end, r.batch.Close())
}

func (r *batchRows) Err() error { return cmp.Or(r.Rows.Err(), r.end) }

// poolQuerier runs single statements, each on whatever connection is free.
type poolQuerier struct{ *Driver }

func (q poolQuerier) Run(ctx context.Context, s pg.Stmt) error {
	conn, err := acquire(ctx, q.pool)
	if err != nil {
		return err
	}
	limit(ctx, conn)
	pgerr.WithoutCancel(conn.Conn(), func() { err = run(ctx, q.alone(conn), s) })
	giveBack(ctx, conn)
	return err
}

func (q poolQuerier) Query(ctx context.Context, sql string, args ...any) iter.Seq2[pg.Scan, error] {
	return func(yield func(pg.Scan, error) bool) {
		conn, err := acquire(ctx, q.pool)
		if err != nil {
			yield(nil, err)
			return
		}
		if err := read(ctx, conn, q.alone(conn), sql, args, yield); err != nil {
			yield(nil, err) // the connection is back: whoever is told may need it
		}
	}
}

// read runs a query with the network deadline for each wait for the server, and without one while the loop's body runs:
// how long that takes is the caller's affair, and how long all of it takes is not the network's. It gives the connection back.
func read(ctx context.Context, conn *pgxpool.Conn, alone oneTrip, sql string, args []any, body func(pg.Scan, error) bool) (err error) {
	defer giveBack(ctx, conn)
	limit(ctx, conn)
	row := func(scan pg.Scan, failed error) bool {
		if err = failed; err != nil {
			return false
		}
		unlimit(conn)
		defer limitAgain(ctx, conn) // what is left is read to its end when the body stops or panics, too
		return body(scan, nil)
	}
	pgerr.WithoutCancel(conn.Conn(), func() { query(ctx, alone, sql, args)(row) })
	return err
}

// limitAgain is limit where pgx watches ctx already. The end of ctx has pgx set a deadline that is over, once: it must not be lost. If ctx
// has no end yet when it is asked here, pgx's comes after ours.
func limitAgain(ctx context.Context, conn *pgxpool.Conn) {
	limit(ctx, conn)
	if ctx.Err() != nil {
		_ = conn.Conn().PgConn().Conn().SetDeadline(time.Unix(1, 0))
	}
}

type txQuerier struct{ tx pgx.Tx }

func (q txQuerier) Run(ctx context.Context, s pg.Stmt) error { return run(ctx, q.tx, s) }

func (q txQuerier) Query(ctx context.Context, sql string, args ...any) iter.Seq2[pg.Scan, error] {
	return query(ctx, q.tx, sql, args)
}

func (q txQuerier) RunAll(ctx context.Context, stmts ...pg.Stmt) error {
	return sendAll(ctx, q.tx, stmts)
}

var _ pg.Canceler = txQuerier{}

// Cancel implements the seam. The server closes the connection that brought the request once it has
// sent the signal, and pgx waits for that.
func (q txQuerier) Cancel(ctx context.Context) error {
	conn := q.tx.Conn()
	if conn == nil {
		return errors.New("pgxdriver: this transaction does not tell its connection")
	}
	err := conn.PgConn().CancelRequest(ctx)
	if err == nil && ctx.Err() != nil { // pgx does not tell that it gave up waiting
		err = context.Cause(ctx)
	}
	return mapError(err)
}

// acquire takes a connection and says in words why there is none.
func acquire(ctx context.Context, pool *pgxpool.Pool) (*pgxpool.Conn, error) {
	conn, err := pool.Acquire(ctx)
	if err == nil {
		return conn, nil
	}
	if st := pool.Stat(); ctx.Err() != nil && st.AcquiredConns() >= st.MaxConns() {
		return nil, fmt.Errorf("%w: all %d connections of the pool are in use: raise MaxConns or shorten what holds them: %w",
			pg.ErrUnavailable, st.MaxConns(), err)
	}
	return nil, fmt.Errorf("%w: no connection: %w", pg.ErrUnavailable, mapError(err))
}
