package dblock

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// Snapshot is what [Client.Inspect] has seen: named keys first, by space and id, then the others by number. Its
// String is a table for people.
type Snapshot []KeyStatus

// KeyStatus is one key: who holds it, and who waits for it. Free keys have neither.
type KeyStatus struct {
	Kind     LockKind
	Key      Key   // the zero Key if only its number is known
	Number   int64 // of its advisory lock
	Holdings []Holding
	Waits    []Waiting // longest first
}

// LockKind is a kind of lock: the client's. There may be more of them in later releases.
type LockKind int

// The kinds of locks.
const (
	AdvisoryLock LockKind = iota + 1 // of a client of [New]
	LeaseLock                        // of a client of [NewLeases]
)

// HeldBy says what holds a lock.
type HeldBy int

// What can hold a lock.
const (
	// BySession is a lock of [Client.Acquire], by a client of this schema.
	BySession HeldBy = iota + 1

	// ByFence is a transaction that a holder has fenced ([Lock.FenceTx]). It holds successors up, though its holder may
	// have released or lost the lock.
	ByFence

	// ByOther is [Client.LockTx], or anybody else who has taken the key's number: the server does not say which.
	ByOther

	// ByLease is a lease, of a client of [NewLeases].
	ByLease
)

func (b HeldBy) String() string {
	names := [...]string{"unknown", "session", "fenced transaction", "transaction or foreign session", "lease"}
	if b < 0 || int(b) >= len(names) {
		return names[0]
	}
	return names[b]
}

// Holding is one grant of a key. Zero values are unknown.
type Holding struct {
	By     HeldBy
	Own    bool   // by the client that was asked
	Name   string // Config.Holder, of other processes the first 38 bytes or more; for ByFence and ByOther the application_name
	PID    int    // of the server process; 0 for a transaction that is prepared for a two-phase commit
	Shared bool

	// Token is that of the grant. It is known of own ones only. An own one without it is just being taken or given back.
	Token Token

	// Held is since when. It is known of own grants. For ByFence and ByOther it is the age of the transaction, which has the
	// lock for at most so long.
	Held time.Duration

	// Left is for how long the lock is kept if nothing more is heard of the holder. It is an own one's
	// [Lock.Remaining]; of others it is by when the server ends their session, at least a millisecond. A transaction has no such time.
	Left time.Duration

	// Gone means that the server does not have the lock any more, and that its own holder has not heard of it yet.
	Gone bool
}

// Waiting is a session, or this client, that waits for a key. Zero values are unknown.
type Waiting struct {
	Own    bool
	Name   string // as in Holding
	PID    int    // of the server process that waits; 0 for callers of this client who wait in memory
	Shared bool   // what is asked for; by the first of several callers

	// Callers are how many wait in this client. For others it is unknown: one of them waits on the server.
	Callers int

	// Waited is since when: for this client, the longest wait of a caller; for others, what they wait in the
	// server's queue, which they enter anew every ten seconds at most.
	Waited time.Duration

	// For are the server processes that it waits for: holders, and those before it in the queue.
	For []int
}

// Inspect tells who holds locks of this schema, who waits for whom, since when, and how long what is held would be kept.
// It is for incidents and for people: what it says may be over when it returns. Nothing of it is guessed;
// what is not known has its zero value.
//
// It sees the locks of every client of this database and schema, transactions that hold such a key by LockTx, and
// fenced ones. Advisory locks of other programs are not shown. Keys are named that this process uses or that the caller
// names; of others the server has no more than the number. A key that the caller names is there also when it is free.
//
// Any role may call it. Of sessions of other roles the server hides how long they have been idle, and of transactions their
// age, from who is not a member of pg_read_all_stats: Left and Held are 0 then. Names and process numbers are not
// hidden. They are what a session says of itself, which is no proof.
//
// A client of [NewLeases] shows its kind instead: leases, with their keys in clear, and transactions that hold such a key by LockTx. Who
// waits in other processes is not known; they ask now and then.
//
// Errors: [ErrInvalidKey], [ErrUnavailable], or the server's own.
//
// Cost, for leases: two round trips on the pool, and a scan of the rows that are held. For session locks: a connection of its own for a moment, since in an incident the pool is what is used up (on
// database/sql it comes out of the pool), and one round trip on it, three at most. The server stops all locking for
// microseconds for each thousand locks that it has, and for each session that waits. No lock is taken and nothing is written.
func (c *Client[TX]) Inspect(ctx context.Context, keys ...Key) (Snapshot, error) {
	for _, k := range keys {
		if err := k.Validate(); err != nil {
			return nil, fmt.Errorf("dblock: inspect: %w", err)
		}
	}
	s, err := c.engine.kind.inspect(ctx, keys)
	if err != nil {
		return nil, fmt.Errorf("dblock: inspect: %w", err)
	}
	return s, nil
}

// String is a table with a line for each grant and each wait. Ids of keys are not in it: see [Key.String].
func (s Snapshot) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "KEY\tWHO\tPID\tWHAT\tSINCE\tLEFT\t")
	for _, k := range s {
		name := k.name()
		if len(k.Holdings)+len(k.Waits) == 0 {
			_, _ = fmt.Fprintf(w, "%s\t-\t-\tfree\t-\t-\t\n", name)
		}
		for _, h := range k.Holdings {
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t\n", name, known(pg.Printable(h.Name)), pidText(h.PID), h.what(), duration(h.Held), duration(h.Left))
		}
		for _, q := range k.Waits {
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t-\t\n", name, known(pg.Printable(q.Name)), pidText(q.PID), q.what(), duration(q.Waited))
		}
	}
	_ = w.Flush()
	lines := strings.Split(b.String(), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimRight(line, " ")
	}
	return strings.Join(lines, "\n")
}

func (k KeyStatus) name() string {
	if k.Key == (Key{}) {
		return strconv.FormatInt(k.Number, 10)
	}
	return k.Key.String()
}

func (h Holding) what() string {
	s := "holds"
	if h.Shared {
		s += " shared"
	}
	if h.Token != 0 {
		s += fmt.Sprintf(", token %d", h.Token)
	}
	if h.By != BySession && h.By != ByLease {
		s += ", by " + h.By.String()
	}
	if h.Gone {
		s += ", gone on the server"
	}
	return s
}

func (w Waiting) what() string {
	s := "waits"
	if w.Shared {
		s += " to share"
	}
	if w.Callers > 1 {
		s += fmt.Sprintf(", %d callers", w.Callers)
	}
	for i, pid := range w.For {
		s += [...]string{", ", " for "}[btoi(i == 0)] + pidText(pid)
	}
	return s
}

func known(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func pidText(n int) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

func duration(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return d.Round(time.Millisecond).String()
}
