package idem

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"strconv"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

const (
	maxAttempts = 5
	serverGrace = time.Second          // what the server waits beyond MaxHandler
	firstPause  = 2 * time.Millisecond // doubled with each attempt, and jittered
)

// call is one use of a key.
type call[TX any] struct {
	store *Store[TX]
	key   Key
	op    Op // with defaults
	fp    Fingerprint

	scope, digest any // of the key, as arguments: boxed once, for there is hardly a statement without them

	request []byte // what the function of RunSteps gets, encoded

	began   time.Time
	server  *server
	runs    int  // of the handler
	ghosts  int  // tries for a key that our own lost connection may still hold
	told    bool // how the call ended
	waiting bool // counts as one of the store's waiters on the server
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
	return &call[TX]{
		store: s, key: key, op: key.op.resolved(), fp: fp, scope: key.scope, digest: key.digest(), began: time.Now(),
	}, nil
}

// do executes the key or finds its record.
func (c *call[TX]) do(ctx context.Context, run handler[TX]) (rec record, err error) {
	if err = c.refuseNested(ctx); err != nil {
		return record{}, err
	}
	if c.server, err = c.store.ready(ctx); err != nil {
		return record{}, err
	}
	v := c.store.queue.join(ctx, c.key.identity(c.store.cfg.Schema), c.op.Wait)
	switch {
	case v.lead != nil:
		rec, err = c.lead(ctx, v.lead, run)
	case errors.Is(v.err, ErrInFlight):
		err = c.inFlight()
	default:
		rec, err = v.rec.forOthers(), v.err
	}
	return rec, err
}

// lead asks the server, for this caller and those in line behind it.
func (c *call[TX]) lead(ctx context.Context, t *turn, run handler[TX]) (record, error) {
	defer t.pass() // also when the handler panics; after an answer it does nothing
	rec, err := c.attempts(ctx, t, run)
	c.share(ctx, t, rec, err)
	return rec, err
}

// share tells those in line what concerns them too.
func (c *call[TX]) share(ctx context.Context, t *turn, rec record, err error) {
	switch {
	case err == nil || rec.rows > 0:
		t.answer(rec, nil)
	case c.runs == 0 && ctx.Err() == nil && aboutTheServer(err):
		t.answer(record{}, err)
	}
}

// aboutTheServer tells errors that every caller would meet from those of one caller.
func aboutTheServer(err error) bool {
	return errors.Is(err, ErrUnavailable) || errors.Is(err, ErrReadOnly) || errors.Is(err, ErrSchema)
}

// attempts opens transactions until one of them decides the key.
func (c *call[TX]) attempts(ctx context.Context, t *turn, run handler[TX]) (record, error) {
	defer c.leaveServerQueue()
	if c.key.likelyReplay || !c.store.db.Pipelined() {
		if rec, err := c.look(ctx); err != nil || rec.rows > 0 {
			return rec, err
		}
	}
	var patience time.Duration // of the next attempt, for the key's lock
	for n, duplicates := 1, 0; ; {
		rec, err := c.attempt(ctx, t, patience, run)
		patience = 0
		switch {
		case errors.Is(err, ErrTxEnded), errors.Is(err, ErrHandlerTimeout), errors.Is(err, pg.ErrOutcomeUnknown):
			return record{}, err // whatever else the handler's own error says that is in it
		case errors.Is(err, ErrInFlight):
			t.busy()
			if rec, patience, err = c.wait(ctx, n); err != nil || rec.rows > 0 {
				return rec, err
			}
			continue
		case c.store.isDuplicate(err):
			if duplicates++; duplicates > 1 { // the second time the snapshot was newer than the record
				return record{}, fmt.Errorf("%w: its record appears while its lock is held: %w", ErrReentrant, err)
			}
		case err == nil || !worthAnother(err):
			return rec, err
		}
		if n == maxAttempts {
			return record{}, err
		}
		if pause(ctx, n) != nil {
			return record{}, errors.Join(context.Cause(ctx), err)
		}
		c.tell(Retried, err)
		n++
	}
}

