package statemachine

import (
	"encoding/json"
	"fmt"
	"time"
)

// MaxMeta is how long the JSON of [Meta] may be, in bytes.
const MaxMeta = 64 << 10

// Option is a detail of one [Binding.Fire] or [Binding.FireTx].
type Option func(*call)

// call is what the options of one Fire say.
type call struct {
	dedup, actor, meta *string
	lock               bool
	timeout            time.Duration // of the wait for the row; 0 is none of the caller's
	version            *int64
	where, match       []condition
	sets               []assignment
	findings           []error
}

// condition is a boolean expression over the columns of the row.
type condition struct {
	text string
	args []any
}

// assignment gives a column a value. Without a text it is the argument itself.
type assignment struct {
	column string
	condition
}

// apply notes what the options say.
func (c *call) apply(opts []Option) {
	for _, opt := range opts {
		if opt != nil {
			opt(c)
		}
	}
}

func (c *call) find(part, reason string) {
	c.findings = append(c.findings, &InvalidError{Part: part, Reason: reason})
}

// Dedup names this delivery of the event: the message id, the webhook's event id, a request key. The
// same id for the same row and machine is applied once, for as long as the history is kept, whatever the row's
// state is by then; a repeat gets the first answer. Every answer without an error is
// recorded, so the id of an event that found nothing to do stays without effect too.
//
// It protects from repeats. It does not protect from a first delivery that comes late, in
// another round of a cycle: that is what [Match] and [ExpectVersion] are for.
//
// 1 to 255 bytes of valid UTF-8 without control characters.
func Dedup(id string) Option {
	return func(c *call) {
		if reason := fault(id, MaxDedup); reason != "" {
			c.find("dedup id", reason)
		}
		c.dedup = &id
	}
}

// Set gives a column a value in the statement that moves the row. Nothing is set when the move
// is not made: on a repeat the column keeps what the first delivery has put there. If a repeat
// with another value is a mistake, say so with [Match].
func Set(column string, value any) Option {
	return func(c *call) {
		c.sets = append(c.sets, assignment{column, condition{args: []any{value}}})
	}
}

// SetExpr is [Set] with an SQL expression over the row as it was before the move, $1 being the
// first of args:
//
//	statemachine.SetExpr("refunded", "refunded + $1", amount)
//
// The expression is part of the program, never of its input. The rules of [Where] apply.
func SetExpr(column, expr string, args ...any) Option {
	return func(c *call) {
		c.sets = append(c.sets, assignment{column, condition{expr, args}})
		if expr == "" {
			c.find("SetExpr", "has an empty expression")
		}
	}
}

// Where is a guard: an SQL condition over the columns of the row that has to hold for the move,
// $1 being the first of args. It is tested on the row as it is once it is locked, together with
// its state. NULL counts as false. It is not asked on a repeat, when it may be false because of
// the first delivery; for that there is [Match]. Error: [ErrGuard].
//
//	statemachine.Where("refunded + $1 <= paid", amount)
//
// The expression is part of the program, never of its input. Each distinct text is kept, so
// values belong into args. It sees the columns of the row only; sub-queries, comments,
// semicolons, dollar quotes and names that begin with pgonce_ are refused.
func Where(expr string, args ...any) Option {
	return func(c *call) { c.where = append(c.where, condition{expr, args}) }
}

// Match says what must hold for this to be the event that it claims to be. Unlike [Where] it is tested
// on a repeat too, so it should be about columns that the event does not change. A second
// callback with another amount is refused, although the order is paid. Error: [ErrConflict].
//
//	statemachine.Match("amount = $1", evt.Amount)
//
// The rules of [Where] apply. The repeat of a [Dedup] id is the same delivery by definition and is
// not tested again.
func Match(expr string, args ...any) Option {
	return func(c *call) { c.match = append(c.match, condition{expr, args}) }
}

// ExpectVersion refuses the move with [ErrConflict] when the row is not at this version any
// more. It needs [Table.Version]. Like [Where] it is not asked on a repeat.
func ExpectVersion(version int64) Option { return func(c *call) { c.version = &version } }

// Lock locks the row even if it turns out that the event was applied before, so that in the caller's
// transaction the row stays in its state until that ends. Without it a repeat takes
// no lock at READ COMMITTED, and its answer is about the moment when the statement began. Cost of a repeat with it:
// a row lock, an xid, a flush.
func Lock() Option { return func(c *call) { c.lock = true } }

// LockTimeout is how long to wait for a row that somebody else has locked, whole milliseconds and 1 at
// least. After that it is [ErrBusy]. A shorter lock_timeout of the role stands, and so does the limit that
// [Binding.Fire] has anyway. For an answer at once, as NOWAIT would give it, take a millisecond. In a caller's transaction the setting is put back at the end of the statement.
func LockTimeout(d time.Duration) Option {
	return func(c *call) {
		if d < time.Millisecond || d > maxWait {
			c.find("LockTimeout", fmt.Sprintf("is %v: it has to be between a millisecond and %v", d, maxWait))
		}
		c.timeout = d
	}
}

// maxWait is what lock_timeout can be, or a bit less.
const maxWait = 24 * 24 * time.Hour

// Actor is written to the history: who did this. 1 to 255 bytes.
func Actor(name string) Option {
	return func(c *call) {
		if reason := fault(name, MaxActor); reason != "" {
			c.find("actor", reason)
		}
		c.actor = &name
	}
}

// Meta is written to the history as JSON, at most 64 KiB. It is kept for as long as the history is, as it stands: leave out what must not be.
func Meta(v any) Option {
	return func(c *call) {
		data, err := json.Marshal(v)
		switch {
		case err != nil:
			c.find("meta", "cannot be encoded: "+err.Error())
		case len(data) > MaxMeta:
			c.find("meta", fmt.Sprintf("has %d bytes, the limit is %d", len(data), MaxMeta))
		default:
			if reason := faultOfJSON(data); reason != "" {
				c.find("meta", reason)
			}
		}
		text := string(data)
		c.meta = &text
	}
}
