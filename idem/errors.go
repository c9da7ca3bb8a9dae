package idem

import (
	"errors"
	"fmt"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

var (
	// ErrInvalidKey means that a key, its operation or its fingerprint cannot be
	// used. Nothing was sent to the database. The error is a [*KeyError].
	ErrInvalidKey = errors.New("invalid key")

	// ErrInFlight means that somebody else is executing this key right now. Nothing
	// was done; asking again later gets their answer. The error is an [*InFlightError] where a call executes keys, and not where people
	// look after them (Forget, Resolve).
	ErrInFlight = errors.New("key is in flight")

	// ErrRefused means that the handler, now or in an earlier call, has refused the request for good
	// ([Final]). The error is a [*RefusedError].
	ErrRefused = errors.New("refused")

	// ErrNested means that [Do] was called inside a handler, of whatever store. It would wait for other callers in a way that
	// the database's deadlock detector cannot see, and need a second connection while it holds the
	// first. Use [DoTx] with the handler's transaction.
	ErrNested = errors.New("called inside a handler: use DoTx with its transaction")

	// ErrReentrant means that a handler has executed its own key again. Everything was
	// rolled back.
	ErrReentrant = errors.New("key is already being executed by this very call")

	// ErrRetryTx means that the caller's transaction lost a race: roll it back and repeat it as a
	// whole. It comes from [DoTx] and [Store.SeenTx], mostly above READ COMMITTED. A handler's own 40001 or
	// 40P01 comes back as it is, and says the same.
	ErrRetryTx = errors.New("transaction lost a race: roll it back and repeat it")

	// ErrMismatch means that the key belongs to another request. The error is a
	// [*MismatchError].
	ErrMismatch = errors.New("key was used for another request")

	// ErrExpired means that the key was executed long ago and its result is no
	// longer kept. It was not executed again.
	ErrExpired = errors.New("key was executed, its result is no longer kept")

	// ErrNoRecord means that there is nothing to forget: the key was never executed, or is forgotten already.
	ErrNoRecord = errors.New("no record")

	// ErrUnknownOutcome means that nobody can say whether the effect was committed:
	// the answer to COMMIT was lost and the database stayed out of reach, or an earlier handler ended its transaction by
	// itself. Calling again with the same key is safe: it finds the record, or
	// executes, or says so again. In [RunSteps] it is also a step called at most once whose call may have
	// happened; it is left by its reconcile or by [Store.Resolve].
	ErrUnknownOutcome = errors.New("outcome unknown")

	// ErrTxEnded means that the handler ended the transaction it was given. Unless it is
	// certain that this was a rollback, what it had written may be committed without a
	// record, so the key is blocked: every later call gets [ErrUnknownOutcome] until a
	// person has looked. Or somebody else has executed the key since that COMMIT, and there may be two effects. The message says which.
	ErrTxEnded = errors.New("handler ended its transaction")

	// ErrTxUnusable means that the handler left a transaction that cannot be committed: a statement in it had
	// failed, or rows or batch results were left open; nothing of what it wrote stands. Or that a
	// transaction was given to [DoTx] or SeenTx in which that is so, or in which another call is executing.
	ErrTxUnusable = errors.New("transaction cannot be used")

	// ErrHandlerTimeout means that the handler took longer than [Op.MaxHandler]. Everything
	// was rolled back, whatever the handler returned. It is not run again by itself.
	ErrHandlerTimeout = errors.New("handler took longer than MaxHandler")

	// ErrLeaseLost means that this process has lost a key that it was executing by [RunSteps]: it was frozen, or had no
	// connection, for longer than [Config.Lease]. Another one may be executing the key by now. What this
	// one stores after that has no effect. It is the cause of the ctx that ends.
	ErrLeaseLost = errors.New("lease lost")

	// ErrStepsChanged means that a key was begun by code with other steps. What is done cannot be matched with
	// what is to do, so nothing was called. The error is a [*StepsChangedError].
	ErrStepsChanged = errors.New("the list of steps has changed under a key")

	// ErrDead means that the completer has tried in vain to finish the key as often as [Op.Attempts] says. It is not
	// executed any more until somebody decides about it with [Store.Resolve].
	ErrDead = errors.New("key is dead: decide about it with Resolve")

	// ErrNotStuck means that there is nothing to decide about a key by [Store.Resolve].
	ErrNotStuck = errors.New("key does not need a decision")

	// ErrUnfinished means that a key which was begun by [RunSteps] cannot be forgotten: what its steps have done to others would be
	// forgotten with it. Let it be finished, by a repeat or by the completer, or end it with [Store.Resolve].
	ErrUnfinished = errors.New("key was begun in steps and is not finished")

	// ErrReadOnly means that the database does not accept writes: a standby, or a
	// role or database that defaults to read-only transactions. The handler was not run.
	ErrReadOnly = errors.New("database is read-only")

	// ErrSchema means that the library's tables are missing, too old, too new or
	// out of reach. The error says which, and what to run.
	ErrSchema = pg.ErrSchema

	// ErrUnavailable means that no connection could be had, or that it was lost
	// before COMMIT. Nothing was done; trying again is safe.
	ErrUnavailable = pg.ErrUnavailable
)

// KeyError says which part of a key cannot be used, and why. It matches [ErrInvalidKey].
type KeyError struct {
	Part   string // "operation", "scope", "id", "fingerprint", "policy", "reason", "page size"
	Reason string
}

func (e *KeyError) Error() string { return e.Part + " " + e.Reason }
func (*KeyError) Unwrap() error   { return ErrInvalidKey }

// MismatchError says that a key was first used with another fingerprint. It
// matches [ErrMismatch].
type MismatchError struct {
	Key     Key
	FirstAt time.Time // when the first request was executed
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("%v, first at %s", ErrMismatch, e.FirstAt.UTC().Format(time.RFC3339))
}
func (*MismatchError) Unwrap() error { return ErrMismatch }

// StepsChangedError says where the steps of a key differ. It matches [ErrStepsChanged].
type StepsChangedError struct {
	Key    Key
	Step   int    // from 0
	Stored string // the name of the step that was done there
	Found  string // what the code asks for now; "" if it has ended before
}

func (e *StepsChangedError) Error() string {
	return fmt.Sprintf("%v: step %d was %q, and is %q", ErrStepsChanged, e.Step, pg.Printable(e.Stored), pg.Printable(e.Found))
}
func (*StepsChangedError) Unwrap() error { return ErrStepsChanged }

// errStale means that the server has forgotten a statement, or what it meant has changed, as
// after a migration. The client library prepares it anew.
var errStale = errors.New("statement is stale")

// handlerError marks the handler's own error on its way out, where the mark is taken off.
type handlerError struct{ err error }

func (e *handlerError) Error() string { return e.err.Error() }

// unmarked is err as the handler returned it, if it did.
func unmarked(err error) error {
	if h, ok := errors.AsType[*handlerError](err); ok {
		return h.err
	}
	return err
}

// publish turns the seam's facts into the exported ones and says which key they are about.
func publish(verb string, key Key, err error) error {
	if h, ok := errors.AsType[*handlerError](err); ok {
		return h.err // as it came: it is the caller's
	}
	switch {
	case errors.Is(err, ErrTxEnded), errors.Is(err, ErrHandlerTimeout): // whatever else is in it
	case errors.Is(err, pg.ErrOutcomeUnknown):
		err = fmt.Errorf("%w: ask again with the same key: %w", ErrUnknownOutcome, err)
	case errors.Is(err, pg.ErrTxLost):
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return fmt.Errorf("idem: %s %s: %w", verb, key, err)
}
