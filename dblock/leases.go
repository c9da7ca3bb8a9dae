package dblock

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

const (
	leastLeaseTTL    = 100 * time.Millisecond
	defaultMaxLeases = 10_000
)

// leases is the kind of [NewLeases]: a row for each key that is held. Its statements run on the caller's pool, each on
// whatever connection is free.
type leases struct {
	*engine
	pool  pg.Querier
	begin func(ctx context.Context, first ...pg.Stmt) (ownedTx, error)

	// Under the engine's mutex.
	held     map[int64]*lease // by nonce
	remains  map[int64]row    // of ours, that may be there still and that nobody needs
	beating  bool
	clearing bool
	swept    time.Duration // when rows of crashed processes were last looked for
}

var (
	_ kind   = (*leases)(nil)
	_ ground = (*lease)(nil)
)

// ownedTx is a transaction of ours, without the type that the caller's code knows.
type ownedTx interface {
	Commit(ctx context.Context, last ...pg.Stmt) error
	Rollback(ctx context.Context)
}

// NewLeases makes a client whose locks are leases: rows of a table, which expire. It takes the same drivers as [New],
// and its locks have the same verbs. It needs no session: it works behind a pooler in transaction mode, and uses the
// connections of the caller's pool, each for a statement; one for all heartbeats together. Leave it one to spare: who has them
// all in transactions and then waits for a lock, or its release, waits for himself.
//
// What is different from session locks:
//
//   - A process that dies keeps its locks until they expire, [Config.TTL] after their last heartbeat.
//   - All is by the server's clock. If that jumps forward by more than the margin (a tenth of the TTL), others may be given a
//     lock that its holder has; [Lock.FenceTx] is right all the same. If it goes back, expiry waits for a TTL more.
//   - Taking and giving back are commits, flushed whatever the role's synchronous_commit. A try that fails writes
//     nothing.
//   - Between processes there is no queue: each that waits asks again, at most every quarter of a second, and whoever asks in the
//     right moment has it. In one process callers are served in turn.
//   - Locks are exclusive; [LockConfig.Shared] is refused. MaxWaiters does not apply.
//   - With asynchronous replication a promotion can forget a lease, and grant it twice. The second token is greater.
//
// A client of New and one of NewLeases do not exclude each other, whatever their keys. The kind belongs to the client, so
// that no call can mix them up: use one kind for one space.
//
// Errors: [ErrSchema], [ErrUnavailable], [ErrReadOnly] on a standby or where the role's transactions are read-only by default,
// [ErrUnsupported] for a server older than Postgres 14.
//
// Cost: four round trips. Connections are those of the pool.
func NewLeases[TX any](ctx context.Context, db pg.Driver[TX], cfg *Config) (*Client[TX], error) {
	return open(ctx, "new leases", db, cfg, leastLeaseTTL, func(cfg Config) *engine {
		e := newEngine(ctx, nil, cfg)
		e.kind = &leases{
			engine: e, pool: db.Pool(), held: map[int64]*lease{}, remains: map[int64]row{},
			begin: func(ctx context.Context, first ...pg.Stmt) (ownedTx, error) {
				return db.Begin(ctx, pg.ReadCommitted, first...)
			},
		}
		return e
	})
}

// row names the row of one grant.
type row struct {
	Space string `json:"space"`
	ID    string `json:"id"`
	Nonce int64  `json:"nonce"`
}

func newRow(k Key) row { return row{k.Space, k.ID, rand.Int64()} } //nolint:gosec // it has to be unused, not secret

func (r row) args() []any { return []any{r.Space, r.ID, r.Nonce} }

// array is rows as the argument of a statement.
func array(rows []row) string {
	text, _ := json.Marshal(rows) // of strings and numbers
	return string(text)
}

func (l *leases) shares() bool { return false }

func (l *leases) verify(ctx context.Context) (budget int, err error) {
	var f facts
	var rights bool
	schema := l.cfg.Schema
	err = l.pool.Run(ctx, pg.Stmt{SQL: pg.In(schema, sqlLeaseFacts), Dest: []any{&f.version, &f.standby, &rights}})
	if err == nil && !rights {
		err = pg.JudgeSchema(schema, 0, 0, &pg.Error{Code: pg.CodeNoPrivilege, Err: errors.New("not all the rights that leases need")})
	}
	if err != nil {
		return 0, l.explain(err)
	}
	return defaultMaxLeases, f.check()
}

// start removes what crashed processes have left. If that fails, it is for another time.
func (l *leases) start(context.Context) error {
	l.sweep()
	return nil
}

