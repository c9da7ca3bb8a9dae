package migrations

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pressly/goose/v3/database"
)

// locker serialises goose's runs by a session advisory lock. goose's own polls
// once a second or slower; this one waits in the server's queue and is woken.
type locker struct {
	id    int64
	force bool
}

func (l *locker) SessionLock(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, sqlLock, l.id)
	if err == nil && l.force {
		_, err = conn.ExecContext(ctx, sqlForceDown, "on")
	}
	if err != nil {
		drop(conn) // whether the lock was granted is not known
	}
	return err
}

func (l *locker) SessionUnlock(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, sqlUnlock, l.id)
	if err == nil && l.force {
		_, err = conn.ExecContext(ctx, sqlForceDown, "off")
	}
	if err != nil {
		drop(conn) // neither the lock nor the setting may reach the pool
	}
	return err
}

// drop ends the server's session instead of giving it back to the pool.
func drop(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
}

// prepare makes what goose needs before it can take a lock of its own: the
// schema and the version table. IF NOT EXISTS alone is not safe against a second
// process, so all of it happens under the lock.
func prepare(ctx context.Context, db *sql.DB, schema, table string) error {
	store, err := database.NewStore(database.DialectPostgres, table)
	if err != nil {
		return err
	}
	return inTx(ctx, db, func(tx *sql.Tx) error {
		if err := createSchema(ctx, tx, schema); err != nil {
			return err
		}
		var tracked bool
		if err := tx.QueryRowContext(ctx, sqlTableExists, schema, "goose_db_version").Scan(&tracked); err != nil {
			return err
		}
		if !tracked {
			if err := store.CreateVersionTable(ctx, tx); err != nil {
				return err
			}
			if err := store.Insert(ctx, tx, database.InsertRequest{Version: 0}); err != nil {
				return err
			}
		}
		return reconcile(ctx, tx, schema, store)
	})
}

// reconcile makes goose's table say what the tables say of themselves. They differ when a
// migration came, or went, another way: UpTx, files, or psql.
func reconcile(ctx context.Context, tx *sql.Tx, schema string, store database.Store) error {
	applied, err := appliedVersions(ctx, tx, schema)
	if err != nil {
		return err
	}
	listed, err := store.ListMigrations(ctx, tx)
	if err != nil {
		return err
	}
	known := map[int64]bool{0: true}
	for _, m := range listed {
		known[m.Version] = true
	}
	for _, m := range applied {
		version := int64(m.Version)
		if !known[version] {
			if err := store.Insert(ctx, tx, database.InsertRequest{Version: version}); err != nil {
				return err
			}
		}
		delete(known, version)
	}
	delete(known, 0)
	for version := range known {
		if err := store.Delete(ctx, tx, version); err != nil {
			return err
		}
	}
	return nil
}

// createSchema takes the migration lock until the end of tx and creates the
// schema if it is missing. It looks first: CREATE SCHEMA IF NOT EXISTS needs the
// right to create even where there is nothing to do.
func createSchema(ctx context.Context, tx *sql.Tx, schema string) error {
	if _, err := tx.ExecContext(ctx, sqlLockTx, lockID(schema)); err != nil {
		return err
	}
	var exists, plain bool
	if err := tx.QueryRowContext(ctx, sqlSchemaExists, schema).Scan(&exists, &plain); err != nil {
		return err
	}
	if !plain {
		return &pg.SchemaError{
			Schema: schema, Want: pg.SchemaVersion,
			Reason: "a word that SQL reserves", Fix: "choose another name",
		}
	}
	if exists {
		return nil
	}
	_, err := tx.ExecContext(ctx, pg.In(schema, sqlCreateSchema))
	return err
}

func inTx(ctx context.Context, db *sql.DB, fn func(*sql.Tx) error) error {
	// Named, because the lock's wait has to come before the snapshot, whatever the role's default.
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return fmt.Errorf("%w: %w", pg.ErrUnavailable, err)
	}
	if err := fn(tx); err != nil {
		return errors.Join(err, ignoreDone(tx.Rollback()))
	}
	return tx.Commit()
}

func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}
