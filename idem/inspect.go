package idem

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// State is what is known of a key.
type State int

// The states of a key. That somebody is executing it is not among them: [Record.InFlight].
const (
	StateNone    State = 0                   // no record: never executed, or forgotten
	StateDone    State = State(stateDone)    // executed and committed
	StateRefused State = State(stateRefused) // refused for good ([Final])
	StateUnknown State = State(stateUnknown) // a handler ended its transaction; a person has to look at what it wrote ([Store.Resolve], [Store.Forget])
)

func (s State) String() string {
	switch s {
	case StateNone:
		return "none"
	case StateDone:
		return "done"
	case StateRefused:
		return "refused"
	case StateUnknown:
		return "unknown"
	}
	return fmt.Sprintf("state %d", int(s))
}

// Record is what is stored about a key, for people and their tools. It does not hold the result: that is for
// whoever can show the key, and [Lookup] gives it.
type Record struct {
	State     State
	Scope     string
	Operation string
	ID        string    // empty where ids are hidden
	Digest    []byte    // of operation and id: with the scope it is the primary key
	FirstAt   time.Time // when the transaction began that executed it
	Attempt   int64     // the number of that run, as in the logs of this library

	ReplayUntil   time.Time // zero for ever
	RememberUntil time.Time // zero for ever; the purge may be late
	ResultBytes   int64     // the size of the result as stored; -1 when there is none
	Expired       bool      // the answer to a repeat is ErrExpired
	Forgettable   bool      // RememberFor is over: the next purge forgets it
	Fingerprinted bool      // repeats are compared with the first request

	InFlight bool // somebody holds the key's lock; only Inspect looks
}

// String is for logs. Like [Key.String] it shows no id.
func (r Record) String() string {
	return fmt.Sprintf("%s/%s#%s %v", pg.Printable(r.Scope), pg.Printable(r.Operation), hex.EncodeToString(r.Digest[:min(4, len(r.Digest))]), r.State)
}

// Inspect says what is stored about a key, and whether somebody is executing it. A key without a record has
// [StateNone], which is no error. It asks for no fingerprint and returns no result, so it is for operators.
//
// Errors: [ErrInvalidKey], [ErrSchema], [ErrUnavailable], the end of ctx.
//
// Cost: 2 round trips, which take no lock, no xid and write no WAL. Reading the server's lock table is not free: not for a
// hot path.
func (s *Store[TX]) Inspect(ctx context.Context, key Key) (Record, error) {
	if err := key.check(); err != nil {
		return Record{}, publish("inspect", key, err)
	}
	if _, err := s.ready(ctx); err != nil {
		return Record{}, publish("inspect", key, err)
	}
	rec := Record{Scope: key.scope, Operation: key.op.Name, ID: key.id, Digest: key.digest(), ResultBytes: -1}
	held := pg.Stmt{SQL: sqlLockHeld, Args: []any{key.lock(s.cfg.Schema)}, Dest: []any{&rec.InFlight}}
	if err := s.db.Pool().Run(ctx, held); err != nil { // first: whoever lets go of it after this has committed his record by then
		return Record{}, publish("inspect", key, s.readError(err))
	}
	for row, err := range s.db.Pool().Query(ctx, pg.In(s.cfg.Schema, sqlInspect), key.scope, key.digest()) {
		if err == nil {
			err = rec.scan(row)
		}
		if err != nil {
			return Record{}, publish("inspect", key, s.readError(err))
		}
	}
	return rec, nil
}

// ListConfig says which records of a scope to list. A nil *ListConfig lists them all.
type ListConfig struct {
	Operation string // only of this one
	State     State  // only in this one
	After     []byte // only behind this [Record.Digest]: where an earlier listing has stopped

	// PageSize is how many records are read at a time. Defaults to 100, at most 10,000.
	PageSize int
}

const (
	defaultPageSize = 100
	mostPageSize    = 10_000
)

// List yields the records of a scope in the order of their digests, which is none that means anything, but one that stays: a
// record that is there from the beginning to the end is yielded once, whatever comes and goes meanwhile.
// No connection is held while the loop's body runs, which may call [Store.Forget].
//
// The first error ends it: [ErrInvalidKey] for a scope that cannot be one or a page size out of range, [ErrSchema],
// [ErrUnavailable], the end of ctx.
//
// Cost: one round trip and one range of the primary key's index a page. With Operation or State, records of other
// kinds are read too and left out.
func (s *Store[TX]) List(ctx context.Context, scope string, cfg *ListConfig) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		var c ListConfig
		if cfg != nil {
			c = *cfg
		}
		if err := c.check(scope); err != nil {
			yield(Record{}, fmt.Errorf("idem: list: %w", err))
			return
		}
		if _, err := s.ready(ctx); err != nil {
			yield(Record{}, fmt.Errorf("idem: list: %w", err))
			return
		}
		for {
			page, err := s.page(ctx, scope, c)
			if err != nil {
				yield(Record{}, fmt.Errorf("idem: list: %w", s.readError(err)))
				return
			}
			for _, rec := range page {
				if !yield(rec, nil) {
					return
				}
			}
			if len(page) < c.PageSize {
				return
			}
			c.After = page[len(page)-1].Digest
		}
	}
}

func (c *ListConfig) check(scope string) error {
	if reason := pg.Fault(scope, MaxScope); reason != "" {
		return &KeyError{Part: "scope", Reason: reason}
	}
	if c.PageSize == 0 {
		c.PageSize = defaultPageSize
	}
	if c.PageSize < 0 || c.PageSize > mostPageSize {
		return &KeyError{Part: "page size", Reason: fmt.Sprintf("is %d, which is not between 1 and %d", c.PageSize, mostPageSize)}
	}
	if c.After == nil {
		c.After = []byte{}
	}
	return nil
}

// page reads one page to its end, so that the connection is free again.
func (s *Store[TX]) page(ctx context.Context, scope string, c ListConfig) (page []Record, err error) {
	rows := s.db.Pool().Query(ctx, pg.In(s.cfg.Schema, sqlList), scope, c.After, c.Operation, int64(c.State), int64(c.PageSize))
	for row, err := range rows {
		rec := Record{Scope: scope}
		if err == nil {
			err = rec.scan(row)
		}
		if err != nil {
			return nil, err
		}
		page = append(page, rec)
	}
	return page, nil
}

// scan reads a row of sqlInspect or sqlList.
func (r *Record) scan(row pg.Scan) error {
	var (
		state, fpVersion        int64
		id                      *string
		replay, remember        *time.Time
		size                    *int64
		replayOver, rememberOut bool
	)
	err := row(&state, &r.Attempt, &fpVersion, &r.Digest, &r.Operation, &id, &r.FirstAt, &replay, &remember, &size, &replayOver, &rememberOut)
	if err != nil {
		return err
	}
	r.State, r.ID, r.ResultBytes = State(state), "", -1
	if id != nil {
		r.ID = *id
	}
	if replay != nil {
		r.ReplayUntil = *replay
	}
	if remember != nil {
		r.RememberUntil = *remember
	}
	if size != nil {
		r.ResultBytes = *size
	}
	r.Expired = r.State != StateUnknown && (replayOver || size == nil)
	r.Forgettable = r.State != StateUnknown && replayOver && rememberOut
	r.Fingerprinted = fpVersion != fpNone
	return nil
}

// readError is what the failure of a statement that only reads means.
func (s *Store[TX]) readError(err error) error {
	switch {
	case pg.Rejected(err):
		return pg.ExplainSchema(s.cfg.Schema, err)
	case isContextEnd(err), errors.Is(err, ErrUnavailable):
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
