package idem

import (
	"context"
	"errors"
	"fmt"

	"github.com/pgonce/pgonce/internal/pg"
)

// Outcome is what is known of a call.
type Outcome int

// The outcomes of calls.
const (
	Unsure        Outcome = iota // nobody can say yet
	Happened                     // the call had its effect
	NeverHappened                // it had none, and will have none: the other side refuses its downstream key from now on
)

func (o Outcome) String() string {
	names := [...]string{"unsure", "happened", "never happened"}
	if o < 0 || int(o) >= len(names) {
		return names[0]
	}
	return names[o]
}

// StepOption changes how [Step] treats its call.
type StepOption[T any] func(*stepPolicy[T])

type stepPolicy[T any] struct {
	once      bool
	reconcile func(ctx context.Context, downstream string) (T, Outcome, error)
}

// AtMostOnce makes a step that is never called again by guess. It is for another side that would do the thing twice, with
// the same downstream key too.
//
// The step is marked as started, durably, before its function is called. If that returns an error, or its process dies, the
// outcome is unknown, and the key answers [ErrUnknownOutcome]. The next attempt does not call; it asks reconcile, with the downstream key that the call had:
// [Happened] and the step's value, [NeverHappened], or [Unsure], as with an error. After NeverHappened the step is called once more, with a new downstream key. Say so only if
// the other side is certain to refuse the old one: the call may still be on its way. With a nil reconcile,
// only a person can decide ([Store.Resolve]). reconcile may be asked any number of times.
//
// Cost: one commit more.
func AtMostOnce[T any](reconcile func(ctx context.Context, downstream string) (T, Outcome, error)) StepOption[T] {
	return func(p *stepPolicy[T]) { p.once, p.reconcile = true, reconcile }
}

// Step does one thing outside of the database, and stores what came of it. In a later attempt it returns what is stored
// and calls nothing. fn gets a downstream key: 32 hexadecimal digits that are the same in every attempt, and different for every other step and
// key. Pass it to the other side as its idempotency key or reference.
//
// Steps are known by their names, 1 to 100 bytes, and their order. Each name may be used once in a run.
//
// An error of fn is returned as it is, and nothing is stored: the step is done again by the next attempt. Something that the other side
// has refused for good is a result, not an error. For a step that is [AtMostOnce], any error leaves the outcome
// unknown: it is joined with [ErrUnknownOutcome].
//
// The value is returned as it was stored, encoded and decoded. It is stored though ctx has ended meanwhile.
//
// Errors: [ErrLeaseLost], [ErrStepsChanged], [ErrUnknownOutcome], [ErrInvalidKey] for the name, [ErrUnavailable] if the result could not be stored within 20 seconds, and
// the codec's. When one of them comes after fn was called, return it. After [ErrUnknownOutcome] no other step begins, and the key is not finished: a repeat
// finds out what was stored.
//
// Cost: 1 commit, which many goroutines share, and 1 round trip on every driver.
func Step[T, TX any](ctx context.Context, run *Run[TX], name string,
	fn func(ctx context.Context, downstream string) (T, error), opts ...StepOption[T],
) (value T, err error) {
	if run == nil || fn == nil {
		return value, errors.New("idem: step: nil run or function")
	}
	var policy stepPolicy[T]
	for _, opt := range opts {
		opt(&policy)
	}
	ord, stored, err := run.begin(name)
	if err != nil {
		return value, run.publishStep(name, err)
	}
	returned := false
	defer func() {
		if !returned { // a panic goes through
			err = errPanicked
		}
		run.done(name, err)
	}()
	ctx, release := run.bound(ctx)
	defer release()
	o := &oneStep[T, TX]{run: run, ord: ord, name: name, stored: stored, policy: policy}
	value, err = o.take(ctx, fn)
	returned = true
	if err != nil {
		err = run.publishStep(name, err)
	}
	return value, err
}

// oneStep is a call of [Step].
type oneStep[T, TX any] struct {
	run    *Run[TX]
	ord    int64
	name   string
	stored storedStep
	policy stepPolicy[T]
}

