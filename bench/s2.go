package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bsm/redislock"
	"github.com/pgonce/pgonce/dblock"
)

// hotKey is S2.
func hotKey() target {
	return target{"S2", "32 goroutines of one process fight for one key", measureHotKey}
}

const hotWorkers = 32

// grab takes the key and returns what gives it back. Token 0 is for locks without.
type grab func(ctx context.Context) (token dblock.Token, release func(context.Context) error, err error)

func measureHotKey(ctx context.Context, g *ground) error {
	ours, err := newLocks(ctx, g.postgres.url, nil)
	if err != nil {
		return err
	}
	contenders := []contender{fight(us, hotWorkers, ours.grab("hot"))}
	closeRedis := func() error { return nil }
	if g.redis != nil {
		r := newRedisLocks(g.redis)
		closeRedis = r.close
		for _, every := range redislockRetries {
			contenders = append(contenders, fight(redislockEvery(every), hotWorkers, r.grab("hot", every)))
		}
	}
	found, err := g.alternate(ctx, "S2 c=32", contenders)
	if err == nil {
		g.judgeHotKey(contenders, found)
	}
	return errors.Join(err, ours.close(ctx), closeRedis())
}

func (g *ground) judgeHotKey(contenders []contender, found map[string]series) {
	g.report.compare("c=32", "hand-offs/s", contenders, found)
	ours := found[us]
	for _, every := range redislockRetries {
		if peer := found[redislockEvery(every)]; peer != nil {
			labels := fmt.Sprintf("c=32 vs=redislock retry=%v", every)
			g.report.atLeast(labels, "ratio", ours.over(peer, (*sample).rate), 20)
			if every < slowRetry {
				g.report.atMost(labels, "p99", ours.over(peer, (*sample).p99), 0.1)
			}
		}
	}
	g.report.atLeast("c=32", "least/most", ours.of((*sample).evenness), 0.8)
}

// slowRetry is what redislock's example does, which does not wait by itself but tries again. Then one goroutine gets
// the key again and again while the others sleep, and the p99 of its waits says nothing about theirs.
const slowRetry = 100 * time.Millisecond

var redislockRetries = []time.Duration{slowRetry, time.Millisecond}

func redislockEvery(d time.Duration) string { return fmt.Sprintf("redislock, retry every %v", d) }

// fight is some goroutines at one key. Each run has a witness.
func fight(name string, workers int, take grab) contender {
	return contender{name: name, run: func(ctx context.Context, d time.Duration) (sample, error) {
		w := newWitness()
		s, err := hammer(ctx, workers, d, func(ctx context.Context, worker int) (time.Duration, error) {
			return w.turn(ctx, int64(worker)+1, take, 0)
		})
		return s, errors.Join(err, w.verdict())
	}}
}

// turn takes the key, holds it, gives it back, and says how long it waited.
func (w *witness) turn(ctx context.Context, who int64, take grab, hold time.Duration) (time.Duration, error) {
	began := time.Now()
	token, release, err := take(ctx)
	if err != nil {
		return 0, err
	}
	granted := time.Now()
	w.enter(who, token)
	for hold > 0 && time.Since(granted) < hold { // busy: a timer would come up to a millisecond late
	}
	w.leave(who)
	return granted.Sub(began), release(ctx)
}

func (l *locks) grab(key string) grab {
	return func(ctx context.Context) (dblock.Token, func(context.Context) error, error) {
		lock, err := l.Acquire(ctx, dblock.Key{Space: "bench", ID: key}, nil)
		if err != nil {
			return 0, nil, err
		}
		return lock.Token(), lock.Release, nil
	}
}

func (r *redisLocks) grab(key string, every time.Duration) grab {
	opt := &redislock.Options{RetryStrategy: redislock.LinearBackoff(every)}
	return func(ctx context.Context) (dblock.Token, func(context.Context) error, error) {
		lock, err := r.redislock.Obtain(ctx, key, ttl, opt)
		if err != nil {
			return 0, nil, err
		}
		return 0, lock.Release, nil
	}
}
