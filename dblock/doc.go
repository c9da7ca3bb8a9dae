// Package dblock gives out locks that know when they are lost, over nothing but Postgres.
//
//	locks, err := dblock.New(ctx, pgxdriver.New(pool), nil)
//	lock, err := locks.Acquire(ctx, dblock.Key{Space: "order", ID: id}, nil)
//	defer lock.Release(ctx)
//	err = work(lock.Context())
//
// They are session advisory locks: the server excludes, and frees a lock when its session ends. A client keeps
// thousands of them on a few connections of its own, and asks for many in one request.
//
// Behind a pooler in transaction mode, and where a lock has to outlive its connection, [NewLeases] makes a client whose locks
// are rows that expire. The kind is a property of the client: the two do not exclude each other.
//
// In a transaction that you have already, [Client.LockTx] and [Client.TryLockTx] take a key's lock until it ends, and
// [LockRowsTx] locks rows of a table of yours.
//
// # The guarantee
//
// One holder at a time, by the server's word; and a holder that may have lost its lock knows it: its
// [Lock.Context] ends. A silent network and a frozen process are told by the clock, before the server gives the lock to others. A
// loss is for good: no reconnect brings the lock back.
//
// # What it is not
//
// A lock without a fence cannot promise that a holder stops in time: the server may end a session, and give the lock to
// others, before the holder hears of it. For effects in the same database, [Lock.FenceTx] closes that gap: no write of a past
// holder lands. For effects elsewhere, send the [Token] along and have it checked there.
//
// It keeps two from working at the same time, and not the second from working afterwards. For "once", use
// package idem.
//
// # Failure modes
//
//   - The process dies: its locks are free at once; leases after [Config.TTL]. If its host or network vanishes, after the TTL.
//   - The process is frozen: the same, and when it wakes up the context of the lock has ended.
//   - The server restarts, or ends a session: all locks on it are lost, and their contexts end. Leases go on, if it is back in time.
//   - The server has no room for locks: [ErrCapacity], by a budget, before it comes to that.
//   - A pooler in transaction mode, a standby, a server whose locks exclude nobody: [New] refuses.
package dblock
