package crowd

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/examples/internal/demo"
)

// Faults are what goes wrong with the database and the queue while a crowd asks.
type Faults struct {
	Pool  *pgxpool.Pool
	Names []string // LIKE patterns of application_name: whose server processes are terminated
	Queue *demo.Queue
	Rng   *rand.Rand

	terminated, again atomic.Int64
}

// Terminated is how many server processes were. Nil faults are none.
func (f *Faults) Terminated() int64 {
	if f == nil {
		return 0
	}
	return f.terminated.Load()
}

// Again is how many jobs were delivered again.
func (f *Faults) Again() int64 {
	if f == nil {
		return 0
	}
	return f.again.Load()
}

// Run breaks something at each of steps points of the way to total, as asked counts it: server processes are terminated in
// whatever they are doing, and jobs are delivered again. It returns when all is broken, or ctx ends.
func (f *Faults) Run(ctx context.Context, asked func() int64, total, steps int) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for step := 0; step < steps; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if int(asked()) < (step+1)*total/(steps+1) {
			continue
		}
		step++
		if err := f.disturb(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

func (f *Faults) disturb(ctx context.Context) error {
	const terminate = `
SELECT count(pg_terminate_backend(pid)) FROM (
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE ANY($1)
    ORDER BY (state = 'idle'), hashint4(pid + $2) LIMIT 3) v`
	var n int64
	if err := f.Pool.QueryRow(ctx, terminate, f.Names, f.Rng.IntN(1<<20)).Scan(&n); err != nil {
		return err
	}
	f.terminated.Add(n)
	again, err := f.Queue.Again(ctx, f.Rng.IntN(1<<20), 10)
	f.again.Add(again)
	return err
}
