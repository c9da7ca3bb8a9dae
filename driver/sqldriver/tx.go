package sqldriver

import (
	"context"
	"database/sql"
	sqldrv "database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
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

// Begin implements the seam.
func (d *Driver[TX]) Begin(ctx context.Context, level pg.Isolation, first ...pg.Stmt) (pg.OwnedTx[TX], error) {
	conn, begin, err := d.connect(ctx)
	if err != nil {
		return nil, unavailable(d.db, ctx, err)
	}
	tctx, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, giveUp)
	timer := time.AfterFunc(pg.NetTimeout(ctx), giveUp)

	tx, err := begin(tctx, &sql.TxOptions{Isolation: isolation(level)})
	if err != nil {
		stop()
		timer.Stop()
		giveUp()
		discard(conn)
		return nil, beginError(ctx, mapError(err))
	}
	o := &ownedTx[TX]{querier: querier{tx}, conn: conn, tx: tx, giveUp: giveUp}
	err = o.RunAll(tctx, first...)
	if !stop() || !timer.Stop() {
		o.Rollback(ctx)
		return nil, beginError(ctx, errors.Join(err, context.Canceled))
	}
	if err != nil {
		o.Rollback(ctx)
		return nil, beginError(ctx, err)
	}
	return o, nil
}

func beginError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case pg.Rejected(err), errors.Is(err, pg.ErrNoRow):
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

// Status cannot be known here: *sql.Tx does not tell.
func (o *ownedTx[TX]) Status() pg.TxStatus { return pg.TxUnknown }

// Commit implements the seam, with a round trip for each statement.
func (o *ownedTx[TX]) Commit(ctx context.Context, last ...pg.Stmt) error {
	defer o.Rollback(ctx) // does nothing once the connection is gone
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	if err := o.RunAll(tctx, last...); err != nil {
		return lastError(err)
	}
	timer := time.AfterFunc(pg.NetTimeout(ctx), o.giveUp)
	err := o.tx.Commit()
	timer.Stop()
	if err == nil {
		o.release()
		return nil
	}
	return pg.CommitError(mapError(err))
}

// lastError is the error of a statement before COMMIT. Whatever it is, COMMIT was
// not sent.
func lastError(err error) error {
	switch {
	case pg.Rejected(err), errors.Is(err, pg.ErrTxEnded):
		return err
	case pgconn.SafeToRetry(err) && strings.Contains(err.Error(), "conn busy"):
		return fmt.Errorf("%w: %w", pg.ErrTxBusy, err)
	}
	return fmt.Errorf("%w: %w", pg.ErrTxLost, err)
}

// Rollback implements the seam.
func (o *ownedTx[TX]) Rollback(ctx context.Context) {
	if o.conn == nil {
		return
	}
	timer := time.AfterFunc(pg.NetTimeout(ctx), o.giveUp)
	err := o.tx.Rollback()
	timer.Stop()
	if err != nil && !errors.Is(err, sql.ErrTxDone) {
		discard(o.conn)
		o.conn = nil
		o.giveUp()
		return
	}
	o.release()
}

// Abandon implements the seam.
func (o *ownedTx[TX]) Abandon(ctx context.Context) { go o.Rollback(ctx) }

func (o *ownedTx[TX]) release() {
	_ = o.conn.Close() // back to the pool
	o.conn = nil
	o.giveUp()
}

// discard closes a connection whose state is unknown. The server sees the end of
// the socket and rolls back.
func discard(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return sqldrv.ErrBadConn })
	_ = conn.Close()
}
