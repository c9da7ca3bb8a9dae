package idem

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/pgonce/pgonce/internal/pg"
)

// RunSteps executes a key whose effect is not in this database alone: it calls a bank, a mailer, another service. Such
// an effect cannot be committed together with a record, so fn is cut into steps ([Step], [StepTx]). The result of each step
// is stored when it is done. Another attempt, by whoever repeats the request or by the completer ([Store.RunCompleter]), goes on
// after the last step that is done. A repeat of a finished key gets the first result, as with [Do].
//
// What is promised: one record and one result for a key; one attempt at a time, as far as leases can tell; what
// [StepTx] writes is committed once, with its step; and a step that is [AtMostOnce] is not called again by guess. What is not: that a
// plain step calls once. A process that dies, or loses its lease, between the call and its record leaves a call that is made again. So
// [Step] hands out a downstream key that is the same every time: pass it on, and the other side can tell.
//
// fn has to be deterministic as far as its steps go: the same steps in the same order, for the same key. Whatever it
// decides by must come from in, or from the result of a step. Code between steps runs in every attempt and should
// do nothing but decide. in is stored while the key is under way, so that the completer can go on; it is encoded by the [Codec].
//
// While fn is at work, a heartbeat keeps the key, however long the bank takes. A process that is frozen, or cut off from the database, for longer
// than [Config.Lease] loses it: ctx ends with [ErrLeaseLost] as its cause, and nothing that the loser does to the database lands if somebody has
// taken over. It cannot be kept from ending a call that it has begun.
//
// An error of fn is returned as it is. What is done stays done, and the key is left to a repeat or to the completer; if
// no step was called, the key is free as if nothing had been asked. [Final] ends the key with a refusal, as with Do; what the steps did
// is not undone. A panic goes on, after the key was left.
//
// An operation is executed by RunSteps or by [Do], not by both: Do does not look for leases.
//
// Who meets a key that another caller is executing waits for up to [Op.Wait], and then gets an [*InFlightError], which says when to ask again.
//
// Errors: those of [Do] but for [ErrTxEnded], [ErrTxUnusable] and [ErrHandlerTimeout], which steps return to fn; [ErrLeaseLost],
// [ErrStepsChanged], [ErrDead]; and [ErrUnknownOutcome] when a step that is AtMostOnce has begun and nobody can say how it ended.
//
// Cost on pgx: a new key 2 round trips before fn and 1 after it, a step 1 (AtMostOnce 2, StepTx 2 around its function); on database/sql 5, 1, 1
// (2, 6). Each is a commit, shared by up to 128 keys that write at the same time (on pgx). A repeat as with Do. The tables of leases and steps are
// empty again when the key is finished. One connection of the pool has to be free for heartbeats every third of [Config.Lease].
func RunSteps[I, T, TX any](ctx context.Context, s *Store[TX], key Key, fp Fingerprint, in I,
	fn func(ctx context.Context, run *Run[TX], in I) (T, error),
) (Result[T], error) {
	c, err := newCall(s, key, fp)
	if err == nil && fn == nil {
		err = errors.New("nil function")
	}
	if err == nil {
		c.request, in, err = roundTrip(s.cfg.Codec, in)
	}
	if err != nil {
		return Result[T]{}, publish("run steps", key, err)
	}
	defer c.panicking()()
	var value T
	rec, err := c.steps(ctx, encodingSteps(s.cfg.Codec, in, fn, &value))
	return outcome("run steps", c, rec, err, value)
}

// stepsHandler is the caller's function with its result encoded, as handler is.
type stepsHandler[TX any] func(ctx context.Context, run *Run[TX]) ([]byte, error)

func encodingSteps[I, T, TX any](codec Codec, in I, fn func(context.Context, *Run[TX], I) (T, error), value *T) stepsHandler[TX] {
	return func(ctx context.Context, run *Run[TX]) ([]byte, error) {
		return encoding(codec, func(ctx context.Context, run *Run[TX]) (T, error) { return fn(ctx, run, in) }, value)(ctx, run)
	}
}

// Run is the execution of one key by [RunSteps]. It is for [Step] and [StepTx], one at a time, and dies with the call.
type Run[TX any] struct {
	call  *call[TX]
	lease *lease[TX]

	mu     sync.Mutex
	busy   bool // a step is under way
	over   bool
	ord    int64 // of the next step
	names  map[string]bool
	called int    // steps whose function was called
	open   string // the step of which nobody knows what it has done or stored: none may begin, and the key is not finished
}

// Key is the key that is being executed.
func (r *Run[TX]) Key() Key { return r.call.key }

// steps is the call of RunSteps.
func (c *call[TX]) steps(ctx context.Context, run stepsHandler[TX]) (rec record, err error) {
	if err = c.refuseNested(ctx); err != nil {
		return record{}, err
	}
	if c.server, err = c.store.ready(ctx); err != nil {
		return record{}, err
	}
	v := c.store.queue.join(ctx, c.key.identity(c.store.cfg.Schema), c.op.Wait)
	switch {
	case v.lead != nil:
	case errors.Is(v.err, ErrInFlight): // as a call in another process would be told
		return record{}, c.inFlightFor(v.age.Seconds(), latestRepeat.Seconds())
	default:
		return v.rec.forOthers(), v.err
	}
	defer v.lead.pass()
	l, rec, err := c.acquire(ctx, v.lead, false)
	if l != nil {
		v.lead.busy()
		rec, err = l.run(ctx, run)
	}
	c.share(ctx, v.lead, rec, err)
	return rec, err
}

