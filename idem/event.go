package idem

import (
	"errors"
	"time"
)

// Event is what [Config.Observe] is told. Every call with a key that can be used ends with one of the
// kinds Executed, Replayed, Refused and Failed, but for a [Lookup] that finds nothing; the others come in
// between.
type Event struct {
	Kind    EventKind
	Key     Key
	Attempt int           // which run of the handler this call is at, from 1; 0 before the first
	Took    time.Duration // since the call began
	Err     error         // of Refused, Failed and Retried; what the caller gets, but for Retried
}

// EventKind says what happened.
type EventKind int

// The kinds of events.
const (
	Executed  EventKind = iota + 1 // the handler ran and is committed; by [DoTx] and SeenTx, if the caller commits
	Replayed                       // answered from a record
	Refused                        // the answer is a refusal, stored now or before
	Failed                         // the call returned Err
	Retried                        // a run was rolled back and another one follows
	Resolved                       // the answer to COMMIT was lost; it had been committed
	Blocked                        // a handler ended its transaction; its key, or its step, is blocked until a person has looked
	TakenOver                      // RunSteps or the completer goes on with a key that was left
	LeaseLost                      // RunSteps or the completer lost a key on the way; Failed follows
	Died                           // the completer has given a key up; a person has to look
)

func (k EventKind) String() string {
	names := [...]string{"unknown", "executed", "replayed", "refused", "failed", "retried", "resolved", "blocked", "taken over", "lease lost", "died"}
	if k < 0 || int(k) >= len(names) {
		return names[0]
	}
	return names[k]
}

// tell reports an event of the call.
func (c *call[TX]) tell(kind EventKind, err error) {
	if c.store.cfg.Observe == nil {
		return
	}
	c.store.cfg.Observe(Event{Kind: kind, Key: c.key, Attempt: c.runs, Took: time.Since(c.began), Err: unmarked(err)})
}

// ended reports the end of the call.
func (c *call[TX]) ended(rec record, err error) {
	c.told = true
	switch {
	case err == nil && rec.own:
		c.tell(Executed, nil)
	case err == nil:
		c.tell(Replayed, nil)
	case rec.state == stateRefused:
		c.tell(Refused, err)
	default:
		c.tell(Failed, err)
	}
}

var errPanicked = errors.New("handler panicked")

// panicking reports a call that a panic or runtime.Goexit goes through. Use: defer c.panicking()().
func (c *call[TX]) panicking() func() {
	return func() {
		if !c.told {
			c.tell(Failed, errPanicked)
		}
	}
}
