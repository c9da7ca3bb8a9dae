package idem

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

const (
	defaultPurgeEvery = time.Hour
	defaultPurgePause = 100 * time.Millisecond
	defaultPurgePages = 128
	mostPurgePages    = 10_000

	purgeRoom   = 1500    // bytes of a page that new versions may fill: the fifth that fillfactor leaves, less some
	purgeLockMS = "1000"  // for rows that others hold
	purgeIdleMS = "10000" // then the server ends the transaction of a purger that has vanished
)

// PurgeStats is what a purge did.
type PurgeStats struct {
	Scanned int64 // rows looked at; a page with many small results is looked at more than once
	Cleared int64 // results dropped, after ReplayFor
	Deleted int64 // keys forgotten, after RememberFor
	Batches int64 // transactions
	Skipped int64 // ranges of pages left to the next pass, because somebody held rows in them
}

func (p *PurgeStats) add(more PurgeStats) {
	p.Scanned += more.Scanned
	p.Cleared += more.Cleared
	p.Deleted += more.Deleted
	p.Batches += more.Batches
	p.Skipped += more.Skipped
}

// checkPurge fills in the defaults of a purge and refuses what makes no sense.
func (c *Config) checkPurge() error {
	if c.PurgeEvery < 0 || c.PurgePause < 0 || c.PurgePages < 0 || c.PurgePages > mostPurgePages {
		return fmt.Errorf("PurgeEvery %v, PurgePause %v and PurgePages %d must not be negative, nor more than %d pages",
			c.PurgeEvery, c.PurgePause, c.PurgePages, mostPurgePages)
	}
	if c.PurgeEvery == 0 {
		c.PurgeEvery = defaultPurgeEvery
	}
	if c.PurgePause == 0 {
		c.PurgePause = defaultPurgePause
	}
	if c.PurgePages == 0 {
		c.PurgePages = defaultPurgePages
	}
	return nil
}

// PurgeOnce goes through the whole table once. It drops the results whose ReplayFor is over and forgets the keys
// whose RememberFor is over, by the database's clock. Keys whose outcome is unknown stay. It is for those who have a
// scheduler; [Store.Maintain] does the same again and again.
//
// It works in small transactions, of [Config.PurgePages] pages each, with a pause of [Config.PurgePause] after
// each. Where it stands is in the database, so a purge that was broken off is taken up there, and
// any number of purgers share the work. It returns when everything that was due at its call has
// had its turn, whoever did it. Rows that others hold for more than a second are left to the next pass.
//
// No call of [Do] is kept from its answer. One that executes a key anew which is just being forgotten waits for the end
// of that transaction.
//
// The figures are valid beside an error, too. Errors: [ErrReadOnly], [ErrSchema] (also for a role that may not delete),
// [ErrUnavailable], the end of ctx.
//
// Cost on pgx: a batch is 3 round trips and one commit, with one update of the row that says where the purge stands. A
// dropped result is a HOT update, so no index is written to; a forgotten key is one DELETE, which VACUUM cleans up. On
// database/sql: 7. Locks: the rows that are changed, until the end of the batch.
func (s *Store[TX]) PurgeOnce(ctx context.Context) (stats PurgeStats, err error) {
	var end position
	for first := true; ; {
		b, err := s.purge(ctx, nobody)
		stats.add(b.PurgeStats)
		if err != nil {
			return stats, publishPurge("purge", s.cfg.Schema, err)
		}
		if first && !b.busy {
			first, end = false, position{b.from.pass + 1, b.from.block}
		}
		if !first && !b.to.before(end) {
			return stats, nil
		}
		if rest(ctx, s.cfg.PurgePause) != nil {
			return stats, fmt.Errorf("idem: purge: %w", context.Cause(ctx))
		}
	}
}

// position is where the purge stands.
type position struct{ pass, block int64 }

func (p position) before(q position) bool {
	return p.pass < q.pass || p.pass == q.pass && p.block < q.block
}

// nobody is the worker of a purge that leaves the turn to whoever has it.
const nobody int64 = 0

// batch is one transaction of a purge.
type batch struct {
	PurgeStats
	from, to position
	left     int64         // results that the pages have no room for now
	worker   int64         // whose turn it is
	busy     bool          // others are at work, or it is not time yet
	wait     time.Duration // until there is something to do
}

// dueTo says whether a worker may do the next batch. Who has come by himself need not ask whose turn it is.
func (b *batch) dueTo(me int64) bool {
	switch {
	case me == nobody:
		return true
	case b.worker == nobody || b.worker == me:
		return b.wait <= 0
	}
	return b.wait <= -takeOver
}

// purge does one batch. One that meets rows which others hold is rolled back, and its pages are left to
// the next pass, so that one forgotten transaction does not keep everything else from being purged.
func (s *Store[TX]) purge(ctx context.Context, me int64) (batch, error) {
	if _, err := s.ready(ctx); err != nil {
		return batch{}, err
	}
	b, err := s.purgeTx(ctx, me, nil)
	switch pg.Code(err) {
	case pg.CodeLockTimeout, pg.CodeDeadlock:
		return s.purgeTx(ctx, me, &b.from)
	}
	return b, err
}

