// Package idem executes requests once, however often they arrive.
//
// A request has a key: a scope (whose ids are these?), an operation and an id that the
// requester repeats when it tries again. [Do] runs a handler for a key inside a
// transaction, and commits what the handler wrote together with a record of the key and the
// result. A repeat finds the record and gets the result; the handler does not run.
//
//	res, err := idem.Do(ctx, keys, CreateRefund.Key(merchant, id), idem.Bytes(body),
//		func(ctx context.Context, tx pgx.Tx) (Receipt, error) { ... })
//
// # The guarantee
//
// One committed execution per key. The effect and its record become durable in one
// commit, or neither does; there is no lease that could expire in between, no second
// commit that could be missing. Callers of one key exclude each other by an advisory lock
// that lives as long as the transaction, and the primary key of the record table has the
// last word.
//
// # What it is not
//
// It is not one invocation: a handler whose transaction was rolled back (a crash, a
// deadlock, a lost connection) may run again. So nothing that a handler does outside its
// transaction is covered. Do not call a bank from a handler: commit a job, and let a worker
// call it, or use [RunSteps].
//
// It is not more durable than the database's commits are.
//
// # Memory
//
// A result is kept for [Op.ReplayFor] and a key for [Op.RememberFor] at least, by the database's clock. After the first a
// repeat gets [ErrExpired], not a second execution. What is over is cleaned up by [Store.Maintain]; nothing
// depends on when. [Store.Inspect], [Store.List] and [Store.Forget] are for people.
//
// # Failure modes
//
//   - The process dies in the handler: the server rolls back, the key is free within a
//     second. If its host vanishes, after [Op.MaxHandler].
//   - The connection dies in the handler: the same, and Do returns what the handler made
//     of it, or runs it again if it made nothing of it.
//   - The answer to COMMIT is lost: Do finds out what became of it on another connection,
//     and runs the handler again if it was rolled back. If it cannot find out,
//     [ErrUnknownOutcome]: calling again with the same key is safe.
//   - The handler fails or panics: everything is rolled back, nothing is stored.
//   - The handler ends its transaction: [ErrTxEnded], and the key is blocked if the
//     effect may be durable.
//   - Two callers at once: one executes, the other waits for up to [Op.Wait] and gets its
//     answer, or [ErrInFlight] and may ask again.
//   - The handler refuses for good ([Final]): everything is rolled back, the refusal is
//     stored and is the answer.
package idem
