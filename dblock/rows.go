package dblock

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/pgonce/pgonce/internal/pg"
)

// RowMode is how rows are locked.
type RowMode int

// The modes, in SQL's words. Each conflicts with what is named.
const (
	ForNoKeyUpdate RowMode = iota // all but ForKeyShare: so rows that refer to this one by a foreign key can be inserted
	ForUpdate                     // all; for a row that is going to be deleted or gets another key
	ForShare                      // ForUpdate and ForNoKeyUpdate
	ForKeyShare                   // ForUpdate
)

func (m RowMode) String() string {
	names := [...]string{"NO KEY UPDATE", "UPDATE", "SHARE", "KEY SHARE"}
	if m < 0 || int(m) >= len(names) {
		return ""
	}
	return names[m]
}

// RowWait is what becomes of rows that somebody else has locked.
type RowWait int

// The ways to wait.
const (
	Wait       RowWait = iota // until ctx ends
	NoWait                    // not at all: one such row is ErrNotAcquired, and none is locked
	SkipLocked                // they are left out, which makes a queue of a table
)

func (w RowWait) String() string {
	names := [...]string{"", " NOWAIT", " SKIP LOCKED"}
	if w < 0 || int(w) >= len(names) {
		return "?"
	}
	return names[w]
}

// RowsConfig tunes [LockRowsTx]. A nil *RowsConfig is ready to use.
type RowsConfig struct {
	// Mode defaults to ForNoKeyUpdate.
	Mode RowMode

	// Wait defaults to Wait, until ctx ends.
	Wait RowWait
}

// LockRowsTx locks rows of a table of yours in the caller's transaction, until that ends or is rolled
// back to a savepoint that is older than the call. It returns the keys of the rows it has locked, each once, in
// the order in which they were locked, which is the order of the column.
//
// Rows are locked one after the other in that order, whatever the order of keys. So transactions that lock by the
// same column, with one call each, cannot wait for each other in a circle. Two calls in one
// transaction can, and so can two transactions that have one row shared and both want it for update.
//
// A row that is not there cannot be locked, and nobody is kept from inserting it: the call returns the rows
// that are locked, and [ErrRowMissing] with the others. In READ COMMITTED a row is judged as it is after the wait for
// it, so one that was deleted meanwhile is missing. With [SkipLocked] a row that is missing and one that is
// locked look the same: neither is an error, and what is not returned says nothing.
//
// After an error the transaction is as it was before, but for ErrRowMissing, and can go on. What is said of ctx and of
// the role's time-outs at [Client.LockTx] holds here too. NoWait and SkipLocked are about rows: a
// table that is being altered is waited for.
//
// Errors: [ErrInvalidTable], [ErrRowMissing], [ErrNotAcquired] (and the ctx's error), [ErrDeadlock] (and
// [ErrRetryTx]), ErrRetryTx for a row that has changed since the transaction's snapshot, above
// READ COMMITTED, [ErrReadOnlyTx], [ErrTxUnusable], [ErrUnavailable] when the transaction was lost with
// its connection, or the server's own, as for a table that is not there.
//
// Cost: 2 round trips on pgx, 5 on database/sql; none without keys. Locking a row writes to it, also where the transaction
// only reads it then: about 60 bytes of WAL and a dirty page, a COMMIT that is flushed, two transaction numbers a call, and work for vacuum; more where
// several share a row. To serialise work that has no row of its own, LockTx is cheaper: it writes nothing.
func LockRowsTx[K RowKey, TX any](ctx context.Context, c *Client[TX], tx TX, table Table, keys []K, cfg *RowsConfig) ([]K, error) {
	locked, err := lockRows(ctx, c, tx, table, keys, cfg)
	if err != nil {
		return locked, fmt.Errorf("dblock: lockrowstx %s: %w", pg.Printable(table.Name), err)
	}
	return locked, nil
}

func lockRows[K RowKey, TX any](ctx context.Context, c *Client[TX], tx TX, table Table, keys []K, cfg *RowsConfig) ([]K, error) {
	var none TX
	if any(tx) == any(none) {
		return nil, errors.New("nil transaction")
	}
	if cfg == nil {
		cfg = &RowsConfig{}
	}
	sql, name, err := cfg.render(table, keyType[K]())
	if err != nil {
		return nil, err
	}
	set, err := newKeySet(keys)
	if err != nil || len(keys) == 0 {
		return nil, err
	}
	var answer string
	b := bounded{tx: c.db.Tx(tx), noWait: cfg.Wait == NoWait}
	if err := b.run(ctx, pg.Stmt{SQL: sql, Args: []any{set.array()}, Dest: []any{&answer}}); err != nil {
		return nil, explainTx(err)
	}
	var found []string
	if err := json.Unmarshal([]byte(answer), &found); err != nil {
		return nil, fmt.Errorf("the server's answer: %w", err)
	}
	locked, missing := set.split(found)
	if len(missing) > 0 && cfg.Wait != SkipLocked {
		return locked, &RowMissingError{Table: name, Keys: missing}
	}
	return locked, nil
}

// render is sqlLockRows for a table, and the table's name in SQL.
func (cfg *RowsConfig) render(table Table, keyType string) (sql, name string, err error) {
	name, column, err := table.resolve()
	switch {
	case err != nil:
		return "", "", err
	case cfg.Mode.String() == "":
		return "", "", fmt.Errorf("%w: mode %d", ErrInvalidTable, cfg.Mode)
	case cfg.Wait.String() == "?":
		return "", "", fmt.Errorf("%w: wait %d", ErrInvalidTable, cfg.Wait)
	}
	return strings.NewReplacer(
		`"public"."orders"`, name, `"id"`, column, `bigint[]`, keyType+`[]`, `FOR NO KEY UPDATE`, `FOR `+cfg.Mode.String()+cfg.Wait.String(),
	).Replace(sqlLockRows), name, nil
}
