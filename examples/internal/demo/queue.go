package demo

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Queue makes a River queue do what it may: deliver again. A storm that shares its database with others names its own jobs by a
// condition whose one argument is $1.
type Queue struct {
	Pool   *pgxpool.Pool
	Schema string
	Where  string // about river_job, such as "args ->> 'storm' = $1"
	Arg    any

	Stuck atomic.Int64 // jobs that were taken from workers, most of which had been killed
}

func (q *Queue) table() string { return pgx.Identifier{q.Schema, "river_job"}.Sanitize() }

// Again makes the queue deliver up to limit jobs once more, done or being worked on. Rows that somebody is
// about to complete are left alone, so that two statements over many jobs cannot meet crosswise.
func (q *Queue) Again(ctx context.Context, salt, limit int) (int64, error) {
	tag, err := q.Pool.Exec(ctx, fmt.Sprintf(`
UPDATE %[1]s SET state = 'available', finalized_at = NULL, scheduled_at = now() WHERE id IN (
    SELECT id FROM %[1]s WHERE state IN ('completed', 'running') AND %[2]s
    ORDER BY hashint8(id + $2) LIMIT $3 FOR UPDATE SKIP LOCKED)`, q.table(), q.Where), q.Arg, salt, limit)
	return tag.RowsAffected(), err
}

// Rescue makes the queue deliver again what has been worked on for longer than after. The queue does that by itself, when its
// elected leader gets to it, which a demonstration of some seconds does not wait for.
func (q *Queue) Rescue(ctx context.Context, after time.Duration) error {
	tag, err := q.Pool.Exec(ctx, fmt.Sprintf(`
UPDATE %[1]s SET state = 'available', scheduled_at = now() WHERE id IN (
    SELECT id FROM %[1]s WHERE state = 'running' AND attempted_at < now() - $2::interval AND %[2]s
    FOR UPDATE SKIP LOCKED)`, q.table(), q.Where), q.Arg, after)
	q.Stuck.Add(tag.RowsAffected())
	return err
}

// Open counts the jobs that are not done with.
func (q *Queue) Open(ctx context.Context) (n int, err error) {
	err = q.Pool.QueryRow(ctx, fmt.Sprintf(`SELECT count(*) FROM %s WHERE finalized_at IS NULL AND %s`, q.table(), q.Where), q.Arg).Scan(&n)
	return n, err
}

// Await asks again and again until nothing is left.
func Await(ctx context.Context, what string, left func(ctx context.Context) (int, error)) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		n, err := left(ctx)
		if err != nil || n == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("waiting for %s: %d are left", what, n), ctx.Err())
		case <-tick.C:
		}
	}
}
