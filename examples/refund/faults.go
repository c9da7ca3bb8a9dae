package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// faults is what goes wrong during a storm.
type faults struct {
	service *process
	pool    *pgxpool.Pool // not the service's
	rng     *rand.Rand
	say     func(format string, args ...any)

	kills, terminated int
}

// run waits for the storm to reach certain points and breaks something at each: the
// service is killed at a third and at two thirds, and between those, backends are
// terminated in whatever they are doing.
func (f *faults) run(ctx context.Context, answered func() int64, total int) error {
	kills := map[int64]bool{int64(total / 3): true, int64(2 * total / 3): true}
	const backendSteps = 25
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	nextBackend := int64(total / backendSteps)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		n := answered()
		for at := range kills {
			if n < at {
				continue
			}
			delete(kills, at)
			if err := f.killService(ctx, n, total); err != nil {
				return err
			}
		}
		if n >= nextBackend {
			nextBackend += int64(max(1, total/backendSteps))
			if err := f.terminateBackends(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		}
		if len(kills) == 0 && n >= int64(total) {
			return nil
		}
	}
}

func (f *faults) killService(ctx context.Context, n int64, total int) error {
	f.service.kill()
	f.kills++
	start := time.Now()
	if err := f.service.start(ctx); err != nil {
		return err
	}
	f.say("%5d of %d answered: service killed with SIGKILL, back after %d ms", n, total, time.Since(start).Milliseconds())
	return nil
}

// terminateBackends ends up to three of the service's server processes.
func (f *faults) terminateBackends(ctx context.Context) error {
	const victims = `
SELECT count(pg_terminate_backend(pid)) FROM (
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = $1
    ORDER BY (state = 'idle'), hashint4(pid + $2) LIMIT 3) v`
	var n int
	if err := f.pool.QueryRow(ctx, victims, serviceName, f.rng.IntN(1<<20)).Scan(&n); err != nil {
		return err
	}
	f.terminated += n
	return nil
}
