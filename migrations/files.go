package migrations

import (
	"archive/zip"
	"bytes"
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/pgonce/pgonce/internal/pg"
)

//go:embed sql/*.sql
var embedded embed.FS

// FS is the migrations as goose files, for the Config's schema: for review, or for
// a runner of your own. os.CopyFS writes them to a folder. The schema must exist
// before they are run; they do not create it.
func FS(cfg *Config) (fs.FS, error) {
	schema, err := cfg.schema()
	if err != nil {
		return nil, fmt.Errorf("migrations: files: %w", err)
	}
	names, err := fs.Glob(embedded, "sql/*.sql")
	if err != nil {
		return nil, err
	}
	var archive bytes.Buffer // a zip archive is the standard library's fs.FS in memory
	w := zip.NewWriter(&archive)
	for _, name := range names {
		text, err := embedded.ReadFile(name)
		if err != nil {
			return nil, err
		}
		f, err := w.Create(path.Base(name))
		if err != nil {
			return nil, err
		}
		if _, err := f.Write([]byte(pg.In(schema, string(text)))); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return zip.NewReader(bytes.NewReader(archive.Bytes()), int64(archive.Len()))
}

// Script is the whole schema as one plain SQL text, in a transaction of its own, for
// psql and for review. It fails, and changes nothing, where the tables exist already.
func Script(cfg *Config) (string, error) {
	schema, err := cfg.schema()
	if err != nil {
		return "", fmt.Errorf("migrations: script: %w", err)
	}
	files, err := load(schema)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("BEGIN;\n\n" + strings.Replace(pg.In(schema, sqlCreateSchema), "SCHEMA", "SCHEMA IF NOT EXISTS", 1) + ";\n")
	for _, f := range files {
		fmt.Fprintf(&b, "\n-- %s\n%s", f.Name, f.up)
	}
	b.WriteString("\nCOMMIT;\n")
	return b.String(), nil
}

// UpTx applies what is missing inside the caller's transaction, so that it can be
// a step of a goose timeline of your own:
//
//	goose.NewGoMigration(42, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
//		return migrations.UpTx(ctx, tx, nil)
//	}}, nil)
//
// When a new release of the library brings migrations, add another such step. It never
// commits; it holds the migration lock until the transaction ends. The transaction must be READ
// COMMITTED, so that it sees what another process did while it waited for the lock.
func UpTx(ctx context.Context, tx *sql.Tx, cfg *Config) error {
	schema, err := cfg.schema()
	if err != nil {
		return fmt.Errorf("migrations: up: %w", err)
	}
	if tx == nil {
		return errors.New("migrations: up: nil *sql.Tx")
	}
	var level string
	if err := tx.QueryRowContext(ctx, sqlIsolation).Scan(&level); err != nil {
		return fmt.Errorf("migrations: up: %w", err)
	}
	if level != "read committed" && level != "read uncommitted" {
		return fmt.Errorf("migrations: up: the transaction is %s: begin it with READ COMMITTED", level)
	}
	if err := createSchema(ctx, tx, schema); err != nil {
		return fmt.Errorf("migrations: up: %w", err)
	}
	status, err := statusOf(ctx, tx, schema)
	if err != nil {
		return fmt.Errorf("migrations: up: %w", err)
	}
	for _, m := range status {
		if !m.AppliedAt.IsZero() {
			continue
		}
		if _, err := tx.ExecContext(ctx, m.up); err != nil {
			return fmt.Errorf("migrations: up %s: %w", m.Name, err)
		}
	}
	return nil
}

// file is one migration with the SQL of its Up section.
type file struct {
	Migration
	up string
}

// load reads the files in order and cuts out their Up sections. goose's other
// annotations are comments to everybody else.
func load(schema string) ([]file, error) {
	names, err := fs.Glob(embedded, "sql/*.sql")
	if err != nil {
		return nil, err
	}
	files := make([]file, 0, len(names))
	for _, full := range names {
		text, err := embedded.ReadFile(full)
		if err != nil {
			return nil, err
		}
		name := path.Base(full)
		number, _, _ := strings.Cut(name, "_")
		version, err := strconv.Atoi(number)
		if err != nil {
			return nil, fmt.Errorf("migrations: file %s: %w", name, err)
		}
		up, _, _ := strings.Cut(pg.In(schema, string(text)), "-- +goose Down")
		up = strings.TrimPrefix(up, "-- +goose Up\n")
		files = append(files, file{Migration{Version: version, Name: name}, up})
	}
	return files, nil
}