// worthAnother says whether an attempt failed for a reason that a new transaction may not
// meet again. Every such failure is one after which nothing of the attempt is left, or
// running the handler again would be a second execution.
func worthAnother(err error) bool {
	if errors.Is(err, pg.ErrTxLost) || errors.Is(err, errStale) {
		return true
	}
	switch sqlState(err) {
	case pg.CodeSerialization, pg.CodeDeadlock:
		return true
	}
	h, ok := errors.AsType[*handlerError](err)
	return ok && errors.Is(h.err, ErrRetryTx) // of a DoTx in the handler
}

// sqlState is the SQLSTATE of our own statements' errors and of the handler's.
func sqlState(err error) string {
	var e interface{ SQLState() string }
	if errors.As(unmarked(err), &e) {
		return e.SQLState()
	}
	return ""
}

func isContextEnd(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

func pause(ctx context.Context, n int) error { return sleep(ctx, firstPause<<n) }

// sleep takes between half of most and most.
func sleep(ctx context.Context, most time.Duration) error {
	half := max(1, most/2)
	timer := time.NewTimer(half + mrand.N(half)) //nolint:gosec // jitter is no secret
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
func (c *call[TX]) attempt(ctx context.Context, t *turn, patience time.Duration, run handler[TX]) (record, error) {
	e := &execution[TX]{call: c, turn: t}
	err := e.begin(ctx, patience)
	c.leaveServerQueue()
	if err != nil {
		return record{}, err
	}
	switch {
	case e.found.rows > 0: // also without the lock: a finished key always answers
		e.tx.Abandon(ctx)
		return e.found, nil
	case e.guard.readOnly:
		e.tx.Abandon(ctx)
		return record{}, ErrReadOnly
	case !e.guard.locked():
		e.tx.Abandon(ctx)
		return record{}, c.inFlight()
	}
	t.busy()
	e.attempt = newAttempt()
	return e.run(ctx, run)
}

// begin is trip one.
func (e *execution[TX]) begin(ctx context.Context, patience time.Duration) (err error) {
	c := e.call
	stmts := []pg.Stmt{c.guardStmt(&e.guard), c.lookupStmt(&e.found)}
	if patience > 0 {
		ctx = pg.WithNetTimeout(ctx, patience+pg.NetTimeout(ctx))
		stmts = append(c.patientStmts(patience), stmts...)
	}
	e.tx, err = c.store.db.Begin(ctx, c.op.Isolation, stmts...)
	switch pg.Code(err) {
	case pg.CodeStalePlan, pg.CodeNoSuchStatement:
		return fmt.Errorf("%w: %w", errStale, err)
	case pg.CodeLockTimeout:
		if patience > 0 {
			return c.inFlight()
		}
	}
	return pg.ExplainSchema(c.store.cfg.Schema, err)
}

// guard is what trip one learns beside the record.
type guard struct {
	pid      int64     // of the server's process that holds the key's lock for us; 0 is somebody else's
	start    time.Time // of the transaction
	readOnly bool
	idleMS   int64 // how long the server lets the transaction be idle
}

func (c *call[TX]) guardStmt(g *guard) pg.Stmt {
	return pg.Stmt{
		SQL:  sqlGuard,
		Args: []any{c.lock(), strconv.FormatInt((c.op.MaxHandler + serverGrace).Milliseconds(), 10), c.server.checkInterval},
		Dest: []any{&g.pid, &g.start, &g.readOnly, &g.idleMS},
	}
}

func (g *guard) locked() bool { return g.pid != 0 }

func (c *call[TX]) lock() int64 { return c.key.lock(c.store.cfg.Schema) }

// newAttempt is a number that no other attempt has.
func newAttempt() int64 {
	var b [8]byte
	_, _ = rand.Read(b[:])                          // never fails, by its documentation
	return int64(binary.BigEndian.Uint64(b[:]) | 1) //nolint:gosec // a bit pattern, not a number
}
