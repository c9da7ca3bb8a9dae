package pgxdriver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/internal/pgerr"
	"github.com/pgonce/pgonce/internal/pg"
)

// ownedTx is a transaction that we began and that only we end.
type ownedTx struct {
	txQuerier
	conn   *pgxpool.Conn // nil once it has gone back to the pool or been closed
	handle handlerTx
	life   life // of handle and all that is made from it
}

// Begin implements the seam. BEGIN and the first statements are one pipelined
// trip. It runs on a ctx of its own: if the caller's ends while the answer is
// awaited, the socket is closed, with no cancel request that could reach a
// transaction of somebody else behind a pooler.
func (d *Driver) Begin(ctx context.Context, level pg.Isolation, first ...pg.Stmt) (pg.OwnedTx[pgx.Tx], error) {
	for n := 1; ; n++ {
		o, err := d.begin(ctx, level, first)
		if err == nil {
			return o, nil
		}
		if n == staleConns || !errors.Is(err, pg.ErrTxLost) {
			return nil, err
		}
	}
}

// staleConns bounds how many dead connections of the pool one Begin works through. After a
// restart of the server all idle ones are dead, and pgx tests only those that were idle for long.
const staleConns = 100

// begin is one attempt on one connection.
func (d *Driver) begin(ctx context.Context, level pg.Isolation, first []pg.Stmt) (*ownedTx, error) {
	if level == "" {
		level = pg.ReadCommitted
	}
	conn, err := acquire(ctx, d.pool)
	if err != nil {
		return nil, err
	}
	socket := conn.Conn().PgConn().Conn() // taken now: conn may be given up while the next line's func runs
	giveUp := context.AfterFunc(ctx, func() { _ = socket.Close() })

	b := batch(1, first)
	b.BeginTx(pgx.TxOptions{IsoLevel: pgx.TxIsoLevel(level)})
	queue(b, first)
	limit(ctx, conn) // begins with the trip, not with the wait for the connection
	br := conn.SendBatch(context.WithoutCancel(ctx), b)
	_, err = br.Exec()
	if err == nil {
		err = receive(br, first)
	}
	err = cmp.Or(err, br.Close())
	if !giveUp() { // the ctx ended first: the socket is closed or about to be
		discard(ctx, conn)
		return nil, context.Cause(ctx)
	}
	unlimit(conn)
	o := &ownedTx{txQuerier: txQuerier{br.Tx()}, conn: conn}
	o.handle = handlerTx{tx: o.tx, life: &o.life}
	if err == nil {
		return o, nil
	}
	lost := conn.Conn().IsClosed()
	o.Rollback(ctx)
	return nil, beginError(mapError(err), lost)
}

func beginError(err error, lost bool) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: no answer to BEGIN: %w", pg.ErrUnavailable, err)
	case lost:
		return fmt.Errorf("%w: %w", pg.ErrTxLost, err)
	}
	return err
}

func (o *ownedTx) Handle() pgx.Tx { return &o.handle }

// Reclaim implements the seam. A statement of a goroutine that outlived its handler is
// waited for, but not for ever: then its socket is closed under it.
func (o *ownedTx) Reclaim(ctx context.Context) {
	if o.life.over() || o.conn == nil {
		return
	}
	if o.life.end(pg.NetTimeout(ctx)) {
		return
	}
	closeNow(o.conn.Hijack()) // nothing else of it may be touched: the goroutine still does
	o.conn = nil
}

// Status implements the seam. A handler's own COMMIT is remembered: it may have begun another
// transaction since, and broken that one.
func (o *ownedTx) Status() pg.TxStatus {
	if o.life.committed.Load() {
		return pg.TxIdle
	}
	if o.conn == nil {
		return pg.TxUnknown
	}
	return pg.TxStatus(o.conn.Conn().PgConn().TxStatus())
}

// Run implements the seam.
func (o *ownedTx) Run(ctx context.Context, s pg.Stmt) error {
	if o.conn == nil {
		return pg.ErrTxLost
	}
	return o.txQuerier.Run(ctx, s)
}

// Commit implements the seam.
func (o *ownedTx) Commit(ctx context.Context, last ...pg.Stmt) error {
	o.Reclaim(ctx)
	defer o.Rollback(ctx) // does nothing once the connection is gone
	if o.life.committed.Load() {
		return pg.ErrTxEnded
	}
	if o.conn == nil {
		return pg.ErrTxBusy
	}
	switch pc := o.conn.Conn().PgConn(); {
	case pc.IsClosed():
		return pg.ErrTxLost
	case pc.IsBusy():
		return pg.ErrTxBusy
	case pc.TxStatus() == 'I':
		return pg.ErrTxEnded
	}
	if o.life.largeObjects.Load() {
		return o.commitInTwo(ctx, last)
	}
	tag, err := o.sendLast(ctx, last)
	switch {
	case err != nil:
		return pg.CommitError(mapError(err))
	case tag.String() == "ROLLBACK": // the answer to COMMIT of a failed transaction
		return fmt.Errorf("%w: the server answered COMMIT with ROLLBACK", pg.ErrTxLost)
	case tag.String() != "COMMIT":
		return fmt.Errorf("%w: the server answered COMMIT with %q", pg.ErrOutcomeUnknown, tag)
	}
	o.release()
	return nil
}

