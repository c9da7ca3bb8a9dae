package dblock

import (
	"context"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// kind is where locks come from: session advisory locks ([advisory]), or rows ([leases]). What callers of one process
// do to each other is not its business: that is the table of entries, which asks it for one key at a time.
//
// What has no ctx runs under the mutex, sends nothing itself, and answers later, under the mutex too.
type kind interface {
	// verify finds out whether locks of this kind hold here, and how many there may be by default.
	verify(ctx context.Context) (budget int, err error)
	start(ctx context.Context) error

	// shares says that there are shared locks.
	shares() bool

	// try asks once for the key of an entry that has nothing, on behalf of the first in its line.
	try(en *entry, r *request)

	// queue waits for the key, until it is granted or nobody in the line wants it any more.
	queue(en *entry)

	// unqueue is told that nobody does.
	unqueue(en *entry)

	// peek asks whether more shared tenures may join a hold.
	peek(en *entry)

	// giveBack gives back a hold that has left its entry.
	giveBack(en *entry, h *hold)

	// lockTx takes the key's lock in the caller's transaction.
	lockTx(ctx context.Context, l txLock) error

	// inspect tells who holds what, and who waits. The mutex is not held.
	inspect(ctx context.Context, keys []Key) (Snapshot, error)

	// shutdown ends all tenures by the loss [LostClosed], and gives everything back.
	shutdown()
}

// ground is what a hold stands on: a session, with others, or a lease of its own.
type ground interface {
	// alive reports whether nobody else can have been given what stands on it. It asks the clock: after a
	// freeze of this process a timer is late.
	alive() bool

	// left is for how long that is so without another answer of the server.
	left() time.Duration

	carry(h *hold)

	// lose ends every hold on it, for good.
	lose(kind LossKind, err error)

	// fence keeps successors out until tx ends, or finds out that there may be one already. The mutex is not held.
	fence(ctx context.Context, tx pg.Querier, t *tenure) (held bool, err error)
}
