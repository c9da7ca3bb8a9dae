//go:build unix

package dblock_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/dblock"
)

// The code of docs/from-redis.md; a test holds the page to it.

// tryLock waits for a while, and works for as long as it takes.
func tryLock(ctx context.Context, locks *dblock.Client[pgx.Tx], order string, work func(context.Context) error) error {
	waiting, cancel := context.WithTimeout(ctx, 2*time.Second) // of the wait, not of the lock
	defer cancel()
	lock, err := locks.Acquire(waiting, dblock.Key{Space: "order", ID: order}, nil)
	if errors.Is(err, dblock.ErrNotAcquired) {
		return nil // somebody else is at it
	}
	if err != nil {
		return err
	}
	defer func() { _ = lock.Release(ctx) }()
	return work(lock.Context()) // ends when the lock is lost
}

// book writes under the lock, and never after it.
func book(ctx context.Context, pool *pgxpool.Pool, lock *dblock.Lock[pgx.Tx], cents int64) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if err := lock.FenceTx(ctx, tx); err != nil {
			return err // lost: nothing of this transaction lands
		}
		_, err := tx.Exec(ctx, `UPDATE account SET cents = cents + $1 WHERE id = 1`, cents)
		return err
	})
}

// send has the other side check that nobody newer has been there.
func send(lock *dblock.Lock[pgx.Tx], post func(token int64) error) error {
	return post(int64(lock.Token()))
}

// readers share a key.
func readers(ctx context.Context, locks *dblock.Client[pgx.Tx], key dblock.Key) (*dblock.Lock[pgx.Tx], error) {
	return locks.Acquire(ctx, key, &dblock.LockConfig{Shared: true, Expect: time.Minute})
}

// both accounts, or none, in an order that all callers share.
func both(ctx context.Context, locks *dblock.Client[pgx.Tx], from, to string) (dblock.Locks[pgx.Tx], error) {
	return locks.AcquireAll(ctx, []dblock.Key{{Space: "account", ID: from}, {Space: "account", ID: to}}, nil)
}

func Example_fromRedis() {
	withClient(func(ctx context.Context, locks *client, pool *pgxpool.Pool) error {
		if _, err := pool.Exec(ctx, accountTable); err != nil {
			return err
		}
		if err := tryLock(ctx, locks, "42", func(ctx context.Context) error { return ctx.Err() }); err != nil {
			return err
		}
		shared, err := readers(ctx, locks, dblock.Key{Space: "tariff", ID: "2026"})
		if err != nil {
			return err
		}
		pair, err := both(ctx, locks, "2", "1")
		if err != nil {
			return err
		}
		if err := book(ctx, pool, pair[0], 100); err != nil {
			return err
		}
		var cents int64
		if err := pool.QueryRow(ctx, `SELECT cents FROM account WHERE id = 1`).Scan(&cents); err != nil {
			return err
		}
		fmt.Println("booked:", cents)
		err = send(shared, func(token int64) error {
			fmt.Println("sent with a token:", token > 0)
			return nil
		})
		return errors.Join(err, shared.Release(ctx), pair.Release(ctx))
	})
	// Output:
	// booked: 600
	// sent with a token: true
}
