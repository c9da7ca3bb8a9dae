package pgxdriver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

var (
	// errOwned answers Commit and Rollback on a transaction that is not the handler's to end.
	errOwned = errors.New("pgxdriver: the transaction ends when the handler returns: return an error to roll back")

	// errOver answers every use after the call that handed the transaction out.
	errOver = fmt.Errorf("pgxdriver: the transaction was used after its handler had returned: %w", pgx.ErrTxClosed)
)

// life is shared by the handler's transaction and every savepoint made from it.
//
// A statement holds mu for reading while it runs, the end of the call takes it
// for writing. So a goroutine that outlived its handler is either waited for or
// refused; it cannot be half-way into a statement when the connection goes back
// to the pool.
type life struct {
	mu           sync.RWMutex
	ended        atomic.Bool
	committed    atomic.Bool // by the handler, as the server has confirmed
	largeObjects atomic.Bool
}

// end refuses every further use, and waits for one that is under way. It returns false
// when that takes longer than limit.
func (l *life) end(limit time.Duration) bool {
	l.ended.Store(true)
	if l.mu.TryLock() {
		l.mu.Unlock()
		return true
	}
	free := make(chan struct{})
	go func() { // ends with the statement that it waits for
		l.mu.Lock()
		l.mu.Unlock() //nolint:staticcheck // having had the lock is what counts
		close(free)
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-free:
		return true
	case <-timer.C:
		return false
	}
}

func (l *life) over() bool { return l.ended.Load() }

// use lets a statement begin; done ends it.
func (l *life) use() error {
	l.mu.RLock()
	if l.over() {
		l.mu.RUnlock()
		return errOver
	}
	return nil
}

func (l *life) done() { l.mu.RUnlock() }

// handlerTx is the pgx.Tx that a handler gets. It is a real pgx transaction in
// all but two points: the outermost one refuses Commit and Rollback, and all of
// them refuse everything once the call is over.
//
// Conn hands out the bare connection, as pgx's own does. What a handler does
// with it after its return is beyond our reach.
type handlerTx struct {
	tx     pgx.Tx
	life   *life
	nested bool
}

var _ pgx.Tx = (*handlerTx)(nil)

func (h *handlerTx) Begin(ctx context.Context) (pgx.Tx, error) {
	if err := h.life.use(); err != nil {
		return nil, err
	}
	defer h.life.done()
	tx, err := h.tx.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return &handlerTx{tx: tx, life: h.life, nested: true}, nil
}

func (h *handlerTx) Commit(ctx context.Context) error   { return h.finish(ctx, pgx.Tx.Commit) }
func (h *handlerTx) Rollback(ctx context.Context) error { return h.finish(ctx, pgx.Tx.Rollback) }

// finish ends a savepoint, and refuses to end the transaction itself.
func (h *handlerTx) finish(ctx context.Context, end func(pgx.Tx, context.Context) error) error {
	if err := h.life.use(); err != nil {
		return err
	}
	defer h.life.done()
	if !h.nested {
		return errOwned
	}
	return end(h.tx, ctx)
}

func (h *handlerTx) CopyFrom(ctx context.Context, table pgx.Identifier, cols []string, src pgx.CopyFromSource) (int64, error) {
	if err := h.life.use(); err != nil {
		return 0, err
	}
	defer h.life.done()
	return h.tx.CopyFrom(ctx, table, cols, src)
}

func (h *handlerTx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	if err := h.life.use(); err != nil {
		return pgx.FailedBatchResults(b, err)
	}
	defer h.life.done()
	return h.tx.SendBatch(ctx, b)
}

func (h *handlerTx) LargeObjects() pgx.LargeObjects {
	if err := h.life.use(); err != nil {
		var b pgx.Batch
		b.BeginTx(pgx.TxOptions{})
		return pgx.FailedBatchResults(&b, err).Tx().LargeObjects() // of a transaction that is closed
	}
	defer h.life.done()
	h.life.largeObjects.Store(true)
	return h.tx.LargeObjects()
}

func (h *handlerTx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	if err := h.life.use(); err != nil {
		return nil, err
	}
	defer h.life.done()
	return h.tx.Prepare(ctx, name, sql)
}

func (h *handlerTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if err := h.life.use(); err != nil {
		return pgconn.CommandTag{}, err
	}
	defer h.life.done()
	tag, err := h.tx.Exec(ctx, sql, args...)
	if err == nil && tag.String() == "COMMIT" {
		h.life.committed.Store(true)
	}
	return tag, err
}

func (h *handlerTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if err := h.life.use(); err != nil {
		return pgx.FailedBatchResults(&pgx.Batch{}, err).Query() //nolint:sqlclosecheck // the caller's, as with pgx itself
	}
	defer h.life.done()
	return h.tx.Query(ctx, sql, args...) //nolint:sqlclosecheck // the caller's, as with pgx itself
}

func (h *handlerTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if err := h.life.use(); err != nil {
		return pgx.FailedBatchResults(&pgx.Batch{}, err).QueryRow()
	}
	defer h.life.done()
	return h.tx.QueryRow(ctx, sql, args...)
}

func (h *handlerTx) Conn() *pgx.Conn { return h.tx.Conn() }
