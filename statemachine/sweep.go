package statemachine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// SweepConfig says how a [Binding.Sweep] goes about it.
type SweepConfig struct {
	// Limit is how many rows one Sweep moves at most. Defaults to 1000.
	Limit int

	// Batch is how many rows a transaction takes. Defaults to 100, 1000 at most.
	Batch int

	// Pause is the time between two transactions, so that a backlog does not take the database for itself. Defaults to 10 ms.
	Pause time.Duration

	// Options hold for every move: [Set], [SetExpr], [Where], [Match], [Actor], [Meta], [LockTimeout].
	Options []Option
}

// Sweep fires the events whose time has come: those that the machine declares by [Source.After], at rows that have been in the
// state for that long by [Table.Since] and the database's clock, the oldest first. It makes one pass and
// returns what has become of each row; call it again, from a ticker or a cron job. Any number of sweepers may run at once: they share
// the work, since each passes over the rows that another has locked.
//
// If then is not nil it is called for every row that was moved, in the transaction that moves it: for the effects of a
// time-out. What it writes there is committed with the move or not at all. It may run again after a rollback.
//
// A row that the server refuses, or for which then returns an error, is stepped over and reported as its RowResult.Err, and keeps neither its batch
// nor those behind it from being moved. It is tried again by the next Sweep.
//
// An error beside the answers means that the pass was broken off; what was committed is in the answers. Errors: those of
// [Binding.FireMany].
//
// Which rows are stuck, timed or not, is a question for SQL:
//
//	SELECT state, count(*), min(since) FROM orders WHERE since < now() - interval '1 day' GROUP BY state
//
// Cost: four round trips for a batch (BEGIN, the rows that are due, their moves, COMMIT), and those of then. Locks: the rows, FOR NO KEY
// UPDATE, SKIP LOCKED. Without an index on the column of Since each batch reads the table.
func (b *Binding[K, S, TX]) Sweep(ctx context.Context, cfg *SweepConfig, then func(ctx context.Context, tx TX, row RowResult[K, S]) error) ([]RowResult[K, S], error) {
	if cfg == nil {
		cfg = &SweepConfig{}
	}
	s := &sweep[K, S, TX]{
		b: b, then: then, left: cmp.Or(cfg.Limit, 1000), batch: cmp.Or(cfg.Batch, 100), pause: cmp.Or(cfg.Pause, 10*time.Millisecond), opts: cfg.Options,
	}
	if s.left < 0 || s.batch < 0 || s.batch > manyAtOnce || s.pause < 0 {
		return nil, fmt.Errorf("statemachine: sweep %q: %w", b.m.name, &InvalidError{"SweepConfig", "has a number that is negative, or a Batch of more than 1000"})
	}
	for _, t := range b.m.timers() {
		if err := s.timer(ctx, t); err != nil {
			return s.done, b.publish(t.event, err)
		}
	}
	return s.done, nil
}

// timer is an edge that Sweep takes.
type timer[S StateType] struct {
	from  S
	event Event[S]
	after time.Duration
}

func (m *Machine[S]) timers() (out []timer[S]) {
	for _, s := range m.states {
		for _, ev := range m.Allowed(s) {
			if after, ok := m.After(s, ev); ok {
				out = append(out, timer[S]{s, ev, after})
			}
		}
	}
	return out
}

// sweep is one pass.
type sweep[K ID, S StateType, TX any] struct {
	b     *Binding[K, S, TX]
	then  func(context.Context, TX, RowResult[K, S]) error
	opts  []Option
	left  int
	batch int
	pause time.Duration
	done  []RowResult[K, S]
}

// due is a row whose time is up.
type due struct{ id, since string }

// timer moves what is due by one timer. The next batch begins after the last row of the one before, so rows that stay
// where they are, because they were refused or somebody holds them, are met once.
func (s *sweep[K, S, TX]) timer(ctx context.Context, t timer[S]) error {
	f, err := s.b.newSweeping(t.event, s.opts)
	if err == nil {
		err = f.prepare(ctx, s.b.db.Pool(), true)
	}
	for after := (*due)(nil); err == nil && s.left > 0; {
		n := min(s.batch, s.left)
		var rows []due
		rows, err = s.pass(ctx, f, t, after, n)
		if err != nil || len(rows) < n {
			break
		}
		after = &rows[n-1]
		select {
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-time.After(s.pause):
		}
	}
	return err
}

// newSweeping is newFiring without Dedup where the event would need it: what is due says that this is no repeat.
func (b *Binding[K, S, TX]) newSweeping(ev Event[S], opts []Option) (*firing[K, S, TX], error) {
	f, err := b.newFiringOf(*new(K), ev, opts, true)
	f.many = true
	if f.call.version != nil || f.call.dedup != nil {
		err = errors.Join(err, &InvalidError{"ExpectVersion or Dedup", "is not for Sweep"})
	}
	return f, err
}