// run calls the function and settles the key with what it has made of it.
func (l *lease[TX]) run(ctx context.Context, fn stepsHandler[TX]) (rec record, err error) {
	defer l.close()
	c := l.call
	r := &Run[TX]{call: c, lease: l, names: map[string]bool{}}
	returned := false
	defer func() {
		r.end()
		if !returned { // a panic or runtime.Goexit, which goes on after this
			l.leave(ctx, errPanicked, r.called)
		}
	}()
	frame := c.inside(l.ctx)
	frame.outside = true
	defer frame.over.Store(true)
	c.runs++
	result, err := fn(frame, r)
	returned = true
	frame.over.Store(true)
	r.end()
	if err = r.verdict(err); err == nil || isFinal(err) {
		state := stateDone
		if err != nil {
			state, result = stateRefused, packRefusal(err.Error(), result)
		}
		rec, err = l.finish(ctx, state, result)
	} else {
		l.leave(ctx, err, r.called)
	}
	if errors.Is(err, ErrLeaseLost) {
		c.tell(LeaseLost, err)
	}
	return rec, err
}

// end keeps whatever outlives the function from taking another step.
func (r *Run[TX]) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
}

// verdict is the function's error, and what stands against its success.
func (r *Run[TX]) verdict(err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.busy:
		return fmt.Errorf("function returned while a step was under way: %w", cmp.Or(unmarked(err), ErrUnknownOutcome))
	case r.open != "" && !errors.Is(unmarked(err), ErrUnknownOutcome):
		return errors.Join(fmt.Errorf("%w: step %q", ErrUnknownOutcome, r.open), unmarked(err))
	case context.Cause(r.lease.ctx) != nil && errors.Is(context.Cause(r.lease.ctx), ErrLeaseLost) && !errors.Is(unmarked(err), ErrLeaseLost):
		return errors.Join(context.Cause(r.lease.ctx), unmarked(err))
	case err == nil && r.ord < int64(len(r.lease.stored)):
		return &StepsChangedError{Key: r.call.key, Step: int(r.ord), Stored: r.lease.stored[r.ord].name}
	}
	return err
}

// begin lets one step at a time in, and finds what is stored of it. end must be called.
func (r *Run[TX]) begin(name string) (ord int64, stored storedStep, err error) {
	if fault := pg.Fault(name, MaxOpName); fault != "" {
		return 0, stored, &KeyError{Part: "step", Reason: fault}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.over:
		return 0, stored, errors.New("the call that the run belongs to has ended")
	case r.busy:
		return 0, stored, errors.New("another step is under way: take one at a time")
	case r.names[name]:
		return 0, stored, errors.New("a step of this name has been taken: names are what downstream keys are made of")
	case r.open != "":
		return 0, stored, fmt.Errorf("%w: step %q", ErrUnknownOutcome, r.open)
	}
	if err := r.lost(); err != nil {
		return 0, stored, err
	}
	if r.ord < int64(len(r.lease.stored)) {
		if stored = r.lease.stored[r.ord]; stored.name != name || stored.ord != r.ord {
			return 0, stored, &StepsChangedError{Key: r.call.key, Step: int(r.ord), Stored: stored.name, Found: name}
		}
	}
	r.busy = true
	return r.ord, stored, nil
}

// done ends a step. One that is done is counted; another one may be tried again.
func (r *Run[TX]) done(name string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy = false
	if err == nil {
		r.ord++
		r.names[name] = true
	}
}

// setOpen notes the step that nobody knows the outcome of, or with "" that it is known now.
func (r *Run[TX]) setOpen(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open = name
}

// taken is the error of a step in whose place something is stored that this run does not know of.
func (r *Run[TX]) taken(ord int64, name string) error {
	r.setOpen(name)
	return fmt.Errorf("%w: step %d is stored already, by a step whose error was ignored: return the errors of steps, and repeat the key", ErrUnknownOutcome, ord)
}

// lost says whether the lease is, by the clock: a timer may be late.
func (r *Run[TX]) lost() error {
	if r.lease.worker.alive() {
		return nil
	}
	if cause := context.Cause(r.lease.ctx); errors.Is(cause, ErrLeaseLost) {
		return cause
	}
	return ErrLeaseLost
}

// bound is ctx until the lease is lost.
func (r *Run[TX]) bound(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(r.lease.ctx, func() { cancel(context.Cause(r.lease.ctx)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// publishStep says which step of which key an error is about.
func (r *Run[TX]) publishStep(name string, err error) error {
	if h, ok := errors.AsType[*handlerError](err); ok {
		return h.err
	}
	switch {
	case errors.Is(err, ErrTxEnded), errors.Is(err, ErrHandlerTimeout): // whatever else is in it
	case errors.Is(err, pg.ErrOutcomeUnknown):
		err = fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	case errors.Is(err, pg.ErrTxLost):
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return fmt.Errorf("idem: step %q of %s: %w", pg.Printable(name), r.call.key, err)
}
