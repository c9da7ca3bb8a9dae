package sqldriver

import (
	"cmp"
	"context"
	"database/sql"
	sqldrv "database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/internal/pg"
)

// ownedTx is a transaction that we began, on a connection of its own.
//
// database/sql ties a transaction to the ctx of its BEGIN and rolls back behind
// the caller's back when that ends. So it gets a ctx of ours, which ends only
// when we give the connection up.
type ownedTx[TX Tx] struct {
	querier
	conn   *sql.Conn // nil once it has gone back to the pool or been closed
	tx     TX
	giveUp context.CancelFunc
}

// staleConns bounds how many dead connections of the pool one Begin works through. After a
// restart of the server all idle ones are dead, and not every client library tests them.
const staleConns = 100

// Begin implements the seam.
func (d *Driver[TX]) Begin(ctx context.Context, level pg.Isolation, first ...pg.Stmt) (pg.OwnedTx[TX], error) {
	for n := 1; ; n++ {
		tx, err := d.begin(ctx, level, first)
		switch {
		case err == nil:
			return tx, nil
		case n == staleConns || !errors.Is(err, sqldrv.ErrBadConn):
			return nil, err
		}
	}
}

func (d *Driver[TX]) begin(ctx context.Context, level pg.Isolation, first []pg.Stmt) (*ownedTx[TX], error) {
	conn, begin, err := d.connect(ctx)
	if err != nil {
		return nil, unavailable(d.db, ctx, err)
	}
	tctx, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, giveUp)
	timer := time.AfterFunc(pg.NetTimeout(ctx), giveUp)

	line := lineOf(conn)
	var tx TX
	err = line.trip(tctx, func() (err error) {
		tx, err = begin(tctx, &sql.TxOptions{Isolation: isolation(level)})
		return err
	})
	if err != nil {
		canceled, silent := !stop(), !timer.Stop()
		giveUp()
		discard(conn)
		switch {
		case canceled:
			return nil, context.Cause(ctx)
		case silent:
			return nil, fmt.Errorf("%w: no answer to BEGIN: %w", pg.ErrUnavailable, err)
		}
		return nil, lost(mapError(err))
	}
	o := &ownedTx[TX]{querier: querier{tx, line}, conn: conn, tx: tx, giveUp: giveUp}
	err = o.RunAll(tctx, first...)
	canceled, silent := !stop(), !timer.Stop()
	if err == nil && !canceled && !silent {
		return o, nil
	}
	alive := o.rollback(ctx)
	switch {
	case canceled:
		return nil, context.Cause(ctx)
	case silent:
		return nil, fmt.Errorf("%w: no answer to BEGIN: %w", pg.ErrUnavailable, cmp.Or(err, context.DeadlineExceeded))
	case !alive:
		return nil, lost(err)
	}
	return nil, err
}

// lost marks an error that came with the end of a connection.
func lost(err error) error {
	if pg.Rejected(err) {
		return err
	}
	return fmt.Errorf("%w: %w", pg.ErrTxLost, err)
}

func isolation(level pg.Isolation) sql.IsolationLevel {
	switch level {
	case pg.RepeatableRead:
		return sql.LevelRepeatableRead
	case pg.Serializable:
		return sql.LevelSerializable
	}
	return sql.LevelReadCommitted
}

// Handle is the caller's own transaction type, unwrapped: *sql.Tx is a struct.
// It is dead after Commit or Rollback, as database/sql has it.
func (o *ownedTx[TX]) Handle() TX { return o.tx }

// Reclaim has nothing to do: database/sql lets one statement in at a time.
func (o *ownedTx[TX]) Reclaim(context.Context) {}

// Status cannot be known here: *sql.Tx does not tell.
func (o *ownedTx[TX]) Status() pg.TxStatus { return pg.TxUnknown }

// Commit implements the seam, with a round trip for each statement.
func (o *ownedTx[TX]) Commit(ctx context.Context, last ...pg.Stmt) error {
	defer o.Rollback(ctx) // does nothing once the connection is gone
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	if err := o.RunAll(tctx, last...); err != nil {
		return o.lastError(err)
	}
	err := o.end(ctx, func() (err error) {
		withoutCancel(o.conn, func() { err = o.tx.Commit() })
		return err
	})
	switch {
	case err == nil:
		o.release()
		return nil
	case errors.Is(err, pgx.ErrTxCommitRollback), strings.Contains(err.Error(), textRolledBack):
		return fmt.Errorf("%w: %w", pg.ErrTxLost, err)
	}
	return pg.CommitError(mapError(err))
}

// What lib/pq says in words only, of any version.
const (
	textRolledBack = "ould not complete operation in a failed transaction" // instead of COMMIT it has sent ROLLBACK
	textBusy       = "already a query being processed"                     // rows were left open
)

// lastError is the error of a statement before COMMIT. Whatever it is, COMMIT was
// not sent.
func (o *ownedTx[TX]) lastError(err error) error {
	switch {
	case pg.Rejected(err), errors.Is(err, pg.ErrTxEnded):
		return err
	case strings.Contains(err.Error(), textBusy), o.busy():
		return fmt.Errorf("%w: %w", pg.ErrTxBusy, err)
	}
	return lost(err)
}

// busy reports rows that were left open on pgx, which says of that in database/sql only that the
// connection is bad.
func (o *ownedTx[TX]) busy() (busy bool) {
	_ = o.conn.Raw(func(c any) error {
		if c, ok := c.(interface{ Conn() *pgx.Conn }); ok {
			busy = c.Conn().PgConn().IsBusy()
		}
		return nil
	})
	return busy
}

// Rollback implements the seam.
func (o *ownedTx[TX]) Rollback(ctx context.Context) { o.rollback(ctx) }

// rollback reports whether the connection was still good.
func (o *ownedTx[TX]) rollback(ctx context.Context) (alive bool) {
	if o.conn == nil {
		return false
	}
	err := o.end(ctx, o.tx.Rollback)
	if err != nil && !errors.Is(err, sql.ErrTxDone) {
		discard(o.conn)
		o.conn = nil
		o.giveUp()
		return false
	}
	o.release()
	return true
}

// end runs COMMIT or ROLLBACK, which take no ctx of their own, with the network deadline. lib/pq would answer the end of the
// transaction's ctx with a cancel request, which a COMMIT must not meet: there the connection is closed under the verb.
func (o *ownedTx[TX]) end(ctx context.Context, verb func() error) error {
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	if o.line.conn == nil {
		stop := context.AfterFunc(tctx, o.giveUp)
		defer stop()
	}
	return o.line.trip(tctx, verb)
}

// Abandon implements the seam.
func (o *ownedTx[TX]) Abandon(ctx context.Context) { go o.Rollback(ctx) }

func (o *ownedTx[TX]) release() {
	_ = o.conn.Close() // back to the pool
	o.conn = nil
	o.giveUp()
}

// discard closes a connection whose state is unknown. The server sees the end of
// the socket and rolls back. pgx closes a broken one in the background, and is polite for up to 15 s: its socket is closed here.
func discard(conn *sql.Conn) {
	_ = conn.Raw(func(c any) error {
		if c, ok := c.(interface{ Conn() *pgx.Conn }); ok && c.Conn().IsClosed() {
			_ = c.Conn().PgConn().Conn().Close()
		}
		return sqldrv.ErrBadConn
	})
	_ = conn.Close()
}
