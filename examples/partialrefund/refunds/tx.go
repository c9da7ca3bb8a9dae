package refunds

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"github.com/jmoiron/sqlx"
)

// inTx runs fn in a transaction.
func inTx(ctx context.Context, db *sqlx.DB, fn func(tx *sqlx.Tx) error) error {
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	if err := fn(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

func affected(res sql.Result, err error) (bool, error) {
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	return n > 0, err
}

const (
	kindPayout    = "partialrefund.payout"
	kindAgreement = "partialrefund.agreement"
	neverGiveUp   = 32767
)

// enqueue inserts a job in the transaction of a *sqlx.Tx, as River's clients for other languages do. River's driver for database/sql,
// riverdatabasesql, does the same by InsertTx with tx.Tx; this saves a module.
func enqueue(ctx context.Context, tx *sqlx.Tx, job Payout) error {
	args, err := json.Marshal(job)
	if err != nil {
		return err
	}
	const insert = `INSERT INTO partialrefund_queue.river_job (kind, args, max_attempts) VALUES ($1, $2, $3)`
	_, err = tx.ExecContext(ctx, insert, kindPayout, args, neverGiveUp)
	return err
}