// purgeTx is the transaction of a batch. The row of idem_purge stays locked until its end, so no two purgers
// are at the same pages; and where the purge stands is committed with what was purged, so a crash
// loses neither. skip are pages that are not to be touched, if it is still their turn.
func (s *Store[TX]) purgeTx(ctx context.Context, me int64, skip *position) (b batch, err error) {
	tx, pages, err := s.takePurge(ctx, &b)
	if err != nil || b.busy {
		return b, err
	}
	defer tx.Rollback(ctx) // after Commit it does nothing
	if b.busy = !b.dueTo(me); b.busy {
		return b, nil
	}
	b.to = position{b.from.pass, min(b.from.block+int64(s.cfg.PurgePages), pages)}
	switch {
	case skip != nil && *skip == b.from:
		b.Skipped = 1
	case b.from.block < pages:
		if err := tx.RunAll(ctx, s.purgeStmts(&b)...); err != nil {
			return batch{from: b.from}, err
		}
	}
	b.Scanned += b.Deleted
	b.wait = s.cfg.PurgePause
	switch {
	case b.left > 0 && b.Cleared > 0:
		b.to = b.from // there will be room again
	case b.to.block >= pages:
		b.to, b.wait = position{b.from.pass + 1, 0}, s.cfg.PurgeEvery
	}
	if me != nobody {
		b.worker = me
	}
	b.Batches = 1
	if err := tx.Commit(ctx, s.advanceStmt(&b)); err != nil {
		return batch{from: b.from}, err
	}
	return b, nil
}

// takePurge begins a batch. It is busy when somebody else holds the row of idem_purge.
func (s *Store[TX]) takePurge(ctx context.Context, b *batch) (tx pg.OwnedTx[TX], pages int64, err error) {
	var (
		found int64
		due   float64
		set   [4]string
	)
	tx, err = s.db.Begin(ctx, ReadCommitted, pg.Stmt{
		SQL: pg.In(s.cfg.Schema, sqlPurgeTake), Args: []any{purgeLockMS, purgeIdleMS, s.checked.Load().checkInterval},
		Dest: []any{&b.from.block, &b.from.pass, &b.worker, &due, &pages, &set[0], &set[1], &set[2], &set[3]},
		Rows: &found,
	})
	if err != nil {
		return nil, 0, err
	}
	b.wait = fromSeconds(due)
	if found == 0 {
		tx.Rollback(ctx)
		_, err = s.purgeState(ctx)
		b.busy, b.wait = true, s.cfg.PurgePause
	}
	return tx, pages, err
}

// purgeStmts purge the pages of a batch. What is to be deleted goes first: there is no sense in a new version of it.
func (s *Store[TX]) purgeStmts(b *batch) []pg.Stmt {
	from, to := fmt.Sprintf("(%d,0)", b.from.block), fmt.Sprintf("(%d,0)", b.to.block)
	return []pg.Stmt{
		{SQL: pg.In(s.cfg.Schema, sqlPurgeDelete), Args: []any{from, to}, Rows: &b.Deleted},
		{SQL: pg.In(s.cfg.Schema, sqlPurgeClear), Args: []any{from, to, int64(purgeRoom)}, Rows: &b.Cleared},
		{SQL: pg.In(s.cfg.Schema, sqlPurgeLook), Args: []any{from, to}, Dest: []any{&b.Scanned, &b.left}},
	}
}

func (s *Store[TX]) advanceStmt(b *batch) pg.Stmt {
	return pg.Stmt{SQL: pg.In(s.cfg.Schema, sqlPurgeAdvance), Args: []any{
		b.to.block, b.to.pass - b.from.pass, b.worker, b.wait.Seconds(), b.from.block == 0, b.Cleared, b.Deleted,
	}}
}

// purgeState reads whose turn it is, and when, without taking it.
func (s *Store[TX]) purgeState(ctx context.Context) (b batch, err error) {
	var (
		found int64
		due   float64
	)
	err = s.db.Pool().Run(ctx, pg.Stmt{
		SQL: pg.In(s.cfg.Schema, sqlPurgeState), Dest: []any{&b.worker, &due, &b.from.pass, &b.from.block}, Rows: &found,
	})
	if err == nil && found == 0 {
		err = &pg.SchemaError{
			Schema: s.cfg.Schema, Want: pg.SchemaVersion, Reason: "idem_purge has lost its row",
			Fix: fmt.Sprintf("run, as its owner: INSERT INTO %q.idem_purge (id) VALUES (1)", s.cfg.Schema),
		}
	}
	b.wait = fromSeconds(due)
	return b, err
}

func fromSeconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// rest waits for d, or until ctx ends.
func rest(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// publishPurge is publish for what is about no key.
func publishPurge(verb, schema string, err error) error {
	switch {
	case pg.Code(err) == pg.CodeReadOnlyTx:
		err = fmt.Errorf("%w: %w", ErrReadOnly, err)
	case pg.Rejected(err):
		err = pg.ExplainSchema(schema, err)
	case errors.Is(err, ErrUnavailable), errors.Is(err, ErrSchema), isContextEnd(err):
	default:
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return fmt.Errorf("idem: %s: %w", verb, err)
}

// leavePurge gives up the turn, if me has it. It survives the end of ctx.
func (s *Store[TX]) leavePurge(ctx context.Context, me int64) error {
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	return s.db.Pool().Run(tctx, pg.Stmt{SQL: pg.In(s.cfg.Schema, sqlPurgeLeave), Args: []any{me}})
}
