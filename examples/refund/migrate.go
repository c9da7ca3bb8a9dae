package main

import (
	"context"
	"embed"
	"io/fs"
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgonce/pgonce/examples/refund/payment"
	"github.com/pgonce/pgonce/migrations"
	"github.com/pressly/goose/v3"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

//go:embed migrations/*.sql
var shopMigrations embed.FS

// migrate creates the library's tables, the shop's and the queue's, each with a timeline of its own.
func migrate(ctx context.Context, pool *pgxpool.Pool) error {
	if _, err := migrations.UpPool(ctx, pool, nil); err != nil {
		return err
	}
	db := stdlib.OpenDBFromPool(pool)
	defer func() { _ = db.Close() }()
	files, err := fs.Sub(shopMigrations, "migrations")
	if err != nil {
		return err
	}
	shop, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithTableName("refund_goose"), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return err
	}
	if _, err := shop.Up(ctx); err != nil {
		return err
	}
	queue, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{
		Schema: payment.QueueSchema, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	_, err = queue.Migrate(ctx, rivermigrate.DirectionUp, nil)
	return err
}