// pass is one batch, and its rows one by one or half by half if one of them is refused.
func (s *sweep[K, S, TX]) pass(ctx context.Context, f *firing[K, S, TX], t timer[S], after *due, n int) ([]due, error) {
	of, args := onDueFirst, []any{textOf(t.from), interval(t.after), int64(n)}
	if after != nil {
		of, args = onDue, append(args, after.since, after.id)
	}
	rows, err := s.move(ctx, f, of, args)
	if err == nil || len(rows) == 0 || !steppedOver(err) {
		return rows, err
	}
	return rows, s.halves(ctx, f, t, rows, err)
}

// halves moves the rows of a batch that has failed.
func (s *sweep[K, S, TX]) halves(ctx context.Context, f *firing[K, S, TX], t timer[S], rows []due, failed error) error {
	if len(rows) == 1 {
		id, err := idOf[K](rows[0].id)
		s.done = append(s.done, RowResult[K, S]{ID: id, Err: s.b.publish(t.event, ofRow(id, failed))})
		return err
	}
	half := len(rows) / 2
	for _, part := range [][]due{rows[:half], rows[half:]} {
		ids := make([]string, len(part))
		for i, r := range part {
			ids[i] = r.id
		}
		found, err := s.move(ctx, f, onDueAmong, []any{textOf(t.from), interval(t.after), idArray(ids)})
		if err != nil && len(found) > 0 && steppedOver(err) {
			err = s.halves(ctx, f, t, found, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// thenError is an error of the caller's function.
type thenError struct{ err error }

func (e *thenError) Error() string { return e.err.Error() }
func (e *thenError) Unwrap() error { return e.err }

// steppedOver says whether an error may be about one row of a batch.
func steppedOver(err error) bool {
	_, ok := errors.AsType[*thenError](err)
	return ok || ofOneRow(err)
}

// move is one transaction. The rows are those that it has found, also where it fails then.
func (s *sweep[K, S, TX]) move(ctx context.Context, f *firing[K, S, TX], of template, args []any) (rows []due, err error) {
	var results []RowResult[K, S]
	err = s.b.retry(ctx, f, func() error {
		rows, results, err = s.attempt(ctx, f, of, args)
		return err
	})
	if err != nil {
		return rows, err
	}
	for _, r := range results {
		s.done = append(s.done, r)
		if r.Applied() {
			s.left--
		}
	}
	return rows, nil
}

func (s *sweep[K, S, TX]) attempt(ctx context.Context, f *firing[K, S, TX], of template, args []any) ([]due, []RowResult[K, S], error) {
	tx, err := s.b.db.Begin(ctx, pg.ReadCommitted)
	if err != nil {
		return nil, nil, err
	}
	defer tx.Rollback(ctx)
	rows, ids, err := s.due(ctx, tx, of, args)
	if err != nil || len(rows) == 0 {
		return nil, nil, lostInTx(ctx, err)
	}
	m := &many[K, S, TX]{f: f, results: make(map[K]RowResult[K, S], len(ids))}
	answers, err := m.run(ctx, tx, ids, waitOf(ctx), true) // the rows are locked
	if err != nil {
		return rows, nil, lostInTx(ctx, err)
	}
	m.keep(ids, answers)
	results := m.inOrder(ids)
	for _, r := range results {
		if s.then != nil && r.Applied() {
			if err := s.then(ctx, tx.Handle(), r); err != nil {
				return rows, nil, &thenError{err}
			}
		}
	}
	return rows, results, tx.Commit(ctx)
}

// due locks the rows whose time is up.
func (s *sweep[K, S, TX]) due(ctx context.Context, q pg.Querier, of template, args []any) (rows []due, ids []K, err error) {
	sql, args, err := s.b.text(ctx, q, of, &call{}, args)
	if err != nil {
		return nil, nil, err
	}
	for scan, err := range q.Query(ctx, sql, args...) {
		var row due
		var id K
		if err == nil {
			err = scan(&row.id, &row.since)
		}
		if err == nil {
			id, err = idOf[K](row.id)
		}
		if err != nil {
			return nil, nil, err
		}
		rows, ids = append(rows, row), append(ids, id)
	}
	return rows, ids, nil
}

// interval is a time as Postgres reads it. Up to release 14 each number of it has 32 bits.
func interval(d time.Duration) string {
	rest := d % time.Hour
	return fmt.Sprintf("%d hours %d.%06d seconds", d/time.Hour, rest/time.Second, rest%time.Second/time.Microsecond)
}