// take returns what is stored, or calls.
func (o *oneStep[T, TX]) take(ctx context.Context, fn func(context.Context, string) (T, error)) (value T, err error) {
	codec := o.run.call.store.cfg.Codec
	switch o.stored.state {
	case stepDone:
		return decode[T](codec, o.stored.result)
	case stepStarted:
		if value, happened, err := o.ask(ctx); happened || err != nil {
			return value, err
		}
	}
	if o.policy.once {
		if err := o.store(ctx, stepStarted, nil); err != nil {
			return value, err
		}
	}
	if err := o.run.lost(); err != nil { // the mark may stand; reconcile will find that nothing was called
		return value, err
	}
	if err := ctx.Err(); err != nil && !o.policy.once {
		return value, context.Cause(ctx)
	}
	o.calling()
	if value, err = fn(ctx, o.downstream()); err != nil {
		if o.policy.once {
			return value, fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
		}
		return value, &handlerError{err}
	}
	return o.keep(ctx, value)
}

// calling notes that somebody outside will hear of this.
func (o *oneStep[T, TX]) calling() {
	o.run.mu.Lock()
	defer o.run.mu.Unlock()
	o.run.called++
	if o.policy.once {
		o.run.open = o.name
	}
}

// ask finds out what became of a call that somebody before us has begun. If it never happened, another one may be made.
func (o *oneStep[T, TX]) ask(ctx context.Context) (value T, happened bool, err error) {
	o.run.setOpen(o.name)
	if !o.policy.once {
		return value, false, fmt.Errorf("%w: it was begun as one that is called at most once", ErrUnknownOutcome)
	}
	if o.policy.reconcile == nil {
		return value, false, fmt.Errorf("%w: it is not known what became of the call", ErrUnknownOutcome)
	}
	value, outcome, err := o.policy.reconcile(ctx, o.downstream())
	switch {
	case err != nil:
		return value, false, fmt.Errorf("%w: reconcile: %w", ErrUnknownOutcome, err)
	case outcome == Happened:
		value, err = o.keep(ctx, value)
		return value, true, err
	case outcome == NeverHappened:
		o.stored.round++
		o.run.setOpen("")
		return value, false, nil
	}
	return value, false, fmt.Errorf("%w: nobody can say yet what became of the call", ErrUnknownOutcome)
}

func (o *oneStep[T, TX]) downstream() string {
	c := o.run.call
	return c.key.downstream(c.store.cfg.Schema, o.name, o.stored.round)
}

// keep stores the value. Until it is stored, a call that is made at most once is one of unknown outcome.
func (o *oneStep[T, TX]) keep(ctx context.Context, value T) (T, error) {
	data, decoded, err := roundTrip(o.run.call.store.cfg.Codec, value)
	if err != nil {
		return decoded, err
	}
	if err := o.store(ctx, stepDone, data); err != nil {
		return decoded, err
	}
	o.run.setOpen("")
	return decoded, nil
}

// store writes the step, if the key is still ours.
func (o *oneStep[T, TX]) store(ctx context.Context, state int64, data []byte) error {
	return o.run.store(ctx, o.ord, o.name, state, o.stored.round, data)
}

// store writes a step for the attempt that owns the key. Behind a take-over it does nothing.
func (r *Run[TX]) store(ctx context.Context, ord int64, name string, state, round int64, data []byte) error {
	c := r.call
	var rows int64
	err := c.store.persist(ctx, &write{key: c.key, insist: true, stmts: []pg.Stmt{{
		SQL:  c.store.sql.store,
		Args: []any{c.scope, c.digest, r.lease.nonce, ord, name, state, round, data},
		Rows: &rows,
	}}})
	switch {
	case c.store.isTaken(err):
		return r.taken(ord, name)
	case errors.Is(err, pg.ErrOutcomeUnknown): // it may have landed, so its place is not for another one
		r.setOpen(name)
	case err == nil && rows == 0:
		err = fmt.Errorf("%w: somebody else has taken the key over", ErrLeaseLost)
		r.lease.cancel(err)
	}
	return err
}
