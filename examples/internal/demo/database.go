package demo

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgonce/pgonce/internal/localpg"
	"github.com/pgonce/pgonce/migrations"
	"github.com/pressly/goose/v3"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// Ground is the database that an example takes place in. Its pool is not that of the example's services, so that it survives what
// they do not.
type Ground struct {
	Pool   *pgxpool.Pool
	URL    string
	server *localpg.Server
}

// Open connects to a database, or starts a throw-away server if there is no URL.
func Open(ctx context.Context, url string) (*Ground, error) {
	g := &Ground{URL: url}
	if url == "" {
		server, err := localpg.Start(&localpg.Config{Durable: true})
		if err != nil {
			return nil, fmt.Errorf("%w; or set DATABASE_URL", err)
		}
		g.server, g.URL = server, server.URL("postgres")
	}
	var err error
	if g.Pool, err = pgxpool.New(ctx, g.URL); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// Close stops the server, if it is ours.
func (g *Ground) Close() {
	if g.Pool != nil {
		g.Pool.Close()
	}
	if g.server != nil {
		_ = g.server.Stop()
	}
}

// Migrate creates the library's tables, an example's own and its queue's, each with a timeline of its own. The example's migrations
// create the schema that the queue is in.
func Migrate(ctx context.Context, pool *pgxpool.Pool, name string, files fs.FS, queueSchema string) error {
	if _, err := migrations.UpPool(ctx, pool, nil); err != nil {
		return err
	}
	db := stdlib.OpenDBFromPool(pool)
	defer func() { _ = db.Close() }()
	own, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithTableName(name+"_goose"), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return err
	}
	if _, err := own.Up(ctx); err != nil {
		return err
	}
	queue, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Schema: queueSchema, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	_, err = queue.Migrate(ctx, rivermigrate.DirectionUp, nil)
	return err
}

// Aged says which rows grow older: those of one table, or of all tables of a schema, for which a condition holds whose one
// argument is $2.
type Aged struct {
	Schema, Table string // no table is every table
	Where         string // no condition is every row
	Arg           any
}

// Age makes every stored instant of these rows older by d. The database's clock decides everything in the examples, so this is
// what waiting would do.
func Age(ctx context.Context, pool *pgxpool.Pool, d time.Duration, rows ...Aged) error {
	const columns = `
SELECT c.relname::text, array_agg(a.attname::text)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE a.atttypid = 'timestamptz'::regtype AND NOT a.attisdropped AND c.relkind = 'r'
  AND n.nspname = $1::text AND $2::text IN ('', c.relname::text)
GROUP BY 1 ORDER BY 1`
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		for _, aged := range rows {
			type table struct {
				Name    string
				Columns []string
			}
			found, _ := tx.Query(ctx, columns, aged.Schema, aged.Table)
			tables, err := pgx.CollectRows(found, pgx.RowToStructByPos[table])
			if err == nil && len(tables) == 0 {
				err = fmt.Errorf("nothing to make older in %s.%s", aged.Schema, aged.Table)
			}
			for _, t := range tables {
				if err == nil {
					err = aged.update(ctx, tx, t.Name, t.Columns, d)
				}
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (a Aged) update(ctx context.Context, tx pgx.Tx, table string, columns []string, d time.Duration) error {
	var sets []string
	for _, column := range columns {
		c := pgx.Identifier{column}.Sanitize()
		sets = append(sets, c+" = "+c+" - $1::interval")
	}
	update, args := `UPDATE `+pgx.Identifier{a.Schema, table}.Sanitize()+` SET `+strings.Join(sets, ", "), []any{d}
	if a.Where != "" {
		update, args = update+` WHERE `+a.Where, append(args, a.Arg)
	}
	if _, err := tx.Exec(ctx, update, args...); err != nil {
		return fmt.Errorf("make %s.%s older: %w", a.Schema, table, err)
	}
	return nil
}
