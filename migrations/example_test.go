//go:build unix

package migrations_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/migrations"
	"github.com/pressly/goose/v3"
)

// example runs fn on a database where the library's tables are, in schema "pgonce".
func example(fn func(ctx context.Context, db *sql.DB) error) {
	pgtest.Example(``, func(ctx context.Context, pool *pgxpool.Pool) error {
		return fn(ctx, stdlib.OpenDBFromPool(pool))
	})
}

func ExampleUp() {
	example(func(ctx context.Context, db *sql.DB) error {
		cfg := &migrations.Config{Schema: "billing_once"}
		applied, err := migrations.Up(ctx, db, cfg)
		if err != nil {
			return err
		}
		fmt.Println("first:", len(applied) > 0)
		applied, err = migrations.Up(ctx, db, cfg)
		fmt.Println("again:", applied, err)
		return nil
	})
	// Output:
	// first: true
	// again: [] <nil>
}

func ExampleUpPool() {
	pgtest.Example(``, func(ctx context.Context, pool *pgxpool.Pool) error {
		applied, err := migrations.UpPool(ctx, pool, nil)
		fmt.Println(applied, err)
		return nil
	})
	// Output: [] <nil>
}

func ExampleUpTx() {
	example(func(ctx context.Context, db *sql.DB) error {
		step := goose.NewGoMigration(42, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
			return migrations.UpTx(ctx, tx, &migrations.Config{Schema: "billing_once"})
		}}, nil)
		timeline, err := goose.NewProvider(goose.DialectPostgres, db, nil,
			goose.WithGoMigrations(step), goose.WithLogger(goose.NopLogger()))
		if err != nil {
			return err
		}
		results, err := timeline.Up(ctx)
		fmt.Println(len(results), err)
		return nil
	})
	// Output: 1 <nil>
}

func ExampleValidate() {
	example(func(ctx context.Context, db *sql.DB) error {
		fmt.Println(migrations.Validate(ctx, db, nil))
		err := migrations.Validate(ctx, db, &migrations.Config{Schema: "elsewhere"})
		fmt.Println(errors.Is(err, migrations.ErrSchema))
		says, _, _ := strings.Cut(err.Error(), ",")
		fmt.Println(says)
		return nil
	})
	// Output:
	// <nil>
	// true
	// migrations: validate: schema "elsewhere": not there; run migrations.Up
}

func ExampleStatus() {
	example(func(ctx context.Context, db *sql.DB) error {
		status, err := migrations.Status(ctx, db, nil)
		if err != nil {
			return err
		}
		fmt.Println(status[0].Version, status[0].Name, !status[0].AppliedAt.IsZero())
		return nil
	})
	// Output: 1 00001_idem.sql true
}

func ExampleDown() {
	example(func(ctx context.Context, db *sql.DB) error {
		version, err := migrations.Down(ctx, db, nil)
		fmt.Println(version, err)
		return nil
	})
	// Output: 6 <nil>
}

func ExampleFS() {
	files, err := migrations.FS(nil)
	if err != nil {
		panic(err)
	}
	names, err := fs.Glob(files, "*.sql") // os.CopyFS(dir, files) writes them to a folder
	fmt.Println(names, err)
	// Output: [00001_idem.sql 00002_transition.sql 00003_dblock.sql 00004_lease.sql 00005_idem_steps.sql 00006_memory.sql] <nil>
}

func ExampleScript() {
	script, err := migrations.Script(&migrations.Config{Schema: "billing_once"})
	if err != nil {
		panic(err)
	}
	fmt.Println(strings.Contains(script, `CREATE TABLE "billing_once"."idem_record"`))
	// Output: true
}
