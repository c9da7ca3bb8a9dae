// Package migrations creates and updates the library's tables.
//
//	applied, err := migrations.Up(ctx, db, nil)          // at deploy, with the owner's role
//	err := migrations.Validate(ctx, db, nil)             // at start, with the application's role
//
// Four ways in, all reading the same files: [Up]; [UpTx] as a step inside a goose
// timeline of your own; [FS] for tools that want goose files; [Script] for a
// person with psql. Whichever was used, the tables say which migrations they
// have, so the ways can be mixed.
//
// The application's role needs no DDL right:
//
//	GRANT USAGE ON SCHEMA pgonce TO app;
//	GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pgonce TO app;
//	GRANT USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA pgonce TO app;
//
// Up and Down hold a session advisory lock while they work, so they need a direct
// connection, not one through a pooler in transaction mode. goose is imported here
// and nowhere else in the library.
package migrations

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
)

var (
	// ErrSchema means that the tables are missing, too old, too new or out of
	// reach; the error that wraps it says which, and what to run.
	ErrSchema = pg.ErrSchema

	// ErrHasRecords means that Down would have forgotten keys.
	ErrHasRecords = errors.New("records exist")
)

// Config says where the tables live. A nil *Config is ready to use.
type Config struct {
	// Schema holds the tables. It must match ^[a-z_][a-z0-9_]{0,50}$ and must not be a
	// word that SQL reserves. Defaults to "pgonce". Several schemas in one database, and
	// in one process, are independent of each other.
	Schema string

	// Force lets Down drop tables that hold records. Forgotten keys can be
	// executed again: for money that is a second payment.
	Force bool
}

// Migration is one numbered step and when it was applied; zero means it is pending.
type Migration struct {
	Version   int
	Name      string
	AppliedAt time.Time
}

func (c *Config) schema() (string, error) {
	if c == nil || c.Schema == "" {
		return pg.DefaultSchema, nil
	}
	return c.Schema, pg.CheckSchemaName(c.Schema)
}

// Up applies what is missing and returns the numbers of the migrations it
// applied, oldest first. Any number of processes may call it at once: one works,
// the others wait for it and find nothing left to do. Each migration is one
// transaction, so a failure leaves whole migrations behind, never half of one.
//
// It needs the right to create the schema, or to create tables in it when it
// exists. It uses one connection of db at a time, so a pool of one will do.
func Up(ctx context.Context, db *sql.DB, cfg *Config) ([]int, error) {
	return withProvider(ctx, "up", db, cfg, func(p *goose.Provider) ([]*goose.MigrationResult, error) {
		return p.Up(ctx)
	})
}

// UpPool is [Up] for a pgx pool.
func UpPool(ctx context.Context, pool *pgxpool.Pool, cfg *Config) ([]int, error) {
	if pool == nil {
		return nil, errors.New("migrations: up: nil pool")
	}
	db := stdlib.OpenDBFromPool(pool)
	defer func() { _ = db.Close() }()
	return Up(ctx, db, cfg)
}

// Down takes back the newest migration and returns its number. It refuses with
// [ErrHasRecords] when that would drop records, unless the Config says Force.
func Down(ctx context.Context, db *sql.DB, cfg *Config) (int, error) {
	if err := Validate(ctx, db, cfg); err != nil && !isOlder(err) {
		return 0, fmt.Errorf("migrations: down: nothing that this code could take back: %w", err)
	}
	done, err := withProvider(ctx, "down", db, cfg, func(p *goose.Provider) ([]*goose.MigrationResult, error) {
		res, err := p.Down(ctx)
		return []*goose.MigrationResult{res}, err
	})
	if len(done) == 0 {
		return 0, err
	}
	return done[0], err
}

// isOlder says whether the schema has fewer migrations than this code, but some.
func isOlder(err error) bool {
	e, ok := errors.AsType[*pg.SchemaError](err)
	return ok && e.Version > 0 && e.Version < e.Want
}

// withProvider builds a goose provider on the schema and runs do with it.
func withProvider(ctx context.Context, verb string, db *sql.DB, cfg *Config,
	do func(*goose.Provider) ([]*goose.MigrationResult, error),
) ([]int, error) {
	schema, err := cfg.schema()
	switch {
	case err != nil:
		return nil, fmt.Errorf("migrations: %s: %w", verb, err)
	case db == nil:
		return nil, fmt.Errorf("migrations: %s: nil *sql.DB", verb)
	}
	files, err := FS(cfg)
	if err != nil {
		return nil, err
	}
	table := schema + ".goose_db_version"
	if err := prepare(ctx, db, schema, table); err != nil {
		return nil, fmt.Errorf("migrations: %s: %w", verb, err)
	}
	p, err := goose.NewProvider(database.DialectPostgres, db, files,
		goose.WithTableName(table), goose.WithDisableGlobalRegistry(true),
		goose.WithLogger(goose.NopLogger()),
		goose.WithSessionLocker(&locker{id: lockID(schema), force: cfg != nil && cfg.Force}))
	if err != nil {
		return nil, fmt.Errorf("migrations: %s: %w", verb, err)
	}
	results, err := do(p) // p.Close would close db, which is not ours
	var done []int
	for _, r := range results {
		if r != nil && r.Error == nil {
			done = append(done, int(r.Source.Version))
		}
	}
	if err != nil {
		if sqlState(err) == codeObjectInUse {
			err = fmt.Errorf("%w: %w", ErrHasRecords, err)
		}
		return done, fmt.Errorf("migrations: %s schema %q: %w", verb, schema, err)
	}
	return done, nil
}

const codeObjectInUse = "55006"

func sqlState(err error) string {
	var e interface{ SQLState() string }
	if errors.As(err, &e) {
		return e.SQLState()
	}
	return ""
}

// lockID is the advisory lock that serialises migrations of one schema.
func lockID(schema string) int64 {
	sum := sha256.Sum256([]byte("pgonce.migrations\x00" + schema))
	return int64(binary.BigEndian.Uint64(sum[:8])) //nolint:gosec // a bit pattern, not a number
}
