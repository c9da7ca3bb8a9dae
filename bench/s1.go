package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cirello.io/pglock"
	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/dblock"
)

// distinctKeys is S1.
func distinctKeys() target {
	return target{"S1", "lock and confirmed unlock of free keys, each grant with its token", measureDistinctKeys}
}

// locker is one way to lock and unlock a key. Each goroutine uses keys of its own.
type locker func(ctx context.Context, worker int, key string) error

func measureDistinctKeys(ctx context.Context, g *ground) error {
	ours, err := newLocks(ctx, g.postgres.url, nil)
	if err != nil {
		return err
	}
	pglocks, err := newPGLocks(g.postgres.url)
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, g.postgres.url)
	if err != nil {
		return err
	}
	lockers := map[string]locker{
		us: ours.locker(), "pglock": pglocks.locker(),
		"two bare round trips": func(ctx context.Context, _ int, _ string) error { return twoTrips(ctx, conn) },
	}
	closeRedis := func() error { return nil }
	if g.redis != nil {
		r := newRedisLocks(g.redis)
		lockers["redislock"], lockers["redsync"] = r.lockByRedislock, r.lockByRedsync
		closeRedis = r.close
	}
	for _, c := range []int{1, 32, 256} {
		if err = g.distinctKeys(ctx, c, lockers); err != nil {
			break
		}
	}
	return errors.Join(err, ours.close(ctx), pglocks.db.Close(), conn.Close(ctx), closeRedis())
}

// distinctKeys measures with a number of goroutines.
func (g *ground) distinctKeys(ctx context.Context, workers int, lockers map[string]locker) error {
	order := []string{us, "redislock", "pglock"}
	if workers == 1 {
		order = append(order, "redsync", "two bare round trips")
	}
	var contenders []contender
	for _, name := range order {
		if lock := lockers[name]; lock != nil {
			contenders = append(contenders, contender{name: name, run: func(ctx context.Context, d time.Duration) (sample, error) {
				return lock.hammer(ctx, workers, d)
			}})
		}
	}
	row := fmt.Sprintf("c=%d", workers)
	found, err := g.alternate(ctx, "S1 "+row, contenders)
	if err != nil {
		return err
	}
	g.report.compare(row, "locks/s", contenders, found)
	for _, b := range []struct {
		workers  int
		peer, vs string
		bound    float64
	}{
		{1, "two bare round trips", "bare", 0.75},
		{1, "pglock", "pglock", 6},
		{32, "redislock", "redislock", 1.6},
		{32, "pglock", "pglock", 20},
		{256, "redislock", "redislock", 6.5},
		{256, "pglock", "pglock", 20},
	} {
		if peer := found[b.peer]; b.workers == workers && peer != nil {
			g.report.atLeast(row+" vs="+b.vs, "ratio", found[us].over(peer, (*sample).rate), b.bound)
		}
	}
	return nil
}

func (l locker) hammer(ctx context.Context, workers int, d time.Duration) (sample, error) {
	keys, turns := keyrings(workers), make([]int, workers)
	return hammer(ctx, workers, d, func(ctx context.Context, w int) (time.Duration, error) {
		turns[w]++
		return 0, l(ctx, w, keys[w][turns[w]%len(keys[w])])
	})
}

// locker checks that the tokens of a goroutine grow, whose grants follow each other.
func (l *locks) locker() locker {
	tokens := make([]growing, 256)
	return func(ctx context.Context, worker int, key string) error {
		lock, err := l.Acquire(ctx, dblock.Key{Space: "bench", ID: key}, nil)
		if err != nil {
			return err
		}
		return errors.Join(tokens[worker].next(lock.Token()), lock.Release(ctx))
	}
}

// locker tries again what did not get done within the lease, which is one slow lock and no end of the run.
func (l *pgLocks) locker() locker {
	return func(ctx context.Context, _ int, key string) error {
		for {
			lock, err := l.AcquireContext(ctx, key)
			if err == nil {
				err = lock.Close()
			}
			if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, pglock.ErrLockAlreadyReleased) {
				return err
			}
		}
	}
}

func (r *redisLocks) lockByRedislock(ctx context.Context, _ int, key string) error {
	lock, err := r.redislock.Obtain(ctx, key, ttl, nil)
	if err != nil {
		return err
	}
	return lock.Release(ctx)
}

func (r *redisLocks) lockByRedsync(ctx context.Context, _ int, key string) error {
	mutex := r.redsync.NewMutex("redsync-" + key)
	if err := mutex.LockContext(ctx); err != nil {
		return err
	}
	ok, err := mutex.UnlockContext(ctx)
	if err == nil && !ok {
		err = errors.New("not unlocked")
	}
	return err
}
