package idem

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

const (
	maxAttempts = 5
	serverGrace = time.Second          // what the server waits beyond MaxHandler
	firstPause  = 2 * time.Millisecond // doubled with each attempt, and jittered
)

// Result is the answer of a key.
type Result[T any] struct {
	// Value is what the handler returned, as the store gives it back: encoded and decoded,
	// for the first caller too. So a result that does not survive storing is found by the
	// first test, not by the first repeat.
	Value T

	// Replayed is true when the handler did not run in this call.
	Replayed bool

	// FirstAt is when the execution began that committed, by the database's clock.
	FirstAt time.Time
}

// handler is the caller's function with its result encoded.
type handler[TX any] func(ctx context.Context, tx TX) ([]byte, error)

// Do executes fn at most once to completion for a key, and answers every repeat with
// the first result.
//
// What fn writes through its transaction, and the record that it was done, become durable
// in one commit or not at all. That is the guarantee: one committed execution. fn
// may be invoked again after a first run was rolled back (a crash, a lost
// connection, a deadlock), so what it does elsewhere is not covered: a foreign call belongs
// in a job that the transaction enqueues.
//
// An error of fn rolls everything back, stores nothing, and is returned as it is; the key
// is free again. So does a panic, which goes on. fn must not end the transaction, by no
// means: not by Commit or Rollback, not by SQL. When it does all the same, that is found
// out ([ErrTxEnded]).
//
// fn has [Op.MaxHandler] to finish; after that its ctx has ended, with [ErrHandlerTimeout] as its
// cause, and everything is rolled back.
//
// The end of ctx is seen while waiting for a connection and by fn. Once fn has returned
// without an error, the commit goes through regardless.
//
// Errors: [ErrInvalidKey], [ErrInFlight], [ErrMismatch], [ErrExpired], [ErrUnknownOutcome],
// [ErrTxEnded], [ErrTxUnusable], [ErrHandlerTimeout], [ErrReadOnly], [ErrSchema], [ErrUnavailable], and
// whatever the server says to the INSERT or COMMIT (a deferred constraint, for one).
//
// Cost on pgx: a new key 2 round trips around those of fn, one commit, one row, no update
// and no dead tuple; a repeat is answered after 1, with no xid and no WAL. On
// database/sql: 6 around fn, and 3 for a repeat. Locks: one advisory lock until the
// transaction ends. The first call of a store adds two trips, to check the schema and the
// server. Isolation: READ COMMITTED.
func Do[T, TX any](ctx context.Context, s *Store[TX], key Key, fp Fingerprint,
	fn func(ctx context.Context, tx TX) (T, error),
) (Result[T], error) {
	c, err := newCall(s, key, fp)
	if err == nil && fn == nil {
		err = errors.New("nil handler")
	}
	if err != nil {
		return Result[T]{}, publish("do", key, err)
	}
	var value T
	rec, err := c.do(ctx, func(ctx context.Context, tx TX) (data []byte, err error) {
		v, err := fn(ctx, tx)
		if err != nil {
			return nil, &handlerError{err}
		}
		data, value, err = roundTrip(s.cfg.Codec, v)
		return data, err
	})
	if err == nil && rec.found {
		value, err = decode[T](s.cfg.Codec, rec.result)
	}
	if err != nil {
		return Result[T]{}, publish("do", key, err)
	}
	return Result[T]{Value: value, Replayed: rec.found, FirstAt: rec.createdAt}, nil
}

// Lookup answers from the record of a key, if it has one, and never executes anything. ok
// is false for a key that has not been executed, also while it is in flight.
//
// Errors: those of [Do] that speak about a record ([ErrMismatch], [ErrExpired],
// [ErrUnknownOutcome]), [ErrInvalidKey], [ErrSchema], [ErrUnavailable].
//
// Cost: 1 round trip, a SELECT by primary key, no lock, no xid, no WAL. On a standby it
// may miss what its primary has just committed.
func Lookup[T, TX any](ctx context.Context, s *Store[TX], key Key, fp Fingerprint) (res Result[T], ok bool, err error) {
	c, err := newCall(s, key, fp)
	if err == nil {
		_, err = s.ready(ctx)
	}
	var rec record
	if err == nil {
		rec, err = c.look(ctx)
	}
	if err == nil && rec.found {
		res.Value, err = decode[T](s.cfg.Codec, rec.result)
	}
	if err != nil {
		return Result[T]{}, false, publish("lookup", key, err)
	}
	res.Replayed, res.FirstAt = rec.found, rec.createdAt
	return res, rec.found, nil
}

// call is one use of a key.
type call[TX any] struct {
	store *Store[TX]
	key   Key
	op    Op // with defaults
	fp    Fingerprint

	server *server
}

func newCall[TX any](s *Store[TX], key Key, fp Fingerprint) (*call[TX], error) {
	if s == nil {
		return nil, errors.New("nil store")
	}
	if err := key.check(); err != nil {
		return nil, err
	}
	if err := fp.check(); err != nil {
		return nil, err
	}
	return &call[TX]{store: s, key: key, op: key.op.resolved(), fp: fp}, nil
}

