// Package pg is the seam between the packages and the client libraries.
//
// It is statement-shaped: a package hands over SQL text, arguments and scan
// targets; a driver knows only how to carry them. SQL exists once, and what a
// driver must do is small enough to be held to one conformance suite.
//
// The interfaces live in an internal package on purpose. Code outside the
// module can pass a Driver along but cannot name [Querier], so it cannot
// implement one, and the seam may grow without breaking anybody.
package pg

import (
	"context"
	"iter"
	"syscall"
	"time"
)

// netTimeout bounds every trip of a transaction that we own and that no ctx of
// the caller may interrupt: BEGIN with its first statements, the last statements
// with COMMIT, ROLLBACK. It is the guard against a network that swallows
// packets, not a statement time-out: none of these statements waits for a lock
// that a healthy holder keeps.
const netTimeout = 15 * time.Second

type netTimeoutKey struct{}

// WithNetTimeout changes the network deadline for trips under ctx: for statements that take long, and for tests of networks
// that swallow packets.
func WithNetTimeout(ctx context.Context, d time.Duration) context.Context {
	return context.WithValue(ctx, netTimeoutKey{}, d)
}

// NetTimeout is the network deadline of one trip: 15 seconds.
func NetTimeout(ctx context.Context) time.Duration {
	if d, ok := ctx.Value(netTimeoutKey{}).(time.Duration); ok {
		return d
	}
	return netTimeout
}

// Stmt is one statement with its arguments and the places its result goes to.
type Stmt struct {
	SQL  string
	Args []any

	// Dest is scanned from the first row. Without a row the statement fails with
	// [ErrNoRow], unless Rows is set too.
	Dest []any

	// Rows receives the number of rows affected; with Dest, the number of rows
	// scanned (0 or 1).
	Rows *int64
}

// Scan copies the columns of the current row.
type Scan func(dest ...any) error

// Querier runs single statements. What it does outside a transaction may land on
// any connection, and has the network deadline to finish once it has one. A Run that has not finished by then fails with
// [os.ErrDeadlineExceeded], not with the end of a ctx that has not ended; nobody knows what became of it, so it is not [ErrUnavailable].
// A Query outside a transaction has the deadline anew for each wait for the server, and fails in the same way. What the loop's
// body takes does not count. The end of ctx ends it with its error and its cause. When the loop sees the error, the connection is back.
type Querier interface {
	Run(ctx context.Context, s Stmt) error
	Query(ctx context.Context, sql string, args ...any) iter.Seq2[Scan, error]
}

// TxQuerier runs statements inside one transaction.
//
// RunAll exists here only. Outside a transaction pgx would run a batch in an
// implicit transaction and database/sql would not; the type keeps them equal.
type TxQuerier interface {
	Querier

	// RunAll runs the statements in order and stops at the first error. On pgx
	// they cost one round trip, on database/sql one each.
	RunAll(ctx context.Context, stmts ...Stmt) error
}

// Isolation is a transaction isolation level in SQL's words.
type Isolation string

// The isolation levels. The empty one is READ COMMITTED, whatever the role's default
// is: the packages' arguments about races are made for a named level.
const (
	ReadCommitted  Isolation = "read committed"
	RepeatableRead Isolation = "repeatable read"
	Serializable   Isolation = "serializable"
)

// Canceler is a TxQuerier that can break off what its connection is running, from another
// goroutine. When Cancel has returned nil, the server has passed the request on: it hits the
// statement that runs by then, and nothing that is sent later.
type Canceler interface {
	Cancel(ctx context.Context) error
}

// TxStatus is what the client knows about its transaction without asking.
type TxStatus byte

// The states of a transaction. A driver that cannot tell says TxUnknown.
const (
	TxUnknown TxStatus = '?'
	TxIdle    TxStatus = 'I' // ended: committed or rolled back
	TxActive  TxStatus = 'T'
	TxFailed  TxStatus = 'E' // a statement failed, only ROLLBACK is left
)

