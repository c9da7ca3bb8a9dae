//go:build unix

package dblock_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
)

func Example() {
	pgtest.Example(``, func(ctx context.Context, pool *pgxpool.Pool) error {
		locks, err := dblock.New(ctx, pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		lock, err := locks.Acquire(ctx, dblock.Key{Space: "order", ID: "42"}, nil)
		if err != nil {
			return err
		}
		fmt.Println("held:", lock.Err() == nil, lock.Token() > 0)
		fmt.Println("released:", lock.Release(ctx))
		return locks.Close(ctx)
	})
	// Output:
	// held: true true
	// released: <nil>
}

func ExampleNewLeases() {
	pgtest.Example(``, func(ctx context.Context, pool *pgxpool.Pool) error {
		locks, err := dblock.NewLeases(ctx, pgxdriver.New(pool), &dblock.Config{TTL: 30 * time.Second, Holder: "nightly-report@host7"})
		if err != nil {
			return err
		}
		lock, err := locks.Acquire(ctx, dblock.Key{Space: "report", ID: "nightly"}, nil)
		if err != nil {
			return err
		}
		var holder string
		if err := pool.QueryRow(ctx, `SELECT holder FROM pgonce.lease WHERE space = 'report' AND id = 'nightly'`).Scan(&holder); err != nil {
			return err
		}
		fmt.Println("held by", holder)
		fmt.Println("released:", lock.Release(ctx))
		return locks.Close(ctx)
	})
	// Output:
	// held by nightly-report@host7
	// released: <nil>
}

func ExampleClient_TryAcquire() {
	withClient(func(ctx context.Context, locks *client, _ *pgxpool.Pool) error {
		report := dblock.Key{Space: "report", ID: "nightly"}
		lock, err := locks.TryAcquire(ctx, report, &dblock.LockConfig{Expect: time.Hour})
		if err != nil {
			return err
		}
		_, err = locks.TryAcquire(ctx, report, nil)
		fmt.Println("somebody else makes it:", errors.Is(err, dblock.ErrNotAcquired))
		return lock.Release(ctx)
	})
	// Output: somebody else makes it: true
}

func ExampleClient_Do() {
	withClient(func(ctx context.Context, locks *client, _ *pgxpool.Pool) error {
		return locks.Do(ctx, dblock.Key{Space: "order", ID: "42"}, nil, func(ctx context.Context, lock *locked) error {
			fmt.Println("alone:", ctx.Err() == nil)
			return nil
		})
	})
	// Output: alone: true
}

func ExampleClient_AcquireAll() {
	withClient(func(ctx context.Context, locks *client, _ *pgxpool.Pool) error {
		held, err := locks.AcquireAll(ctx, []dblock.Key{{Space: "account", ID: "a"}, {Space: "account", ID: "b"}}, nil)
		if err != nil {
			return err
		}
		fmt.Println(len(held), held.Release(ctx))
		return nil
	})
	// Output: 2 <nil>
}

func ExampleLock_FenceTx() {
	withClient(func(ctx context.Context, locks *client, pool *pgxpool.Pool) error {
		lock, err := locks.Acquire(ctx, dblock.Key{Space: "order", ID: "42"}, nil)
		if err != nil {
			return err
		}
		tx, err := pool.Begin(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(ctx) }()
		if err := lock.FenceTx(ctx, tx); err != nil { // lost: nothing of this transaction may land
			return err
		}
		fmt.Println("released:", lock.Release(ctx)) // the transaction still keeps others out
		_, err = locks.TryAcquire(ctx, lock.Key(), nil)
		fmt.Println("still fenced:", errors.Is(err, dblock.ErrNotAcquired))
		return tx.Commit(ctx)
	})
	// Output:
	// released: <nil>
	// still fenced: true
}

func ExampleClient_Verify() {
	withClient(func(ctx context.Context, locks *client, _ *pgxpool.Pool) error {
		fmt.Println(locks.Verify(ctx))
		return nil
	})
	// Output: <nil>
}

func withClient(fn func(context.Context, *client, *pgxpool.Pool) error) {
	pgtest.Example(``, func(ctx context.Context, pool *pgxpool.Pool) error {
		locks, err := dblock.New(ctx, pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		return errors.Join(fn(ctx, locks, pool), locks.Close(ctx))
	})
}