func (l *leases) shutdown() {
	rows := make([]row, 0, len(l.held)+len(l.remains))
	for _, r := range l.remains {
		rows = append(rows, r)
	}
	for _, held := range l.held {
		rows = append(rows, held.row)
	}
	for _, r := range rows {
		if held := l.held[r.Nonce]; held != nil {
			held.lose(LostClosed, ErrClosed)
		}
	}
	clear(l.remains)
	if len(rows) > 0 {
		l.wg.Go(func() { _, _ = l.free(rows...) })
	}
}

func (l *leases) explain(err error) error { return publicError(pg.ExplainSchema(l.cfg.Schema, err)) }

// trip is the ctx of one request, and of the wait for a connection: no caller's, since its end would cost the pool a
// connection and leave the outcome open.
func (l *leases) trip() (context.Context, context.CancelFunc) {
	ctx := context.WithoutCancel(l.ctx)
	d := min(max(l.life(), time.Second), pg.NetTimeout(ctx))
	return context.WithTimeout(pg.WithNetTimeout(ctx, d), d)
}

// soon is trip for a heartbeat, which has to leave time for another one.
func (l *leases) soon() (context.Context, context.CancelFunc) {
	d := max(l.life()/4, 50*time.Millisecond)
	ctx := pg.WithNetTimeout(context.WithoutCancel(l.ctx), d)
	return context.WithTimeout(ctx, d)
}

// alone runs a statement by itself, which is one round trip.
func (l *leases) alone(ctx context.Context, s pg.Stmt) error {
	s.SQL = pg.In(l.cfg.Schema, s.SQL)
	return l.pool.Run(ctx, s)
}

// inTx runs a statement in a transaction. It is READ COMMITTED whatever the role's default, and Begin works through connections
// of the pool that a restart of the server has killed.
func (l *leases) inTx(ctx context.Context, s pg.Stmt) error {
	tx, err := l.begin(ctx, l.in(s)...)
	if err != nil {
		return err
	}
	return tx.Commit(ctx)
}

func (l *leases) in(stmts ...pg.Stmt) []pg.Stmt {
	for i := range stmts {
		stmts[i].SQL = pg.In(l.cfg.Schema, stmts[i].SQL)
	}
	return stmts
}

// repeatable runs a statement that may be run twice: by itself, and if that fails in a transaction. unsure says that the
// first run may have been one.
func (l *leases) repeatable(trip func() (context.Context, context.CancelFunc), s pg.Stmt) (unsure bool, err error) {
	ctx, cancel := trip()
	defer cancel()
	err = l.alone(ctx, s)
	if err == nil || errors.Is(err, pg.ErrUnavailable) || pg.Code(err) == pg.CodeLockTimeout {
		return false, err
	}
	unsure = !pg.Rejected(err)
	again, cancel := trip()
	defer cancel()
	return unsure, l.inTx(again, s)
}

// free gives rows back, and returns those that were not ours any more. One that a fenced transaction has locked is free
// as soon as that ends; it is kept in mind. One that somebody has locked for longer, for whatever reason, does not keep
// the others.
func (l *leases) free(rows ...row) (missing []row, err error) {
	var gone, marked string
	unsure, err := l.repeatable(l.trip, pg.Stmt{SQL: sqlLeaseFree, Args: []any{array(rows)}, Dest: []any{&gone, &marked}})
	if half := len(rows) / 2; half > 0 && pg.Code(err) == pg.CodeLockTimeout {
		missing, err = l.free(rows[:half]...)
		more, err2 := l.free(rows[half:]...)
		return append(missing, more...), errors.Join(err, err2)
	}
	if err != nil {
		l.keep(rows...)
		return nil, l.explain(err)
	}
	var there, locked []int64
	if err := errors.Join(json.Unmarshal([]byte(gone), &there), json.Unmarshal([]byte(marked), &locked)); err != nil {
		return nil, fmt.Errorf("the server's answer: %w", err)
	}
	for _, r := range rows {
		switch {
		case slices.Contains(locked, r.Nonce):
			l.keep(r)
		case !unsure && !slices.Contains(there, r.Nonce):
			missing = append(missing, r)
		}
	}
	return missing, nil
}

// keep keeps rows in mind that may be there and that nobody needs, to remove them later.
func (l *leases) keep(rows ...row) {
	l.mu.Lock()
	defer l.unlock()
	for _, r := range rows {
		l.remains[r.Nonce] = r
	}
	l.startBeat()
}
