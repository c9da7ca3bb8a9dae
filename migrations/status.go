package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/pgonce/pgonce/internal/pg"
)

// queryer is what a pool and a transaction have in common.
type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Status lists the migrations that this code knows, oldest first, with the time
// each was applied. It only reads, with the rights of the application's role.
func Status(ctx context.Context, db *sql.DB, cfg *Config) ([]Migration, error) {
	schema, err := cfg.schema()
	if err != nil {
		return nil, fmt.Errorf("migrations: status: %w", err)
	}
	if db == nil {
		return nil, errors.New("migrations: status: nil *sql.DB")
	}
	files, err := statusOf(ctx, db, schema)
	if err != nil {
		return nil, fmt.Errorf("migrations: status: %w", err)
	}
	out := make([]Migration, len(files))
	for i, f := range files {
		out[i] = f.Migration
	}
	return out, nil
}

// Validate reports whether this code can work with the schema as it is: nil, or
// an error that wraps [ErrSchema] and says what to run. A schema that is newer
// than the code passes while it declares that it can live with it, so a rolling deploy
// may migrate first. One round trip, with the rights of the application's role.
func Validate(ctx context.Context, db *sql.DB, cfg *Config) error {
	schema, err := cfg.schema()
	if err != nil {
		return fmt.Errorf("migrations: validate: %w", err)
	}
	if db == nil {
		return errors.New("migrations: validate: nil *sql.DB")
	}
	var version, minCode int
	err = db.QueryRowContext(ctx, pg.In(schema, pg.SQLSchemaVersion)).Scan(&version, &minCode)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	if code := sqlState(err); code != "" {
		err = &pg.Error{Code: code, Err: err}
	}
	if err := pg.JudgeSchema(schema, version, minCode, err); err != nil {
		return fmt.Errorf("migrations: validate: %w", err)
	}
	return nil
}

// statusOf is the files with the times they were applied.
func statusOf(ctx context.Context, q queryer, schema string) ([]file, error) {
	files, err := load(schema)
	if err != nil {
		return nil, err
	}
	applied, err := appliedVersions(ctx, q, schema)
	if err != nil {
		return nil, err
	}
	for i, f := range files {
		for _, a := range applied {
			if a.Version == f.Version {
				files[i].AppliedAt = a.AppliedAt
			}
		}
	}
	return files, nil
}

// appliedVersions reads what the tables say of themselves; nothing where there are none.
func appliedVersions(ctx context.Context, q queryer, schema string) ([]Migration, error) {
	var exists bool
	err := q.QueryRowContext(ctx, sqlTableExists, schema, "schema_version").Scan(&exists)
	if err != nil || !exists {
		return nil, err
	}
	rows, err := q.QueryContext(ctx, pg.In(schema, sqlApplied))
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []Migration
	for rows.Next() {
		var m Migration
		if err := rows.Scan(&m.Version, &m.AppliedAt); err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, rows.Err()
}
