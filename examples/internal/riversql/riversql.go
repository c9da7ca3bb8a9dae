// Package riversql enqueues jobs of River in transactions of database/sql, and of what embeds one, as sqlx does. It is small, and to be
// copied with what imports it. River's own driver for database/sql, riverdatabasesql, does the same by InsertTx; this saves a module.
package riversql

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"reflect"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
)

// Tx is what a transaction must have: *sql.Tx, *sqlx.Tx.
type Tx interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// Job is one that says by its InsertOpts how often it is tried. Any other option is refused.
type Job interface {
	river.JobArgs
	river.JobArgsWithInsertOpts
}

// InsertTx inserts the row of a job into the queue in schema, as River's clients for other languages do. Nobody is notified of it: workers find it
// when they poll.
func InsertTx(ctx context.Context, tx Tx, schema string, job Job) error {
	opts := job.InsertOpts()
	tries := opts.MaxAttempts
	opts.MaxAttempts = 0
	if tries < 1 || !reflect.ValueOf(opts).IsZero() {
		return fmt.Errorf("riversql: insert %s: want MaxAttempts, and no other option", job.Kind())
	}
	args, err := json.Marshal(job)
	if err != nil {
		return fmt.Errorf("riversql: insert %s: %w", job.Kind(), err)
	}
	insert := `INSERT INTO ` + pgx.Identifier{schema, "river_job"}.Sanitize() + ` (kind, args, max_attempts) VALUES ($1, $2, $3)`
	_, err = tx.ExecContext(ctx, insert, job.Kind(), args, tries)
	return err
}
