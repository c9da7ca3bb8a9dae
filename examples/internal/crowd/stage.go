package crowd

import (
	"context"
	"database/sql"
	"errors"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/riverqueue/river"
)

// Stage is where a storm takes place: instances of a service, workers of a queue, a crowd, and what goes wrong.
type Stage struct {
	*demo.Ground
	Name   string // what the server processes of the service are called
	Crowd  *Crowd
	Faults *Faults // nil if nothing does

	ends []func()
}

// Connect opens a pool for an instance, which Close closes.
func (s *Stage) Connect(ctx context.Context) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(s.URL)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = 8
	cfg.ConnConfig.RuntimeParams["application_name"] = s.Name
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err == nil {
		s.AtEnd(pool.Close)
	}
	return pool, err
}

// ConnectSQL opens a pool of database/sql for an instance, which Close closes.
func (s *Stage) ConnectSQL() (*sql.DB, error) {
	cfg, err := pgx.ParseConfig(s.URL)
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["application_name"] = s.Name
	db := stdlib.OpenDB(*cfg)
	db.SetMaxOpenConns(12)
	db.SetMaxIdleConns(12)
	s.AtEnd(func() { _ = db.Close() })
	return db, nil
}

// Listen starts an instance.
func (s *Stage) Listen(h http.Handler) error {
	in, err := Listen("", h)
	if err == nil {
		s.Crowd.URLs = append(s.Crowd.URLs, in.URL)
		s.AtEnd(in.Close)
	}
	return err
}

// Work starts a worker of a queue.
func (s *Stage) Work(ctx context.Context, queue *river.Client[pgx.Tx]) error {
	if err := queue.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	s.AtEnd(func() { _ = queue.StopAndCancel(context.WithoutCancel(ctx)) })
	return nil
}

// AtEnd registers what Close does.
func (s *Stage) AtEnd(end func()) { s.ends = append(s.ends, end) }

// Close ends everything, last things first. It may be called twice.
func (s *Stage) Close() {
	for len(s.ends) > 0 {
		last := len(s.ends) - 1
		s.ends[last]()
		s.ends = s.ends[:last]
	}
}

// Blow sends n requests as [Crowd.Ask] does, while things break. An error means that not everybody was answered.
func (s *Stage) Blow(ctx context.Context, n int, request func(i int, url string) (*http.Request, error), told func(i int, a Answer)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	broken := make(chan error, 1)
	go func() {
		var err error
		if s.Faults != nil {
			before := s.Crowd.Asked.Load()
			err = s.Faults.Run(ctx, func() int64 { return s.Crowd.Asked.Load() - before }, n, 15)
		}
		if err != nil {
			cancel()
		}
		broken <- err
	}()
	s.Crowd.Ask(ctx, n, request, told)
	ended := ctx.Err()
	if ended != nil {
		cancel()
	}
	return errors.Join(<-broken, ended)
}
