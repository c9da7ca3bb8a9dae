package statemachine

import (
	"context"
	"slices"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// partsOf are those of a statement of this call. limit says whether there is a limit to the wait, and own that the
// transaction is not the caller's; first says that sqlMove may do.
func (f *firing[K, S, TX]) partsOf(limit, own, held, first bool) parts {
	c, shared := &f.call, f.mv.shared
	if first && f.simple() && (own || !limit) {
		return parts{history: !f.b.table.NoHistory, move: true, last: shared, ignores: len(f.mv.ignored) > 0, wait: limit}
	}
	p := parts{
		history: !f.b.table.NoHistory, dedup: c.dedup != nil, unlocked: !c.lock && c.dedup == nil && !held && !f.many,
		held: shared && held, untold: shared && !held, wait: limit && own && !f.many, restore: limit && !own && !f.many,
		alone: f.many && c.dedup == nil && f.b.kind != idText, // an id of another kind has one notation
	}
	p.last = shared && (p.unlocked || p.held)
	return p
}

// simple says whether sqlMove may settle the call: where there is one way to go, and the state alone decides. The column Since is
// written with the time that the history has, which comes after the move there.
func (f *firing[K, S, TX]) simple() bool {
	c, t := &f.call, &f.b.table
	return !f.many && len(f.mv.edges) == 1 && !f.mv.overlap && c.dedup == nil && !c.lock && c.version == nil && len(c.where)+len(c.match) == 0 &&
		(t.Since == "" || t.NoHistory)
}

// args are the arguments of the templates, of which a statement picks its own.
func (f *firing[K, S, TX]) args(id any, limit int64) []any {
	c, fx := &f.call, f.b.fixed[f.event.name]
	if f.parts.move {
		return []any{id, fx.source, fx.target, fx.ignored, limit, f.b.m.name, f.event.name, c.actor, c.meta}
	}
	return []any{id, fx.sources, fx.targets, fx.idle, fx.ignored, limit, f.b.m.name, f.event.name, c.actor, c.meta, c.dedup}
}

// stmt is the statement. wait is how long it may wait for the row, or 0 for as long as the caller's transaction lets it;
// held says that this transaction has locked the row with a statement before, first is for partsOf. The answer has to be completed.
func (f *firing[K, S, TX]) stmt(a *answer, wait time.Duration, held, first bool) (pg.Stmt, error) {
	limit := f.call.waitFor(wait)
	p := f.partsOf(limit > 0, wait > 0, held, first)
	s, err := f.statement(p)
	if err != nil {
		return pg.Stmt{}, err
	}
	*a = answer{}
	dest := []any{&a.locked, &a.from, &a.outcome, &a.version, &a.to, &a.seq, &a.at}
	if p.move {
		dest = []any{&a.to, &a.version, &a.seq, &a.at}
	}
	if p.unlocked || p.move {
		dest = append(dest, &a.passed)
	}
	if p.dedup {
		k := new(move)
		a.known = k
		dest = append(dest, &a.first, &k.from, &k.to, &k.outcome, &k.version, &k.seq, &k.at)
	}
	if p.restore {
		dest = append(dest, &a.restored)
	}
	return pg.Stmt{SQL: s.sql, Args: append(s.pick(f.args(f.arg, limit)), f.call.args(f.b.scope)...), Dest: dest}, nil
}

// run runs the statement.
func (f *firing[K, S, TX]) run(ctx context.Context, q pg.Querier, a *answer, wait time.Duration, held, first bool) error {
	s, err := f.stmt(a, wait, held, first)
	if err == nil {
		err = q.Run(ctx, s)
	}
	if err == nil {
		f.complete(a)
	}
	return err
}

// ask is sqlMove, where the call is simple enough, and the whole statement where that does not know.
//
// own says that the transaction is not the caller's. Each statement may wait for as long as ctx leaves it then.
func (f *firing[K, S, TX]) ask(ctx context.Context, q pg.Querier, a *answer, own bool) error {
	err := f.run(ctx, q, a, waitIn(ctx, own), false, true)
	if err == nil && f.parts.move && a.lost() { // nothing was done
		err = f.run(ctx, q, a, waitIn(ctx, own), false, false)
	}
	return err
}

// complete draws the conclusions from what was scanned.
func (f *firing[K, S, TX]) complete(a *answer) {
	a.complete()
	if f.parts.move && a.written {
		from, applied := f.b.fixed[f.event.name].source, storedApplied
		a.locked, a.from, a.outcome = true, &from, &applied
	}
}

// args are the arguments of the options and of the scope, in the order in which [fragments] number them.
func (c *call) args(scope []any) []any {
	var args []any
	if c.version != nil {
		args = append(args, *c.version)
	}
	for _, conds := range [][]condition{c.where, c.match} {
		for _, cond := range conds {
			args = append(args, cond.args...)
		}
	}
	for _, s := range c.sets {
		args = append(args, s.args...)
	}
	return append(args, scope...)
}

// waitFor is the limit of the wait in ms: that of the transaction's owner, unless the caller's is shorter.
func (c *call) waitFor(wait time.Duration) int64 {
	if c.timeout > 0 && (wait == 0 || c.timeout < wait) {
		wait = c.timeout
	}
	if wait == 0 {
		return 0
	}
	return max(wait.Milliseconds(), 1)
}

// waitOf is how long a statement of ours may wait for the row. It ends before the network
// deadline and the end of ctx do, after which nobody could tell what became of it.
func waitOf(ctx context.Context) time.Duration {
	wait := pg.NetTimeout(ctx) * 2 / 3
	if end, ok := ctx.Deadline(); ok {
		left := time.Until(end)
		wait = min(wait, left-min(left/3, time.Second))
	}
	return max(wait, time.Millisecond)
}

// waitIn is waitOf for a transaction of our own, and what the caller's transaction has otherwise.
func waitIn(ctx context.Context, own bool) time.Duration {
	if !own {
		return 0
	}
	return waitOf(ctx)
}

// attempt is one try outside of the caller's transactions. Where one statement cannot settle it, it
// becomes a transaction.
func (f *firing[K, S, TX]) attempt(ctx context.Context) (answer, error) {
	var a answer
	err := f.ask(ctx, f.b.db.Pool(), &a, true)
	if err == nil && a.lost() { // nothing was done, and what it has waited for is committed by now
		err = f.run(ctx, f.b.db.Pool(), &a, waitOf(ctx), false, false)
	}
	if err != nil {
		return a, lostOutside(ctx, err)
	}
	if f.settled(&a) {
		return a, nil
	}
	first, err := f.stmt(&a, waitOf(ctx), false, false)
	if err != nil {
		return a, err
	}
	tx, err := f.b.db.Begin(ctx, pg.ReadCommitted, first)
	if err != nil {
		return a, err
	}
	f.complete(&a)
	if !f.settled(&a) {
		err = f.confirm(ctx, tx, &a)
	}
	if err != nil || !a.written {
		tx.Rollback(ctx)
		return a, lostInTx(ctx, err)
	}
	return a, tx.Commit(ctx)
}

// decide runs the statement in a transaction, and once more when the first could not settle it.
func (f *firing[K, S, TX]) decide(ctx context.Context, q pg.Querier) (answer, error) {
	var a answer
	err := f.ask(ctx, q, &a, false)
	if err == nil && !f.settled(&a) {
		err = f.confirm(ctx, q, &a)
	}
	return a, err
}

// confirm runs the statement again in the transaction in which it could not settle the answer. Now it is
// sure of what it reads: the first run has locked the row, or it would have been settled, so nobody
// can move it or write to its history meanwhile, and this run's snapshot is from after
// the wait. At REPEATABLE READ and above the snapshot is that of the transaction; there, the lock
// was not to be had for a row that was changed since.
func (f *firing[K, S, TX]) confirm(ctx context.Context, q pg.Querier, a *answer) error {
	return f.run(ctx, q, a, 0, true, false)
}

// settled says whether a statement that may have waited for the row knows enough. It does not where the answer
// depends on what it has seen as it was before the wait: the row's state, if it was passed over in the end; and the history, that is
// whether the dedup id is there by now, and which event came last.
func (f *firing[K, S, TX]) settled(a *answer) bool {
	switch {
	case a.lost():
		return false
	case a.first != nil || a.unlocked || a.written || !a.locked || a.rows > 1:
		return true
	case f.call.dedup != nil:
		return false
	case a.outcome != nil:
		return true
	}
	state, ok := stateOf[S](value(a.from))
	return !f.mv.shared || !ok || !slices.Contains(f.mv.idle, state)
}
