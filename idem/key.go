package idem

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// The longest that a part of a key may be, in bytes.
const (
	MaxOpName = 100
	MaxScope  = 255
	MaxID     = 255
)

// Forever is a duration of an [Op] without end. Use it for money.
const Forever time.Duration = math.MaxInt64

const (
	defaultReplayFor   = 24 * time.Hour
	defaultRememberFor = 30 * 24 * time.Hour
	defaultMaxHandler  = 30 * time.Second
	longestMaxHandler  = 24 * time.Hour
	defaultAttempts    = 20
	defaultRetryAfter  = time.Second
	longestRetryAfter  = time.Hour
)

// Isolation is the level of the transaction that [Do] opens, in SQL's words.
type Isolation = pg.Isolation

// The isolation levels.
const (
	ReadCommitted  = pg.ReadCommitted
	RepeatableRead = pg.RepeatableRead
	Serializable   = pg.Serializable
)

// Op is an operation with its policy. Declare it once, as a package variable.
type Op struct {
	// Name is part of every key, so the same id under two operations is two keys. It is
	// stored: renaming an operation forgets its keys. Up to 100 bytes.
	Name string

	// ReplayFor is how long a finished key answers with its stored result. After
	// that it answers [ErrExpired]. Defaults to 24 hours.
	ReplayFor time.Duration

	// RememberFor is how long a finished key is known at least, and so how long a
	// late repeat is kept from executing again. It must not be shorter than
	// ReplayFor. Defaults to 30 days, or ReplayFor or RetryWindow if that is longer.
	RememberFor time.Duration

	// RetryWindow is how long after its first attempt a request may still come again: what the client's retries, the queue's
	// redeliveries and a weekend's dead letters add up to. A RememberFor that is shorter is refused, with
	// [ErrInvalidKey], since a repeat after it would execute again. Defaults to 0: nothing is declared, nothing is checked.
	RetryWindow time.Duration

	// HideID keeps the ids of this operation's keys out of the table, as [Config.HideIDs] does for all.
	HideID bool

	// Wait is how long [Do] waits for another caller that executes the key. After that it
	// returns [ErrInFlight]. Defaults to 0: at once; 24 hours are the most on the server. The end of ctx ends
	// the wait in any case, with the ctx's error or ErrInFlight.
	Wait time.Duration

	// Isolation is the level of Do's transaction. Defaults to [ReadCommitted], whatever the
	// role's default is. Above it, a handler that lost a race with another transaction is run again.
	Isolation Isolation

	// MaxHandler is how long the handler may take. Its ctx ends then, and so does its
	// transaction, on the server too a second later: a host that vanished frees its keys by
	// then. [Do] returns [ErrHandlerTimeout]. Defaults to 30 seconds, at most 24 hours; a
	// transaction that stays open for long keeps Postgres from cleaning up.
	MaxHandler time.Duration

	// Attempts is how often the completer tries to finish a key of [RunSteps] that was left. After that
	// the key is dead ([ErrDead]) until somebody decides about it with [Store.Resolve]. What callers try by themselves does not
	// count. Defaults to 20.
	Attempts int

	// RetryAfter is how long the completer leaves such a key alone at first. It is doubled with each of its attempts, up to an
	// hour. Callers who repeat the request do not wait for it, and do not put it off. Defaults to 1 second.
	RetryAfter time.Duration
}

// Key names one request of one tenant: scope, operation and id together. It is a value;
// make it with [Op.Key]. A key that cannot be used is reported by the verb that
// gets it.
type Key struct {
	op           Op
	scope, id    string
	likelyReplay bool
}

// Key is the key of a request. The scope is whoever may choose ids without asking the
// others (a tenant, a merchant, a queue); two scopes never see each other's keys. The id
// is what the requester repeats when it tries again: the Idempotency-Key header, the
// message id, the refund number.
//
// Both are required, 1 to 255 bytes of valid UTF-8 without control characters.
func (o Op) Key(scope, id string) Key { return Key{op: o, scope: scope, id: id} }

// Validate says whether keys of this operation can be used, for those who want to know it at
// start: [ErrInvalidKey].
func (o Op) Validate() error {
	if err := o.Key("scope", "id").check(); err != nil {
		return fmt.Errorf("idem: validate operation %s: %w", pg.Printable(o.Name), err)
	}
	return nil
}

// Op is the key's operation.
func (k Key) Op() Op { return k.op }

// Scope is the key's scope.
func (k Key) Scope() string { return k.scope }

// ID is the key's id.
func (k Key) ID() string { return k.id }