// sendLast sends the last statements with COMMIT, and returns the answer to that.
//
// pgx can tell that an error came before anything was sent, but not in every mode that it
// came before the last of several statements was answered. So whatever is not the
// server's refusal counts as unknown.
func (o *ownedTx) sendLast(ctx context.Context, last []pg.Stmt) (tag pgconn.CommandTag, err error) {
	limit(ctx, o.conn)
	defer unlimit(o.conn)
	b := batch(1, last)
	queue(b, last)
	b.Queue("commit")
	pgerr.WithoutCancel(o.conn.Conn(), func() {
		br := o.conn.SendBatch(context.WithoutCancel(ctx), b)
		if err = receive(br, last); err == nil {
			tag, err = br.Exec()
		}
		err = cmp.Or(err, br.Close())
	})
	return tag, err
}

// commitInTwo pays a trip more than Commit, for a handler that used large
// objects: their handle keeps hold of pgx's own transaction, which only its own
// Commit closes. Otherwise a leaked one would reach a pooled connection.
func (o *ownedTx) commitInTwo(ctx context.Context, last []pg.Stmt) error {
	ctx, cancel := pg.TripContext(ctx)
	defer cancel()
	if err := o.RunAll(ctx, last...); err != nil {
		if pg.Rejected(err) {
			return err
		}
		return fmt.Errorf("%w: %w", pg.ErrTxLost, err) // COMMIT was not sent
	}
	var err error
	pgerr.WithoutCancel(o.conn.Conn(), func() { err = o.tx.Commit(ctx) })
	if errors.Is(err, pgx.ErrTxCommitRollback) {
		return fmt.Errorf("%w: %w", pg.ErrTxLost, err)
	}
	if err != nil {
		return pg.CommitError(mapError(err))
	}
	o.release()
	return nil
}

// Rollback implements the seam. When it returns, either the server has answered
// ROLLBACK, or the connection is closed and the server rolls back on its own.
func (o *ownedTx) Rollback(ctx context.Context) {
	o.Reclaim(ctx)
	if o.conn == nil {
		return
	}
	pc := o.conn.Conn().PgConn()
	if !pc.IsClosed() && !pc.IsBusy() {
		limit(ctx, o.conn)
		_ = o.tx.Rollback(context.WithoutCancel(ctx)) // closes pgx's own transaction too; a WARNING when the handler had ended it
		unlimit(o.conn)
	}
	if pc.IsClosed() || pc.IsBusy() || pc.TxStatus() != 'I' {
		discard(ctx, o.conn)
		o.conn = nil
		return
	}
	o.release()
}

// Abandon implements the seam.
func (o *ownedTx) Abandon(ctx context.Context) { go o.Rollback(ctx) }

// limit ends a trip after [pg.NetTimeout], by the deadline of its socket. A ctx with a timer, and pgx's watch over
// it, would do the same and cost a dozen allocations. unlimit must follow.
func limit(ctx context.Context, conn *pgxpool.Conn) {
	_ = conn.Conn().PgConn().Conn().SetDeadline(time.Now().Add(pg.NetTimeout(ctx)))
}

// unlimit lets a connection that is still good live on. One that is not is being closed by pgx, within a limit of its own.
func unlimit(conn *pgxpool.Conn) {
	if c := conn.Conn(); !c.IsClosed() {
		_ = c.PgConn().Conn().SetDeadline(time.Time{})
	}
}

func (o *ownedTx) release() {
	o.conn.Release()
	o.conn = nil
}

// giveBack gives a connection back to the pool, if it is still good.
func giveBack(ctx context.Context, conn *pgxpool.Conn) {
	if conn.Conn().IsClosed() {
		discard(ctx, conn)
		return
	}
	unlimit(conn)
	conn.Release()
}

// discard closes a connection whose state is unknown. The server sees the end of
// the socket and rolls back; the pool has its place free at once.
func discard(ctx context.Context, conn *pgxpool.Conn) {
	c := conn.Hijack()
	closeNow(c)
	if c.PgConn().IsBusy() {
		return // somebody is reading from it, and will find it closed
	}
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	_ = c.Close(tctx) // finds the socket closed, so it does not wait
}
