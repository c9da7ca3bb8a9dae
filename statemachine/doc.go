// Package statemachine moves rows from state to state so that no race can break the rules.
//
// The state lives in a column of the user's own table. A [Machine] says which events lead
// from where to where; a [Binding] connects it to a table; [Binding.Fire] and [Binding.FireTx] fire
// an event at a row:
//
//	res, err := orders.FireTx(ctx, tx, id, Pay, statemachine.Dedup(evt.ID), statemachine.Set("paid_at", evt.At))
//
// # The guarantee
//
// One statement locks the row, decides on the version that it has locked, moves it, sets its columns and writes the
// history. So of any number of callers one moves the row, and each of the others is told the truth:
// the event had been applied before, the machine ignores it here, or the row is elsewhere. It
// is the same statement on every version of Postgres, every driver and every isolation
// level.
//
// # What a repeat is
//
// A row in the event's target counts as a repeat if nothing else leads there. If another event
// or creation does, the history is asked which it was. With [Dedup] the caller says which delivery
// this is, and the state does not matter: on a machine with a cycle that is the only thing which keeps a late repeat
// from being applied in the next round.
//
// # Beside one event at one row
//
// [Binding.FireMany] fires at many rows. [Binding.FireFunc] asks a function in Go while the row is locked, for decisions that need
// more than its columns. [Binding.Create] inserts a row with the beginning of its history, and [Binding.Adopt] begins it for rows
// that are there. [Binding.Sweep] fires what is due by time. [Binding.History] reads what became of a row, and
// [Binding.VerifyHistory] finds where rows and their histories do not fit together.
//
// # What it is not
//
// By itself it does not keep other programs from writing to the state column. The migration that [Binding.TriggerSQL] makes does:
// they move rows along edges or not at all; [Binding.Verify] says whether it is in place. [Binding.VerifyHistory] finds
// out afterwards what was written past both.
//
// It is not more durable than the database's commits are, and an answer of FireTx is as provisional as
// the transaction that it was given in.
package statemachine
