package idem

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// Codec turns results into what is stored, and back.
type Codec interface {
	Encode(v any) ([]byte, error)
	Decode(data []byte, into any) error
}

// Config tunes a [Store]. A nil *Config is ready to use.
type Config struct {
	// Schema holds the tables, as created by the migrations package. Defaults to "pgonce".
	Schema string

	// HideIDs keeps the ids of keys out of the table; only a digest of 16 bytes is stored.
	// Defaults to storing them in clear, for people who look.
	HideIDs bool

	// Lease is for how long the keys that [RunSteps] executes stay this process's own after its last
	// heartbeat, which comes every third of it. So it is how long the keys of a process that was killed wait for another one. 1 second
	// to 1 hour; all processes may have their own. Defaults to 30 seconds.
	Lease time.Duration

	// PurgeEvery is how long [Store.Maintain] rests when it has been through the table. Defaults to 1 hour.
	PurgeEvery time.Duration

	// PurgePause is how long a purge rests between two batches, and so how much of the server is left to others.
	// Defaults to 100 ms.
	PurgePause time.Duration

	// PurgePages is how many pages of the table (8 kB each) a purge goes through in one transaction. Defaults to 128,
	// at most 10,000.
	PurgePages int

	// Codec encodes results. All processes that share keys must use the same.
	// Defaults to JSON.
	Codec Codec

	// Observe is told what becomes of each call, for metrics and traces. It runs on the caller's
	// goroutine, when no transaction of ours is open; for DoTx and SeenTx, the caller's is. So it should be
	// quick, and must not touch that. Defaults to nothing.
	Observe func(Event)

	// Logger gets a line for what deserves a look but does not stop a call. Defaults to
	// discarding.
	Logger *slog.Logger
}

// Store keeps keys in one schema of one database. It holds no connection and runs no
// goroutine of its own, but for one that renews leases while a call of [RunSteps] is under way; it is as light as the driver it
// was made from. Safe for concurrent use.
type Store[TX any] struct {
	db      pg.Driver[TX]
	cfg     Config
	sql     statements
	checked atomic.Pointer[server] // what the first call has found out
	queue   queue

	txMu sync.Mutex
	inTx map[any]*frame // by transaction, the innermost call that executes in it

	schemaChecked atomic.Bool  // by a call in a transaction, which does not probe the server
	waiters       atomic.Int64 // calls that hold a connection only to wait

	workers  *workers // of RunSteps
	combiner combiner
	handlers handlers[TX]
	look     time.Duration // between two looks of the completer
}

// server is what a store knows about its database after its first call.
type server struct {
	checkInterval string // for client_connection_check_interval, in ms
}

// statements are the constants of sql.go for the store's schema.
type statements struct {
	lookup, whose, insert, insertSettled, seen, xid string

	workerNew, workerBeat, workerBury, workersForget                     string
	claim, lease, takeLock, take, die, leave, drop, dropStale, abandoned string
	steps, store, own, storeTx, step, finish                             string
	stuck, resolveLock, revive, resolveStep, resolution, resolveRecord   string
}

