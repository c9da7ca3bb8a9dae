package idem

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"
)

// Result is the answer of a key.
type Result[T any] struct {
	// Value is what the handler returned, as the store gives it back: encoded and decoded,
	// for the first caller too. So a result that does not survive storing is found by the
	// first test, not by the first repeat.
	Value T

	// Replayed is true when the handler did not run in this call.
	Replayed bool

	// FirstAt is when the transaction began that executed the key, by the database's clock.
	FirstAt time.Time
}

// handler is the caller's function with its result encoded. Beside a [Final] error the result is
// encoded too.
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
// is free again, unless the error is [Final]. So does a panic, which goes on. fn must not end the transaction, by no
// means: not by Commit or Rollback, not by SQL. When it does all the same, that is found
// out ([ErrTxEnded]).
//
// fn has [Op.MaxHandler] to finish; after that its ctx has ended, with [ErrHandlerTimeout] as its
// cause, and everything is rolled back.
//
// The end of ctx is seen while waiting for a connection and by fn. Once fn has returned
// without an error, the commit goes through regardless.
//
// While another caller executes the key, Do waits for up to [Op.Wait] and gets that one's result, or its
// turn. Callers in one process wait in memory, in the order in which they came; at most one of them
// waits on the server. fn must not call Do: [ErrNested]; it may call [DoTx].
//
// Errors: [ErrInvalidKey], [ErrInFlight], [ErrRefused], [ErrMismatch], [ErrExpired], [ErrUnknownOutcome],
// [ErrTxEnded], [ErrTxUnusable], [ErrHandlerTimeout], [ErrNested], [ErrReentrant], [ErrReadOnly], [ErrSchema],
// [ErrUnavailable], and
// whatever the server says to the INSERT or COMMIT (a deferred constraint, for one).
//
// Cost on pgx: a new key 2 round trips around those of fn, one commit, one row, no update
// and no dead tuple; a repeat is answered after 1, with no xid and no WAL. On
// database/sql: 7 around fn, and 1 for a repeat. Followers of a caller in the same process
// cost none. Locks: one advisory lock until the transaction ends. The first call of a store adds two trips, to
// check the schema and the server.
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
	defer c.panicking()()
	var value T
	rec, err := c.do(ctx, encoding(s.cfg.Codec, fn, &value))
	return outcome("do", c, rec, err, value)
}

// encoding is fn with its result encoded, and left in value as a repeat will get it.
func encoding[T, TX any](codec Codec, fn func(context.Context, TX) (T, error), value *T) handler[TX] {
	return func(ctx context.Context, tx TX) ([]byte, error) {
		v, err := fn(ctx, tx)
		if err != nil {
			err = &handlerError{err}
		}
		if err != nil && !isFinal(err) {
			return nil, err
		}
		data, decoded, codecErr := roundTrip(codec, v)
		*value = decoded
		if err != nil && codecErr != nil {
			return nil, err // the refusal stands without a value
		}
		return data, cmp.Or(codecErr, err)
	}
}

// outcome is what the caller gets for a record, if there is one. value is that of an execution in this
// very call.
func outcome[T, TX any](verb string, c *call[TX], rec record, err error, value T) (res Result[T], _ error) {
	if err == nil {
		rec, err = c.answer(rec)
	}
	if refused := rec.state == stateRefused; err == nil || refused {
		res = Result[T]{Value: value, Replayed: !rec.own, FirstAt: rec.createdAt}
		if !rec.own && (!refused || rec.result != nil) {
			value, bad := decode[T](c.store.cfg.Codec, rec.result)
			if err = errors.Join(err, bad); bad != nil && !refused {
				res, rec = Result[T]{}, record{}
			} else {
				res.Value = value
			}
		}
	}
	if err != nil {
		err = publish(verb, c.key, err)
	}
	c.ended(rec, err)
	return res, err
}

// Lookup answers from the record of a key, if it has one, and never executes anything. ok
// is false for a key that has not been executed, also while it is in flight. For a refusal it is true,
// and err is its [*RefusedError].
//
// Errors: those of [Do] that speak about a record ([ErrMismatch], [ErrExpired],
// [ErrUnknownOutcome]), [ErrInvalidKey], [ErrSchema], [ErrUnavailable].
//
// Cost: 1 round trip, a SELECT by primary key, no lock, no xid, no WAL. On a standby it
// may miss what its primary has just committed.
func Lookup[T, TX any](ctx context.Context, s *Store[TX], key Key, fp Fingerprint) (res Result[T], ok bool, err error) {
	c, err := newCall(s, key, fp)
	if err != nil {
		return Result[T]{}, false, publish("lookup", key, err)
	}
	rec, err := c.lookup(ctx)
	if err == nil && rec.rows == 0 {
		return Result[T]{}, false, nil
	}
	var none T
	res, err = outcome("lookup", c, rec, err, none)
	return res, err == nil || !res.FirstAt.IsZero(), err
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
