package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
)

const doByHand = "the statements of Do by hand"

// statement is one that was seen on its way to the server.
type statement struct {
	text string
	args []any
}

// with is its arguments, but for some.
func (s statement) with(replaced map[int]any) []any {
	args := append([]any(nil), s.args...)
	for i, arg := range replaced {
		args[i] = arg
	}
	return args
}

// byHand sends what Do sends, in as many trips, and decides nothing: it is what Do could cost at the least.
type byHand struct {
	pool                  *pgxpool.Pool
	guard, lookup, insert statement
}

// watch learns the statements from a new key.
func (k *keys) watch(ctx context.Context) (*byHand, error) {
	cfg := k.pool.Config()
	var seen batches
	cfg.ConnConfig.Tracer = &seen
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	store, err := idem.New(pgxdriver.New(pool), nil)
	if err == nil {
		err = (&keys{Store: store, pool: pool}).do(ctx, "watched "+rand.Text(), "")
	}
	if err != nil {
		return nil, err
	}
	h := &byHand{pool: k.pool}
	for _, s := range seen {
		switch {
		case strings.Contains(s.text, "pg_try_advisory_xact_lock"):
			h.guard = s
		case strings.Contains(s.text, "INSERT INTO"):
			h.insert = s
		case strings.Contains(s.text, "idem_record"):
			h.lookup = s
		}
	}
	if len(h.guard.args) != 3 || len(h.lookup.args) != 2 || len(h.insert.args) != 12 {
		return nil, fmt.Errorf("these are not the statements of Do: %q", seen)
	}
	return h, nil
}

// begin is the first trip. It returns the time of the transaction.
func (h *byHand) begin(ctx context.Context, conn *pgxpool.Conn, scope string, digest []byte) (tx pgx.Tx, at time.Time, found int, err error) {
	b := &pgx.Batch{}
	b.BeginTx(pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	b.Queue(h.guard.text, h.guard.with(map[int]any{0: int64(binary.BigEndian.Uint64(digest))})...)
	b.Queue(h.lookup.text, scope, digest)
	br := conn.SendBatch(ctx, b)
	_, err = br.Exec()
	var pid, idle, state, version int64
	var readOnly bool
	var fp, result []byte
	var first time.Time
	err = errors.Join(err, br.QueryRow().Scan(&pid, &at, &readOnly, &idle))
	rows, errRows := br.Query()
	for errRows == nil && rows.Next() {
		found++
		err = errors.Join(err, rows.Scan(&state, &version, &fp, &first, &result))
	}
	err = errors.Join(err, errRows, br.Close())
	if err == nil && pid == 0 {
		err = errors.New("the lock is not free")
	}
	return br.Tx(), at, found, err
}

// do is a new key with the write of the business.
func (h *byHand) do(ctx context.Context, id string) error {
	conn, err := h.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	digest := sha256.Sum256([]byte("by hand " + id))
	tx, at, _, err := h.begin(ctx, conn, "merchant-1", digest[:])
	var refundID int64
	if err == nil {
		err = tx.QueryRow(ctx, sqlRefund, id, 100).Scan(&refundID)
	}
	if err != nil {
		return err
	}
	b := &pgx.Batch{}
	b.Queue(h.insert.text, h.insert.with(map[int]any{0: refundID, 1: at, 7: digest[:], 9: id})...)
	b.Queue("commit")
	return conn.SendBatch(ctx, b).Close()
}

// again is a repeat: the transaction is ended while the caller has the answer.
func (h *byHand) again(ctx context.Context, digest []byte) error {
	conn, err := h.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	tx, _, found, err := h.begin(ctx, conn, "merchant-1", digest)
	if err == nil && found != 1 {
		err = fmt.Errorf("%d records", found)
	}
	go func() {
		if tx != nil {
			_ = tx.Rollback(ctx)
		}
		conn.Release()
	}()
	return err
}

// batches remembers what was sent in batches.
type batches []statement

func (b *batches) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	for _, q := range data.Batch.QueuedQueries {
		*b = append(*b, statement{q.SQL, q.Arguments})
	}
	return ctx
}

func (*batches) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

func (*batches) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

func (*batches) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (*batches) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
