package dblock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

const (
	defaultTTL = 15 * time.Second
	leastTTL   = 500 * time.Millisecond
	longestTTL = 24 * time.Hour

	defaultMaxWaiters = 8
	budgetFraction    = 4 // of the server's room for locks, by default
)

// Config tunes a [Client]. A nil *Config is ready to use.
type Config struct {
	// Schema holds the tables, as created by the migrations package. It is part of every lock: two
	// schemas do not exclude each other. Defaults to "pgonce".
	Schema string

	// TTL is how long the server keeps the locks of a process that has fallen silent: frozen, or
	// behind a dead network. The process itself counts its locks as lost a tenth of that, at least 50 ms,
	// before. A process that dies frees its locks at once. Defaults to 15 seconds, at least 500
	// milliseconds, at most 24 hours.
	TTL time.Duration

	// MaxLocks is how many locks this client may have on the server at a time. The server's room for
	// them is shared by all of its clients; where it is used up, the server refuses everybody's
	// work. Defaults to a quarter of it.
	MaxLocks int

	// MaxWaiters is how many connections may be used to wait for locks that other processes hold, and
	// to hold those that were waited for. More keys than that are asked for in turn. Defaults to 8.
	MaxWaiters int

	// Observe is told what becomes of locks, for metrics and traces. It must be quick, and must not
	// call the client. Defaults to nothing.
	Observe func(Event)

	// Logger gets a line for what deserves a look: losses and overruns. Defaults to discarding.
	Logger *slog.Logger
}

// resolved checks the configuration and fills in its defaults.
func (cfg *Config) resolved() (Config, error) {
	var c Config
	if cfg != nil {
		c = *cfg
	}
	if c.Schema == "" {
		c.Schema = pg.DefaultSchema
	}
	if err := pg.CheckSchemaName(c.Schema); err != nil {
		return c, err
	}
	if c.TTL == 0 {
		c.TTL = defaultTTL
	}
	if c.TTL < leastTTL || c.TTL > longestTTL {
		return c, fmt.Errorf("TTL of %v: use %v to %v", c.TTL, leastTTL, longestTTL)
	}
	if c.MaxLocks < 0 || c.MaxWaiters < 0 {
		return c, errors.New("negative limit")
	}
	if c.MaxWaiters == 0 {
		c.MaxWaiters = defaultMaxWaiters
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Client gives out locks of one schema of one database.
type Client[TX any] struct {
	db  pg.Driver[TX]
	cfg Config
}

// New makes a client over a driver: pgxdriver.New(pool), sqldriver.New(db) or sqlxdriver.New(db).
func New[TX any](ctx context.Context, db pg.Driver[TX], cfg *Config) (*Client[TX], error) {
	if db == nil {
		return nil, errors.New("dblock: new: nil driver: pass pgxdriver.New(pool), sqldriver.New(db) or sqlxdriver.New(db)")
	}
	if err := db.Err(); err != nil {
		return nil, fmt.Errorf("dblock: new: %w", err)
	}
	resolved, err := cfg.resolved()
	if err != nil {
		return nil, fmt.Errorf("dblock: new: %w", err)
	}
	return &Client[TX]{db: db, cfg: resolved}, pg.CheckSchema(ctx, db.Pool(), resolved.Schema)
}