// do runs attempts until one of them decides the key.
func (c *call[TX]) do(ctx context.Context, run handler[TX]) (record, error) {
	var err error
	if c.server, err = c.store.ready(ctx); err != nil {
		return record{}, err
	}
	for n := 1; ; n++ {
		rec, err := c.attempt(ctx, run)
		// Who holds the key after a first attempt may be its own ghost: a backend takes a
		// moment to notice that its client has closed the connection.
		ghost := n > 1 && errors.Is(err, ErrInFlight)
		if err == nil || n == maxAttempts || !ghost && !c.store.worthAnother(err) {
			return rec, err
		}
		if pause(ctx, n) != nil {
			return record{}, errors.Join(context.Cause(ctx), err)
		}
	}
}

// worthAnother says whether an attempt failed for a reason that a new transaction may not
// meet again. Every such failure is one after which nothing of the attempt is left, or
// running the handler again would be a second execution.
func (s *Store[TX]) worthAnother(err error) bool {
	if errors.Is(err, ErrTxEnded) || errors.Is(err, ErrHandlerTimeout) {
		return false // whatever else the handler said
	}
	if errors.Is(err, pg.ErrTxLost) || errors.Is(err, errStale) || s.isDuplicate(err) {
		return true
	}
	switch sqlState(err) {
	case pg.CodeSerialization, pg.CodeDeadlock:
		return true
	}
	return false
}

// sqlState is the SQLSTATE of our own statements' errors and of the handler's.
func sqlState(err error) string {
	if h, ok := errors.AsType[*handlerError](err); ok {
		err = h.err
	}
	var e interface{ SQLState() string }
	if errors.As(err, &e) {
		return e.SQLState()
	}
	return ""
}

func pause(ctx context.Context, n int) error {
	most := firstPause << n
	timer := time.NewTimer(most/2 + mrand.N(most/2)) //nolint:gosec // jitter is no secret
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// attempt is one transaction: trip one takes the lock and looks, the handler works,
// the last trip inserts and commits.
//
// Why two callers cannot both execute: whoever runs the handler holds the key's lock, and
// has looked after getting it, in a statement with a snapshot of its own. A
// record committed before that is seen; nobody else can commit one after it, before this
// transaction ends. And should the lock fail to exclude (two schemas' hashes, an
// isolation level with an old snapshot), the primary key lets one INSERT commit.
func (c *call[TX]) attempt(ctx context.Context, run handler[TX]) (record, error) {
	var (
		g   guard
		rec record
	)
	tx, err := c.store.db.Begin(ctx, pg.ReadCommitted, c.guardStmt(&g), c.lookupStmt(&rec))
	switch pg.Code(err) {
	case pg.CodeStalePlan, pg.CodeNoSuchStatement:
		return record{}, fmt.Errorf("%w: %w", errStale, err)
	}
	if err != nil {
		return record{}, pg.ExplainSchema(c.store.cfg.Schema, err)
	}
	switch {
	case rec.rows > 0: // also without the lock: a finished key always answers
		tx.Abandon(ctx)
		return c.answer(rec)
	case g.readOnly:
		tx.Abandon(ctx)
		return record{}, ErrReadOnly
	case !g.locked:
		tx.Abandon(ctx)
		return record{}, ErrInFlight
	}
	e := &execution[TX]{call: c, tx: tx, guard: g, attempt: newAttempt()}
	return e.run(ctx, run)
}

// guard is what trip one learns beside the record.
type guard struct {
	locked   bool
	start    time.Time // of the transaction
	pid      int64     // of the server's process
	readOnly bool
	idleMS   int64 // how long the server lets the transaction be idle
}

func (c *call[TX]) guardStmt(g *guard) pg.Stmt {
	return pg.Stmt{
		SQL:  sqlGuard,
		Args: []any{c.key.lock(c.store.cfg.Schema), (c.op.MaxHandler + serverGrace).Seconds(), c.server.checkInterval},
		Dest: []any{&g.locked, &g.start, &g.pid, &g.readOnly, &g.idleMS, new(string)},
	}
}

// roundTrip encodes v and decodes it again, before anything is committed.
func roundTrip[T any](codec Codec, v T) (data []byte, value T, err error) {
	if data, err = codec.Encode(v); err != nil {
		return nil, value, fmt.Errorf("encode result %T: %w", v, err)
	}
	if data == nil {
		data = []byte{} // NULL means that the result is no longer kept
	}
	value, err = decode[T](codec, data)
	return data, value, err
}

// decode starts from nothing: decoders merge into what they find.
func decode[T any](codec Codec, data []byte) (value T, err error) {
	if err := codec.Decode(data, &value); err != nil {
		return value, fmt.Errorf("decode result into %T: %w", value, err)
	}
	return value, nil
}

// newAttempt is a number that no other attempt has.
func newAttempt() int64 {
	var b [8]byte
	_, _ = rand.Read(b[:])                          // never fails, by its documentation
	return int64(binary.BigEndian.Uint64(b[:]) | 1) //nolint:gosec // a bit pattern, not a number
}
