package dblock

import (
	"cmp"
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
	// before. A process that dies frees its session locks at once, and its leases after the TTL. Defaults to 15
	// seconds, at least 500 milliseconds (leases: 100), at most 24 hours.
	TTL time.Duration

	// MaxLocks is how many locks this client may have on the server at a time. The server's room for
	// them is shared by all of its clients; where it is used up, the server refuses everybody's
	// work. Defaults to a quarter of it. Leases are rows and have no such room: for them it is how many one
	// heartbeat renews, by default 10,000.
	MaxLocks int

	// MaxWaiters is how many connections may be used to wait for locks that other processes hold, and
	// to hold those that were waited for. More keys than that are asked for in turn. Defaults to 8. Leases
	// use none.
	//
	// With them a client of [New] has one connection for each 1,000 locks that it holds, and two at least if it shares locks: with a MaxLocks
	// of up to 2,000 at most 2 + 8 by default. It opens them when they are needed, keeps one for good, and closes the others after a third of the TTL without use.
	// On pgx they come from nobody's pool: the server's max_connections must have room. On database/sql they
	// are taken out of the pool, and SetMaxOpenConns has to leave as many as your own work needs while it holds locks and
	// waits for others. Otherwise those who wait for locks have the connections that the holders wait for. A
	// client that gets no connection within 15 seconds says so: [ErrUnavailable].
	MaxWaiters int

	// Holder names this process to who asks for the holder of a lock ([Client.Inspect]): 1 to 63 bytes of
	// printable UTF-8. Defaults to "host/pid program". Leases store it in their rows; for session locks it is in the
	// application_name of the client's connections, cut to what fits.
	Holder string

	// Observe is told what becomes of locks, for metrics and traces. It must be quick, and must not
	// call the client. It is called by the goroutines of callers and of the client. A panic of it ends the program, unless it comes out of
	// a verb whose caller recovers: then what that verb would have acquired is given back. Defaults to nothing.
	Observe func(Event)

	// Logger gets a line for what deserves a look: losses, overruns and leaks. Defaults to discarding.
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
	if c.TTL < 0 || c.TTL > longestTTL {
		return c, fmt.Errorf("TTL of %v: use at most %v", c.TTL, longestTTL)
	}
	if c.MaxLocks < 0 || c.MaxWaiters < 0 {
		return c, errors.New("negative limit")
	}
	if c.MaxWaiters == 0 {
		c.MaxWaiters = defaultMaxWaiters
	}
	if c.Holder == "" {
		c.Holder = defaultHolder()
	}
	if reason := pg.Fault(c.Holder, maxHolder); reason != "" {
		return c, fmt.Errorf("Config.Holder %s", reason)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Client gives out locks of one schema of one database, all of one kind: session locks ([New]) or leases ([NewLeases]).
// One of session locks owns the connections that hold them, a few for thousands of locks. On pgx they are beside the caller's pool, on database/sql they come out of it and stay out.
// Safe for concurrent use. Close it when done.
type Client[TX any] struct {
	db     pg.Driver[TX]
	engine *engine
}

// New makes a client over a driver: pgxdriver.New(pool), sqldriver.New(db) or sqlxdriver.New(db). It opens
// two connections for a moment to find out whether locks hold here, and one to stay.
//
// Errors: [ErrSchema], [ErrUnavailable], [ErrReadOnly] on a standby, [ErrSessionNotPinned] behind a pooler in
// transaction mode, [ErrUnsupported] where advisory locks do not exclude, [ErrCapacity] for a MaxLocks beyond the
// server's room. It never falls back to another kind of lock, such as [NewLeases]: two processes on different kinds would not
// exclude each other.
func New[TX any](ctx context.Context, db pg.Driver[TX], cfg *Config) (*Client[TX], error) {
	return open(ctx, "new", db, cfg, leastTTL, func(cfg Config) *engine { return newEngine(ctx, db.Session, cfg) })
}

// open makes a client with the engine that newEngine makes of the configuration.
func open[TX any](ctx context.Context, verb string, db pg.Driver[TX], cfg *Config, least time.Duration, newEngine func(Config) *engine) (*Client[TX], error) {
	if db == nil {
		return nil, fmt.Errorf("dblock: %s: nil driver: pass pgxdriver.New(pool), sqldriver.New(db) or sqlxdriver.New(db)", verb)
	}
	if err := db.Err(); err != nil {
		return nil, fmt.Errorf("dblock: %s: %w", verb, err)
	}
	resolved, err := cfg.resolved()
	if err == nil && resolved.TTL < least {
		err = fmt.Errorf("TTL of %v: use %v to %v", resolved.TTL, least, longestTTL)
	}
	if err != nil {
		return nil, fmt.Errorf("dblock: %s: %w", verb, err)
	}
	c := &Client[TX]{db: db, engine: newEngine(resolved)}
	if err := c.start(ctx); err != nil {
		return nil, fmt.Errorf("dblock: %s: %w", verb, errors.Join(err, c.engine.close(context.WithoutCancel(ctx))))
	}
	return c, nil
}

// start finds out whether locks hold here, and sets the budget.
func (c *Client[TX]) start(ctx context.Context) error {
	budget, err := c.verify(ctx)
	if err != nil {
		return err
	}
	c.engine.budget = cmp.Or(c.engine.cfg.MaxLocks, budget)
	return c.engine.kind.start(ctx)
}

// Verify checks again what [New] or [NewLeases] has checked: the schema, the server and what is between here and
// there. Same errors. For session locks: six round trips and more, two connections for a moment. For leases: two round trips.
func (c *Client[TX]) Verify(ctx context.Context) error {
	if _, err := c.verify(ctx); err != nil {
		return fmt.Errorf("dblock: verify: %w", err)
	}
	return nil
}

func (c *Client[TX]) verify(ctx context.Context) (budget int, err error) {
	if err := pg.CheckSchema(ctx, c.db.Pool(), c.engine.cfg.Schema); err != nil {
		return 0, err
	}
	return c.engine.kind.verify(ctx)
}

// Close refuses new callers and those that wait ([ErrClosed]), ends the context of every lock that is held, gives
// all of them back and closes the client's connections. It returns when that is done, or when ctx ends; then the rest is
// done behind its back. It may be called again.
func (c *Client[TX]) Close(ctx context.Context) error {
	if err := c.engine.close(ctx); err != nil {
		return fmt.Errorf("dblock: close: %w", err)
	}
	return nil
}
