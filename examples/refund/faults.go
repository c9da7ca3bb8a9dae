package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/pgonce/pgonce/examples/internal/demo"
)

// faults is what goes wrong during a storm, beside the bank.
type faults struct {
	*storm
	rng *rand.Rand

	kills, terminated int
	again             int64
}

// run waits for the storm to reach certain points and breaks something at each: every service and every
// worker is killed once, backends are terminated in whatever they are doing, and jobs are delivered again.
func (f *faults) run(ctx context.Context, total int) error {
	const steps = 25
	victims := f.fleet.all()
	f.rng.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
	killAt := func(k int) int { return (k + 1) * total / (len(victims) + 1) }
	step := 0
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for f.kills < len(victims) || step < steps {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		n := int(f.sent.Load())
		if f.kills < len(victims) && n >= killAt(f.kills) {
			if err := f.kill(victims[f.kills], n, total); err != nil {
				return err
			}
		}
		if step < steps && n >= (step+1)*total/(steps+1) {
			step++
			if err := f.disturb(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
	return nil
}

func (f *faults) kill(p *demo.Process, n, total int) error {
	p.Kill()
	f.kills++
	down := time.Now()
	if err := p.Start(); err != nil {
		return err
	}
	f.Say("%d of %d sent: %s killed with SIGKILL, back after %d ms", n, total, p.Name, time.Since(down).Milliseconds())
	return nil
}

// disturb ends up to three of the server processes that services and workers talk to, and has some
// jobs delivered again.
func (f *faults) disturb(ctx context.Context) error {
	const terminate = `
SELECT count(pg_terminate_backend(pid)) FROM (
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = $1
    ORDER BY (state = 'idle'), hashint4(pid + $2) LIMIT 3) v`
	var n int
	if err := f.pool.QueryRow(ctx, terminate, applicationName, f.rng.IntN(1<<20)).Scan(&n); err != nil {
		return err
	}
	f.terminated += n
	again, err := f.jobs.Again(ctx, f.rng.IntN(1<<20), 10)
	f.again += again
	return err
}
