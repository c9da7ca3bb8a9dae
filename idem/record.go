package idem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// The states of a record. The numbers are stored.
const (
	stateDone    int64 = 1
	stateRefused int64 = 2
	stateUnknown int64 = 3
)

// record is a row of idem_record as far as callers need it.
type record struct {
	own       bool // stored by this very call
	rows      int64
	attempt   int64 // if it was asked for
	state     int64
	fpVersion int64
	fp        []byte
	createdAt time.Time
	result    []byte // nil when ReplayFor has passed, or there was none
}

func (c *call[TX]) lookupStmt(r *record) pg.Stmt {
	return pg.Stmt{
		SQL: c.store.sql.lookup, Args: []any{c.scope, c.digest},
		Dest: []any{&r.state, &r.fpVersion, &r.fp, &r.createdAt, &r.result},
		Rows: &r.rows,
	}
}

// whoseStmt is lookupStmt with the number of the attempt.
func (c *call[TX]) whoseStmt(r *record) pg.Stmt {
	return pg.Stmt{
		SQL: c.store.sql.whose, Args: []any{c.scope, c.digest},
		Dest: []any{&r.state, &r.fpVersion, &r.fp, &r.createdAt, &r.result, &r.attempt},
		Rows: &r.rows,
	}
}

// forOthers is the record as callers see it that did not store it. A codec may make what it decodes share
// the stored bytes, so nobody gets those of somebody else.
func (r record) forOthers() record {
	r.own = false
	r.result = bytes.Clone(r.result)
	return r
}

// look reads the record outside any transaction.
func (c *call[TX]) look(ctx context.Context) (record, error) { return c.readRecord(ctx, c.lookupStmt) }

// lookWhose is look with the number of the attempt.
func (c *call[TX]) lookWhose(ctx context.Context) (record, error) {
	return c.readRecord(ctx, c.whoseStmt)
}

// readRecord runs one of the two. After a restart of the server all idle connections of
// the pool are dead, after a migration all plans are stale, so it tries several, for as long as one trip may take.
func (c *call[TX]) readRecord(ctx context.Context, stmt func(*record) pg.Stmt) (rec record, err error) {
	const most = 100
	for n, start := 1, time.Now(); ; n++ {
		rec = record{}
		if err = c.store.db.Pool().Run(ctx, stmt(&rec)); !isStale(err) || n == most || time.Since(start) >= pg.NetTimeout(ctx) {
			break
		}
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return record{}, errors.Join(context.Cause(ctx), err)
	case err != nil && !pg.Rejected(err):
		return record{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	case err != nil:
		return record{}, pg.ExplainSchema(c.store.cfg.Schema, err)
	}
	return rec, nil
}

// lookup is the call of Lookup. No record is no answer, and no error.
func (c *call[TX]) lookup(ctx context.Context) (rec record, err error) {
	if _, err = c.store.ready(ctx); err == nil {
		rec, err = c.look(ctx)
	}
	return rec, err
}

// isStale tells errors that come from what a connection was before from those that the next one
// would meet too.
func isStale(err error) bool {
	switch pg.Code(err) {
	case pg.CodeStalePlan, pg.CodeNoSuchStatement:
		return true
	}
	return err != nil && !pg.Rejected(err) && !errors.Is(err, pg.ErrUnavailable) && !isContextEnd(err) && !errors.Is(err, os.ErrDeadlineExceeded)
}

// answer decides what an existing record means for this request. The fingerprint comes
// first: who cannot show the same request learns nothing about the first one.
func (c *call[TX]) answer(rec record) (record, error) {
	same, known := c.fp.matches(rec.fpVersion, rec.fp)
	if !known {
		c.store.cfg.Logger.Warn("idem: fingerprint not compared: stored by an algorithm that this code does not know",
			"key", c.key, "stored", rec.fpVersion, "request", c.fp.version)
	}
	switch {
	case !same:
		return record{}, &MismatchError{Key: c.key, FirstAt: rec.createdAt}
	case rec.state == stateUnknown:
		return record{}, fmt.Errorf("%w: a handler ended its transaction at %s, a person has to look at what it wrote",
			ErrUnknownOutcome, rec.createdAt.UTC().Format(time.RFC3339))
	case rec.state != stateDone && rec.state != stateRefused:
		return record{}, fmt.Errorf("%w: record has state %d, which this code does not know: upgrade the module", ErrSchema, rec.state)
	case rec.result == nil:
		return record{}, fmt.Errorf("%w: first at %s", ErrExpired, rec.createdAt.UTC().Format(time.RFC3339))
	}
	if rec.state == stateDone {
		return rec, nil
	}
	reason, value, err := unpackRefusal(rec.result)
	if err != nil {
		return record{}, err
	}
	rec.result = value
	return rec, &RefusedError{Key: c.key, Reason: reason, FirstAt: rec.createdAt}
}

// isDuplicate recognises the primary key's verdict, and nobody else's: a unique
// violation in the handler's own tables must not look like a lost race.
func (s *Store[TX]) isDuplicate(err error) bool {
	e, ok := errors.AsType[*pg.Error](err)
	return ok && e.Code == pg.CodeUnique && e.Schema == s.cfg.Schema && e.Constraint == "idem_record_pkey"
}

// isEndedEarly recognises the created_at, or a step's at, that became NULL.
func (s *Store[TX]) isEndedEarly(err error) bool {
	e, ok := errors.AsType[*pg.Error](err)
	if !ok || e.Code != pg.CodeNotNull || e.Schema != s.cfg.Schema {
		return false
	}
	return e.Table == "idem_record" && e.Column == "created_at" || e.Table == "idem_step" && e.Column == "at"
}

// isTaken recognises a step's name that became NULL: another step is stored in its place, or more of the same one.
func (s *Store[TX]) isTaken(err error) bool {
	e, ok := errors.AsType[*pg.Error](err)
	return ok && e.Code == pg.CodeNotNull && e.Schema == s.cfg.Schema && e.Table == "idem_step" && e.Column == "name"
}
