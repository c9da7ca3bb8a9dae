package idem

import (
	"fmt"
	"math"
	"time"
)

const (
	soonestRepeat = time.Second
	latestRepeat  = 10 * time.Second
)

// InFlightError says when to ask again for a key that somebody else is executing. It matches [ErrInFlight].
type InFlightError struct {
	Key Key

	// RetryAfter is whole seconds, at least one, as the header Retry-After wants them. It is advice: asking earlier is safe,
	// and finds the answer if there is one.
	//
	// For a key of [Do], [DoTx] or SeenTx it is one second: nobody can say more of a transaction that is open. For a key
	// of [RunSteps] it is as long again as the key has been under way, up to ten seconds, and ends with the owner's lease, by the
	// database's clock. So an answer that takes 200 ms is not waited for longer than a second, one that takes minutes is not asked for
	// each second, and the key of an owner that has died is asked for when it is free. The end of the lease alone would be
	// the latest time for that, and of no use while the owner lives: it is put off every third of [Config.Lease].
	RetryAfter time.Duration
}

func (e *InFlightError) Error() string {
	return fmt.Sprintf("%v: ask again in %v", ErrInFlight, e.RetryAfter)
}
func (*InFlightError) Unwrap() error { return ErrInFlight }

// inFlight is the refusal of a key of which no more is known.
func (c *call[TX]) inFlight() error { return c.inFlightFor(0, 0) }

// inFlightFor is the refusal of a key that has been under way for age, under a lease that ends after left, both in seconds.
func (c *call[TX]) inFlightFor(age, left float64) error {
	return &InFlightError{Key: c.key, RetryAfter: repeatAfter(age, left)}
}

// repeatAfter is when to ask again. Waiting for as long again as has passed asks for a long execution only a few times,
// and is late by as much as it took at most, and the rest of a second. Where age is that of a key which others have begun and left, the bound keeps it from being much more.
// What is rounded up does not come before the end of the lease.
func repeatAfter(age, left float64) time.Duration {
	seconds := math.Ceil(min(age, left, latestRepeat.Seconds()))
	return max(soonestRepeat, time.Duration(seconds)*time.Second)
}
