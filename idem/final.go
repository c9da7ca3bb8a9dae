package idem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// Final makes an error of a handler the answer of its key. What the handler wrote is rolled
// back, and the refusal is stored: this caller and every repeat get a [*RefusedError] with the
// error's text, together with the value that the handler returned beside it, if that can be stored. The handler does not
// run again for the key, so use it for what no repeat can change ("the account is closed"), and
// not for what may be otherwise tomorrow.
//
// An error that wraps a serialization failure, a deadlock, a lost connection or the end of a context is
// not final, whatever it is wrapped in: it says nothing about the request. Nor is one of [ErrInFlight], [ErrUnavailable], [ErrRetryTx],
// [ErrUnknownOutcome], [ErrLeaseLost] and [ErrStepsChanged], which [Step] and [DoTx] return: a refusal would end a key whose payment may have
// been made. Final(nil) is nil.
func Final(err error) error {
	if err == nil {
		return nil
	}
	return &finalError{err}
}

type finalError struct{ err error }

func (e *finalError) Error() string { return e.err.Error() }
func (e *finalError) Unwrap() error { return e.err }

// RefusedError is a refusal that a handler has declared [Final]. It matches [ErrRefused].
type RefusedError struct {
	Key     Key
	Reason  string    // the text of the handler's error
	FirstAt time.Time // when it was stored, by the database's clock
}

func (e *RefusedError) Error() string { return fmt.Sprintf("%v: %s", ErrRefused, e.Reason) }
func (*RefusedError) Unwrap() error   { return ErrRefused }

// isFinal says whether a handler's error is a refusal to be stored.
func isFinal(err error) bool {
	h, ok := errors.AsType[*handlerError](err)
	if !ok {
		return false
	}
	if _, ok := errors.AsType[*finalError](h.err); !ok {
		return false
	}
	switch code := sqlState(h.err); {
	case code == pg.CodeSerialization, code == pg.CodeDeadlock, code == pg.CodeQueryCanceled, pg.IsFatal("", code):
		return false
	}
	for _, passing := range []error{ErrInFlight, ErrUnavailable, ErrRetryTx, ErrUnknownOutcome, ErrLeaseLost, ErrStepsChanged} {
		if errors.Is(h.err, passing) {
			return false
		}
	}
	return !isContextEnd(h.err)
}

// packRefusal is what is stored of a refusal: the reason with its length, then 1 and the value as the
// codec encoded it, or nothing where there is none.
func packRefusal(reason string, value []byte) []byte {
	buf := binary.AppendUvarint(make([]byte, 0, len(reason)+len(value)+5), uint64(len(reason)))
	buf = append(buf, reason...)
	if value == nil {
		return buf
	}
	return append(append(buf, 1), value...)
}

func unpackRefusal(data []byte) (reason string, value []byte, err error) {
	n, size := binary.Uvarint(data)
	rest := data[max(0, size):]
	if size <= 0 || n > uint64(len(rest)) {
		return "", nil, errors.New("stored refusal is damaged")
	}
	if reason, rest = string(rest[:n]), rest[n:]; len(rest) == 0 {
		return reason, nil, nil
	}
	return reason, rest[1:], nil
}
