package migrations_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/migrations"
	"github.com/pressly/goose/v3"
)

// Up and Down may be mixed with the other ways in, in any order.
func TestWaysCanBeMixed(t *testing.T) {
	t.Parallel()
	steps := map[string]func(t *testing.T, db *pgtest.DB, std *sql.DB) error{
		"Up": func(t *testing.T, _ *pgtest.DB, std *sql.DB) error {
			t.Helper()
			_, err := migrations.Up(t.Context(), std, nil)
			return err
		},
		"Down": func(t *testing.T, _ *pgtest.DB, std *sql.DB) error {
			t.Helper()
			_, err := migrations.Down(t.Context(), std, nil)
			return err
		},
		"UpTx": func(t *testing.T, _ *pgtest.DB, std *sql.DB) error {
			t.Helper()
			tx, err := std.BeginTx(t.Context(), nil)
			if err != nil {
				return err
			}
			return errors.Join(migrations.UpTx(t.Context(), tx, nil), tx.Commit())
		},
		"drop": func(t *testing.T, db *pgtest.DB, _ *sql.DB) error {
			t.Helper()
			db.Exec(t, `DROP TABLE pgonce.idem_record, pgonce.idem_purge, pgonce.idem_forgotten, pgonce.transition, pgonce.epoch, pgonce.lease, pgonce.idem_worker, pgonce.idem_lease, pgonce.idem_step, pgonce.idem_resolution, pgonce.schema_version`)
			return nil
		},
	}
	for _, order := range []string{"Up Down UpTx Up Down Up", "Up Down Down UpTx Down Up", "Up drop Up", "UpTx Up Down UpTx Down Up", "Up drop UpTx Up Down Up"} {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewEmpty(t)
			std := db.SQL(t)
			for i, step := range strings.Fields(order) {
				if err := steps[step](t, db, std); err != nil {
					t.Fatalf("step %d, %s: %v", i+1, step, err)
				}
			}
			if err := migrations.Validate(t.Context(), std, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestUpAdoptsWhatCameAnotherWay(t *testing.T) {
	t.Parallel()
	ways := map[string]func(t *testing.T, db *pgtest.DB, std *sql.DB) error{
		"Script with psql": func(t *testing.T, db *pgtest.DB, _ *sql.DB) error {
			t.Helper()
			script, err := migrations.Script(nil)
			if err == nil {
				db.Exec(t, script)
			}
			return err
		},
		"UpTx in a goose timeline": func(t *testing.T, _ *pgtest.DB, std *sql.DB) error {
			t.Helper()
			step := goose.NewGoMigration(42, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
				return migrations.UpTx(ctx, tx, nil)
			}}, nil)
			p, err := goose.NewProvider(goose.DialectPostgres, std, nil, goose.WithGoMigrations(step), goose.WithLogger(goose.NopLogger()))
			if err != nil {
				return err
			}
			_, err = p.Up(t.Context())
			return err
		},
		"files copied into a goose timeline": func(t *testing.T, db *pgtest.DB, std *sql.DB) error {
			t.Helper()
			db.Exec(t, `CREATE SCHEMA pgonce`)
			files, err := migrations.FS(nil)
			if err != nil {
				return err
			}
			dir := t.TempDir()
			if err := os.CopyFS(dir, files); err != nil {
				return err
			}
			p, err := goose.NewProvider(goose.DialectPostgres, std, os.DirFS(dir), goose.WithLogger(goose.NopLogger()))
			if err != nil {
				return err
			}
			_, err = p.Up(t.Context())
			return err
		},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewEmpty(t)
			std := db.SQL(t)
			if err := way(t, db, std); err != nil {
				t.Fatal(err)
			}
			if err := migrations.Validate(t.Context(), std, nil); err != nil {
				t.Fatal(err)
			}
			applied, err := migrations.Up(t.Context(), std, nil)
			if err != nil || len(applied) != 0 {
				t.Errorf("Up afterwards: applied %v, %v; want nothing left to do", applied, err)
			}
		})
	}
}