// LikelyReplay is the same key with a hint: this is probably a repeat (a redelivered message, an
// attempt after the first). [Do] then looks for the answer before it opens a transaction,
// which saves the transaction if there is one and costs a round trip if not. The hint is no part of the key's
// identity, but of the value: compare keys by [Key.Compare], not by ==.
func (k Key) LikelyReplay() Key {
	k.likelyReplay = true
	return k
}

// Compare orders keys, for use with slices.SortFunc: transactions that take several keys in this
// order cannot refuse each other.
func (k Key) Compare(other Key) int {
	return cmp.Or(cmp.Compare(k.scope, other.scope), bytes.Compare(k.digest(), other.digest()))
}

// identity is what tells keys apart within a process.
type identity struct{ schema, scope, op, id string }

func (k Key) identity(schema string) identity {
	return identity{schema, k.scope, k.op.Name, k.id}
}

// String is for logs and errors. It shows the scope and the operation but only a
// digest of the id, which is often somebody's secret.
func (k Key) String() string {
	return fmt.Sprintf("%s/%s#%s", pg.Printable(k.scope), pg.Printable(k.op.Name), hex.EncodeToString(k.digest()[:4]))
}

// resolved is the operation with its defaults filled in.
func (o Op) resolved() Op {
	if o.ReplayFor == 0 {
		o.ReplayFor = defaultReplayFor
	}
	if o.RememberFor == 0 {
		o.RememberFor = max(defaultRememberFor, o.ReplayFor, o.RetryWindow)
	}
	if o.MaxHandler == 0 {
		o.MaxHandler = defaultMaxHandler
	}
	if o.Isolation == "" {
		o.Isolation = ReadCommitted
	}
	if o.Attempts == 0 {
		o.Attempts = defaultAttempts
	}
	if o.RetryAfter == 0 {
		o.RetryAfter = defaultRetryAfter
	}
	return o
}

// check refuses what cannot be a key, with a *KeyError.
func (k Key) check() error {
	parts := []struct {
		name, value string
		most        int
	}{{"operation", k.op.Name, MaxOpName}, {"scope", k.scope, MaxScope}, {"id", k.id, MaxID}}
	for _, p := range parts {
		if reason := pg.Fault(p.value, p.most); reason != "" {
			return &KeyError{Part: p.name, Reason: reason}
		}
	}
	switch op := k.op.resolved(); {
	case op.Attempts < 0 || op.RetryAfter < 0:
		return &KeyError{Part: "policy", Reason: "has a negative number of Attempts, or a negative RetryAfter"}
	case op.ReplayFor < 0 || op.RememberFor < 0 || op.MaxHandler < 0 || op.Wait < 0 || op.RetryWindow < 0:
		return &KeyError{Part: "policy", Reason: "has a negative duration; use idem.Forever for no end"}
	case op.MaxHandler > longestMaxHandler:
		return &KeyError{Part: "policy", Reason: "has a MaxHandler of more than 24 hours; a transaction is no place for that"}
	case op.Isolation != ReadCommitted && op.Isolation != RepeatableRead && op.Isolation != Serializable:
		return &KeyError{Part: "policy", Reason: "has an Isolation that is none of idem.ReadCommitted, RepeatableRead and Serializable"}
	case op.RememberFor < op.ReplayFor:
		return &KeyError{Part: "policy", Reason: "forgets the key (RememberFor) before its result (ReplayFor)"}
	case op.RememberFor < op.RetryWindow:
		return &KeyError{Part: "policy", Reason: "forgets the key (RememberFor) while it may still come again (RetryWindow): that repeat would be a second execution"}
	}
	return nil
}

// downstream is what a step is called to the outside, in one of its rounds: 32 hexadecimal digits. Frozen: an attempt of
// another release must send the same.
func (k Key) downstream(schema, step string, round int64) string {
	sum := pg.HashParts("pgonce.step", schema, k.scope, k.op.Name, k.id, step, strconv.FormatInt(round, 10))
	return hex.EncodeToString(sum[:16])
}

// digest is what the record is stored under, beside the scope. The parts are
// length-prefixed, so no two pairs run together to the same bytes. Frozen.
func (k Key) digest() []byte {
	sum := pg.HashParts(k.op.Name, k.id)
	return sum[:16]
}

// lock is the number of the key's advisory lock. A collision of two keys costs a
// needless wait and nothing else, since the primary key decides. Frozen: processes of
// two releases must agree on it.
func (k Key) lock(schema string) int64 {
	return pg.LockNumber("pgonce.idem", schema, k.scope, k.op.Name, k.id)
}