// Driver carries statements for one client library. TX is the transaction type
// that the caller's code knows: pgx.Tx, *sql.Tx, *sqlx.Tx.
type Driver[TX any] interface {
	// Err reports a driver that was built on nothing, such as a nil pool.
	Err() error

	// MaxConns is how many connections the pool may open; 0 is no limit.
	MaxConns() int

	// Pipelined says that several statements cost one round trip.
	Pipelined() bool

	// Pool runs statements outside any transaction.
	Pool() Querier

	// Tx runs statements in the caller's transaction. It never commits, rolls
	// back or closes it.
	Tx(tx TX) TxQuerier

	// Spoil makes sure that the caller's transaction cannot be committed any more. It is for one
	// that holds what could not be undone. It may take its connection with it.
	Spoil(tx TX)

	// Begin opens a transaction that we own and runs the first statements in it;
	// on pgx that is one round trip. The ctx bounds the wait for a connection and,
	// when it ends before the server has answered, gives the connection up; it is
	// not tied to the transaction afterwards. An error means that nothing is open and
	// nothing has been done: the end of ctx, [ErrUnavailable] without a connection
	// or an answer, [ErrTxLost] when it broke, a non-fatal [*Error] or [ErrNoRow].
	Begin(ctx context.Context, level Isolation, first ...Stmt) (OwnedTx[TX], error)

	// Session opens a connection of its own, for session advisory locks. It is
	// never shared and never goes back to a pool.
	Session(ctx context.Context) (Session, error)
}

// OwnedTx is a transaction that we began and must end, by one call of Commit,
// Rollback or Abandon.
type OwnedTx[TX any] interface {
	TxQuerier

	// Handle is the transaction as the caller's code sees it. It dies with the
	// call: after Commit or Rollback it refuses every verb, as does each savepoint
	// made from it. On pgx it also refuses Commit and Rollback; *sql.Tx cannot be
	// wrapped, so there an early end is found out afterwards.
	Handle() TX

	// Reclaim ends the life of the handle, so that what follows cannot meet a goroutine
	// that outlived its handler. It waits for a statement of such a one, up to the
	// network deadline. Commit, Rollback and Abandon do the same first.
	Reclaim(ctx context.Context)

	// Status is the transaction's state after the last answer of the server.
	Status() TxStatus

	// Commit runs the last statements and COMMIT; on pgx that is one round trip.
	// It ignores the end of ctx, since an interrupted COMMIT has no known outcome.
	// The error is one of three: a non-fatal [*Error] or [ErrTxLost] means that
	// everything was rolled back; [ErrOutcomeUnknown] means that nobody can tell.
	Commit(ctx context.Context, last ...Stmt) error

	// Rollback rolls back. It works on a dead ctx, and it may be called after
	// Commit, when it does nothing. A connection that does not answer is closed,
	// which rolls back as well.
	Rollback(ctx context.Context)

	// Abandon is Rollback for a caller who has his answer already: it is awaited on
	// the connection's way back to the pool. It takes at most [NetTimeout], and closing the
	// pool waits for it.
	Abandon(ctx context.Context)
}

// Session is one connection of our own.
type Session interface {
	// RunAll outside a transaction is one round trip on pgx, in an implicit transaction, and on
	// database/sql one each: only for statements that do not care.
	TxQuerier

	// Socket is the connection's socket, for those who want to know when the server closes it; nil where
	// the client library does not give it away. Nobody may read from it, write to it or close it.
	Socket() syscall.RawConn

	// Cancel asks the server to cancel the statement that runs on this session.
	// The answer of that statement, not of Cancel, tells what happened.
	Cancel(ctx context.Context) error

	// Close ends the server's session, and with it every lock it held.
	Close(ctx context.Context) error
}

// TripContext is the ctx for a trip that must not be interrupted by the caller:
// it keeps the values of ctx, drops its end, and ends after [NetTimeout].
func TripContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), NetTimeout(ctx))
}
