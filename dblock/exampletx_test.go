//go:build unix

package dblock_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
)

const accountTable = `
CREATE TABLE account (id bigint PRIMARY KEY, cents bigint NOT NULL);
INSERT INTO account VALUES (1, 500), (2, 0)`

// One report a day, written by whoever comes first. The lock ends with the transaction.
func ExampleClient_LockTx() {
	pgtest.Example(`CREATE TABLE report (day date PRIMARY KEY)`, func(ctx context.Context, pool *pgxpool.Pool) error {
		locks, err := dblock.New(ctx, pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		defer func() { _ = locks.Close(ctx) }()
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if err := locks.LockTx(ctx, tx, dblock.Key{Space: "report", ID: "2026-11-22"}, nil); err != nil {
				return err
			}
			tag, err := tx.Exec(ctx, `INSERT INTO report SELECT '2026-11-22' WHERE NOT EXISTS (SELECT FROM report WHERE day = '2026-11-22')`)
			fmt.Println("reports written:", tag.RowsAffected())
			return err
		})
	})
	// Output: reports written: 1
}

// Somebody else has the key; this transaction does something else instead.
func ExampleClient_TryLockTx() {
	pgtest.Example(``, func(ctx context.Context, pool *pgxpool.Pool) error {
		locks, err := dblock.New(ctx, pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		defer func() { _ = locks.Close(ctx) }()
		key := dblock.Key{Space: "order", ID: "42"}
		return pgx.BeginFunc(ctx, pool, func(first pgx.Tx) error {
			if err := locks.TryLockTx(ctx, first, key, nil); err != nil {
				return err
			}
			return pgx.BeginFunc(ctx, pool, func(second pgx.Tx) error {
				err := locks.TryLockTx(ctx, second, key, nil)
				fmt.Println("somebody else has it:", errors.Is(err, dblock.ErrNotAcquired))
				return second.QueryRow(ctx, `SELECT 1`).Scan(new(int)) // the transaction goes on
			})
		})
	})
	// Output: somebody else has it: true
}

// A transfer locks both accounts, in an order that all transfers share, whichever way the money goes.
func ExampleLockRowsTx() {
	pgtest.Example(accountTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		locks, err := dblock.New(ctx, pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		defer func() { _ = locks.Close(ctx) }()
		const from, to = 2, 1
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			locked, err := dblock.LockRowsTx(ctx, locks, tx, dblock.Table{Name: "account"}, []int64{from, to}, nil)
			fmt.Println("locked:", locked, err)
			_, err = dblock.LockRowsTx(ctx, locks, tx, dblock.Table{Name: "account"}, []int64{from, 9}, nil)
			if missing, ok := errors.AsType[*dblock.RowMissingError](err); ok {
				fmt.Println("no such account:", missing.Keys)
			}
			return nil
		})
	})
	// Output:
	// locked: [1 2] <nil>
	// no such account: [9]
}