// New makes a store over a driver: pgxdriver.New(pool), sqldriver.New(db) or
// sqlxdriver.New(db). It does not touch the database; the first call checks the schema, or
// [Store.Validate] before that. Errors: [ErrSchema] for a name that cannot be one, and
// a driver that was made from nothing.
func New[TX any](db pg.Driver[TX], cfg *Config) (*Store[TX], error) {
	if db == nil {
		return nil, errors.New("idem: new: nil driver: pass pgxdriver.New(pool), sqldriver.New(db) or sqlxdriver.New(db)")
	}
	if err := db.Err(); err != nil {
		return nil, fmt.Errorf("idem: new: %w", err)
	}
	s := &Store[TX]{db: db}
	if cfg != nil {
		s.cfg = *cfg
	}
	if s.cfg.Schema == "" {
		s.cfg.Schema = pg.DefaultSchema
	}
	if err := pg.CheckSchemaName(s.cfg.Schema); err != nil {
		return nil, fmt.Errorf("idem: new: %w", err)
	}
	if err := s.cfg.checkPurge(); err != nil {
		return nil, fmt.Errorf("idem: new: %w", err)
	}
	if s.cfg.Codec == nil {
		s.cfg.Codec = jsonCodec{}
	}
	if s.cfg.Logger == nil {
		s.cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if s.cfg.Lease == 0 {
		s.cfg.Lease = defaultLease
	}
	if s.cfg.Lease < shortestLease || s.cfg.Lease > longestLease {
		return nil, fmt.Errorf("idem: new: Config.Lease is %v: use %v to %v, or 0 for %v", s.cfg.Lease, shortestLease, longestLease, defaultLease)
	}
	s.look = completerLook
	s.sql = statementsIn(s.cfg.Schema)
	s.workers = newWorkers(db.Pool(), &s.sql, s.cfg.Lease)
	return s, nil
}

func statementsIn(schema string) statements {
	in := func(sql string) string { return pg.In(schema, sql) }
	return statements{
		lookup: in(sqlLookup), whose: in(sqlWhose), insert: in(sqlInsert), insertSettled: in(sqlInsertSettled), seen: in(sqlSeen), xid: in(sqlXIDIfNew),

		workerNew: in(sqlWorkerNew), workerBeat: in(sqlWorkerBeat), workerBury: in(sqlWorkerBury), workersForget: in(sqlWorkersForget),
		claim: in(sqlClaim), lease: in(sqlLease), takeLock: in(sqlTakeLock), take: in(sqlTake), die: in(sqlDie),
		leave: in(sqlLeave), drop: in(sqlDrop), dropStale: in(sqlDropStale), abandoned: in(sqlAbandoned),
		steps: in(sqlSteps), store: in(sqlStore), own: in(sqlOwn), storeTx: in(sqlStoreTx), step: in(sqlStep), finish: in(sqlFinish),
		stuck: in(sqlStuck), resolveLock: in(sqlResolveLock), revive: in(sqlRevive), resolveStep: in(sqlResolveStep), resolution: in(sqlResolution), resolveRecord: in(sqlResolveRecord),
	}
}

// Validate checks that this code can work with the schema in the database, and
// says what to run where it cannot ([ErrSchema]). Call it at start. Two round trips.
func (s *Store[TX]) Validate(ctx context.Context) error {
	if _, err := s.inspect(ctx); err != nil {
		return fmt.Errorf("idem: validate: %w", err)
	}
	return nil
}

// ready is Validate for the first call; the calls after that pay nothing.
func (s *Store[TX]) ready(ctx context.Context) (*server, error) {
	if srv := s.checked.Load(); srv != nil {
		return srv, nil
	}
	return s.inspect(ctx)
}

// readyTx checks the schema in the caller's transaction, for the first call. A connection of our own
// could not be had from a pool whose last one the caller is using.
func (s *Store[TX]) readyTx(ctx context.Context, tx pg.Querier) error {
	if s.checked.Load() != nil || s.schemaChecked.Load() {
		return nil
	}
	err := pg.CheckSchema(ctx, tx, s.cfg.Schema)
	s.schemaChecked.Store(err == nil)
	return err
}

// inspect checks the schema and probes the server.
func (s *Store[TX]) inspect(ctx context.Context) (*server, error) {
	if err := pg.CheckSchema(ctx, s.db.Pool(), s.cfg.Schema); err != nil {
		return nil, err
	}
	srv := &server{checkInterval: "500"}
	err := s.db.Pool().Run(ctx, pg.Stmt{SQL: sqlProbeCheck, Args: []any{srv.checkInterval}})
	switch {
	case pg.Code(err) == pg.CodeInvalidValue: // the server's platform cannot do it
		srv.checkInterval = "0"
	case pg.Rejected(err):
		return nil, err
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("%w: %w: %w", ErrUnavailable, context.Cause(ctx), err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	s.checked.Store(srv)
	return srv, nil
}

type jsonCodec struct{}

func (jsonCodec) Encode(v any) ([]byte, error)       { return json.Marshal(v) }
func (jsonCodec) Decode(data []byte, into any) error { return json.Unmarshal(data, into) }
