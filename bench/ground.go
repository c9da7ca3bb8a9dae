package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/migrations"
)

// ground is what a run stands on: its servers, its folder, and what it has found out.
type ground struct {
	opt      options
	dir      string // for small files
	postgres *postgres
	redis    *redisServer // nil in a run without
	report   *report
}

// open starts the servers.
func open(ctx context.Context, opt options) (g *ground, err error) {
	g = &ground{opt: opt}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	if g.dir, err = os.MkdirTemp("", "pgonce-bench-"); err != nil {
		return g, err
	}
	if err = os.Chmod(g.dir, 0o755); err != nil { // Postgres has a user of its own
		return g, err
	}
	if opt.profile != "" {
		if err = os.MkdirAll(opt.profile, 0o755); err != nil {
			return g, err
		}
	}
	if g.postgres, err = startPostgres(ctx, opt.dir, g.dir); err != nil {
		return g, err
	}
	if !opt.noRedis {
		if g.redis, err = startRedis(ctx, filepath.Join(g.dir, "redis")); err != nil {
			return g, err
		}
	}
	if err = g.migrate(ctx); err != nil {
		return g, err
	}
	g.report = newReport(g)
	return g, nil
}

func (g *ground) migrate(ctx context.Context) error {
	pool, err := pgxpool.New(ctx, g.postgres.url)
	if err != nil {
		return err
	}
	defer pool.Close()
	_, err = migrations.UpPool(ctx, pool, nil)
	return err
}

// close ends the servers.
func (g *ground) close() error {
	var errs []error
	if g.redis != nil {
		errs = append(errs, g.redis.stop())
	}
	if g.postgres != nil {
		errs = append(errs, g.postgres.server.Stop())
	}
	if g.dir != "" {
		errs = append(errs, os.RemoveAll(g.dir))
	}
	return errors.Join(errs...)
}

// freePort is a port of 127.0.0.1 that nobody uses at the moment.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil //nolint:forcetypeassert // of a TCP listener
}
