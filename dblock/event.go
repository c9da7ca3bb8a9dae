package dblock

import "time"

// Event is what [Config.Observe] is told.
type Event struct {
	Kind  EventKind
	Key   Key
	Token Token         // of the grant it is about; 0 where there is none
	Took  time.Duration // Acquired, Refused: the wait; the others: since the grant
	Err   error         // of Refused and Lost
}

// EventKind says what happened.
type EventKind int

// The kinds of events.
const (
	Acquired EventKind = iota + 1
	Refused            // a caller in line got Err and no lock
	Released
	Lost    // Err is a *LostError
	Overrun // held for longer than LockConfig.Expect; it is kept
	Leaked  // the program has dropped the Lock without Release; it is kept
)

func (k EventKind) String() string {
	names := [...]string{"unknown", "acquired", "refused", "released", "lost", "overrun", "leaked"}
	if k < 0 || int(k) >= len(names) {
		return names[0]
	}
	return names[k]
}
