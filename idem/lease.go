package idem

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// The states of a lease and of a step. The numbers are stored.
const (
	leaseDead int64 = 2

	stepStarted int64 = 1 // its call may have happened
	stepDone    int64 = 2
	stepCleared int64 = 3 // to be called, under the key of its round
)

// longestPoll is how rarely a caller asks for a key that another process executes.
const longestPoll = 500 * time.Millisecond

// lease is a key that this call is about to own, or owns.
type lease[TX any] struct {
	call   *call[TX]
	nonce  int64 // of this attempt; all that it writes is for this number
	worker *worker
	ctx    context.Context // ends when the lease is lost
	cancel context.CancelCauseFunc

	completer bool // the attempt counts
	first     bool // nobody had the key before: none but this attempt's calls are to be found out
	seen      leaseRow
	stored    []storedStep
	forget    bool // the server may have it as ours when we do not know
}

// leaseRow is a row of idem_lease as far as callers need it.
type leaseRow struct {
	rows, nonce, worker, state, attempts, fpVersion int64
	fp, request                                     []byte
	createdAt                                       time.Time
	age, left                                       float64 // seconds since the key was begun, and to the end of its owner's lease, if it has one
	due                                             bool    // for the completer
}

// errNotDue means that the completer has to leave a key alone for now.
var errNotDue = errors.New("the key is not due")

// errNobody means that a key had no owner when it was looked at, and could not be had either.
var errNobody = errors.New("nobody owns the key")

// acquire takes the key, or finds its record. It waits for others for as long as the call may.
func (c *call[TX]) acquire(ctx context.Context, t *turn, completer bool) (*lease[TX], record, error) {
	if c.key.likelyReplay || !c.store.db.Pipelined() {
		if rec, err := c.look(ctx); err != nil || rec.rows > 0 {
			return nil, rec, err
		}
	}
	poll := pollPause
	for n := 1; ; {
		l, rec, err := c.tryAcquire(ctx, completer)
		switch {
		case errors.Is(err, errNobody):
			if n++; n > maxAttempts {
				return nil, record{}, c.inFlight()
			}
			if pause(ctx, n) != nil {
				return nil, record{}, context.Cause(ctx)
			}
		case errors.Is(err, ErrInFlight):
			t.busy()
			left := c.left(ctx)
			if left <= 0 {
				return nil, record{}, err
			}
			if err := c.interrupted(sleep(ctx, min(left, poll)), ctx); err != nil {
				return nil, record{}, err
			}
			poll = min(2*poll, longestPoll)
		default:
			return l, rec, err
		}
	}
}

// tryAcquire is one attempt. It returns the lease, or the record, or an error.
func (c *call[TX]) tryAcquire(ctx context.Context, completer bool) (_ *lease[TX], rec record, err error) {
	l := &lease[TX]{call: c, nonce: newAttempt(), completer: completer}
	l.ctx, l.cancel = context.WithCancelCause(ctx)
	if l.worker, err = c.store.workers.enter(ctx, l.nonce, l.cancel); err != nil {
		l.cancel(nil)
		return nil, record{}, pg.ExplainSchema(c.store.cfg.Schema, err)
	}
	rec, owned, err := l.claim(ctx)
	if owned {
		return l, rec, nil
	}
	l.forget = errors.Is(err, pg.ErrOutcomeUnknown)
	l.close()
	return nil, rec, err
}

// close ends what close to the lease lives in this process.
func (l *lease[TX]) close() {
	l.call.store.workers.leave(l.worker, l.nonce, l.forget)
	l.cancel(nil)
}

// claim takes a key that is new, or one that was left.
//
// Why two cannot both own it: the lease's primary key lets one row in, and every change of that row is for the
// nonce that was read before. Why nobody owns a finished key: the record is looked for in a statement of its own
// after the row is ours. Who finishes deletes the row and inserts the record in one transaction; if our row could
// take the place of that one, the record is visible now.
func (l *lease[TX]) claim(ctx context.Context) (rec record, owned bool, err error) {
	c := l.call
	if l.completer { // which goes on with what is there, and begins nothing
		return l.contend(ctx)
	}
	var inserted int64
	err = c.store.persist(ctx, &write{
		key:   c.key,
		stmts: []pg.Stmt{l.claimStmt(&inserted), c.lookupStmt(&rec)},
		moot:  func() bool { return inserted == 0 },
	})
	switch {
	case err != nil:
		return record{}, false, err
	case rec.rows > 0 && inserted > 0:
		return rec, false, l.dropStale(ctx, l.nonce)
	case rec.rows > 0:
		return rec, false, nil
	case inserted > 0:
		l.first = true
		return record{}, true, nil
	}
	return l.contend(ctx)
}

// contend decides about a key that somebody has claimed before.
func (l *lease[TX]) contend(ctx context.Context) (rec record, owned bool, err error) {
	c := l.call
	if err := c.read(ctx, l.leaseStmt); err != nil {
		return record{}, false, err
	}
	same, _ := c.fp.matches(l.seen.fpVersion, l.seen.fp)
	switch {
	case l.seen.rows == 0:
		return record{}, false, errNobody
	case l.seen.nonce == l.nonce: // an INSERT of ours whose answer was lost
		l.first = true
		return record{}, true, nil
	case !same:
		return record{}, false, &MismatchError{Key: c.key, FirstAt: l.seen.createdAt}
	case l.seen.state == leaseDead:
		return record{}, false, fmt.Errorf("%w: %d attempts since %s", ErrDead, l.seen.attempts, l.seen.createdAt.UTC().Format(time.RFC3339))
	case l.completer && !l.seen.due: // another one has had this turn
		return record{}, false, errNotDue
	case l.seen.left > 0:
		return record{}, false, c.inFlightFor(l.seen.age, l.seen.left)
	case l.completer && l.seen.attempts >= int64(c.op.Attempts):
		return record{}, false, l.die(ctx)
	}
	rec, err = l.take(ctx)
	if errors.Is(err, pg.ErrOutcomeUnknown) {
		var again leaseRow
		if again, err = l.settle(ctx, err); err == nil && again.nonce != l.nonce {
			err = c.inFlightFor(l.seen.age, l.seen.left)
		}
	}
	if err != nil || rec.rows > 0 {
		return rec, false, err
	}
	if l.stored, err = c.storedSteps(ctx); err != nil {
		l.leave(ctx, err, 0)
		return record{}, false, err
	}
	c.tell(TakenOver, nil)
	return record{}, true, nil
}

// take makes the key of somebody who is gone ours.
//
// His worker is buried first, so that a heartbeat under way cannot revive it. Then his row is locked, and only then judged, by a
// statement with a snapshot of its own: whoever had it in between has left another nonce.
func (l *lease[TX]) take(ctx context.Context) (rec record, err error) {
	c := l.call
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	var locked, taken int64
	tx, err := c.store.db.Begin(tctx, pg.ReadCommitted,
		pg.Stmt{SQL: c.store.sql.workerBury, Args: []any{l.seen.worker}},
		pg.Stmt{SQL: c.store.sql.takeLock, Args: []any{c.scope, c.digest, l.seen.nonce}, Dest: []any{new(int64)}, Rows: &locked})
	if err != nil {
		return record{}, l.passing(err)
	}
	if locked == 0 {
		tx.Rollback(ctx)
		return record{}, c.inFlight()
	}
	more := int64(0)
	if l.completer {
		more = 1
	}
	err = tx.RunAll(tctx, pg.Stmt{SQL: c.store.sql.take, Args: []any{
		c.scope, c.digest, l.seen.nonce, l.nonce, l.worker.id, more, l.pause(l.seen.attempts + more),
	}, Rows: &taken}, c.lookupStmt(&rec))
	switch {
	case err != nil:
		tx.Rollback(ctx)
		return record{}, l.passing(err)
	case rec.rows > 0:
		tx.Rollback(ctx)
		return rec, l.dropStale(ctx, l.seen.nonce)
	case taken == 0:
		tx.Rollback(ctx)
		return record{}, c.inFlight()
	}
	l.seen.attempts += more
	if err = tx.Commit(tctx); err != nil && !errors.Is(err, pg.ErrOutcomeUnknown) {
		return record{}, l.passing(err)
	}
	return record{}, err
}

// passing turns an error after which nothing is taken into one that says whether to try again.
func (l *lease[TX]) passing(err error) error {
	if passing(err) || errors.Is(err, pg.ErrTxLost) {
		return fmt.Errorf("%w: %w", errNobody, err)
	}
	return pg.ExplainSchema(l.call.store.cfg.Schema, err)
}

// settle finds out who owns the key when the answer to a COMMIT was lost. The lost transaction has locked the row, so
// it is over when a statement that locks the row gets through.
func (l *lease[TX]) settle(ctx context.Context, lost error) (leaseRow, error) {
	c := l.call
	var found int64
	err := c.store.persist(ctx, &write{key: c.key, insist: true, stmts: []pg.Stmt{
		{SQL: c.store.sql.resolveLock, Args: []any{c.scope, c.digest}, Dest: []any{new(int64)}, Rows: &found},
		{SQL: c.store.sql.lease, Args: []any{c.scope, c.digest}, Dest: l.leaseStmt().Dest, Rows: &l.seen.rows},
	}})
	if err != nil {
		return leaseRow{}, fmt.Errorf("%w; then: %v", lost, err) //nolint:errorlint // what the last try met is no fact about the outcome
	}
	return l.seen, nil
}

// die gives a key up whose attempts are used up.
func (l *lease[TX]) die(ctx context.Context) error {
	c := l.call
	var rows int64
	err := c.store.persist(ctx, &write{key: c.key, stmts: []pg.Stmt{
		{SQL: c.store.sql.die, Args: []any{c.scope, c.digest, l.seen.nonce}, Rows: &rows},
	}})
	if err == nil && rows > 0 {
		c.tell(Died, ErrDead)
		c.store.cfg.Logger.Error("idem: a key is dead: its attempts are used up, a person has to decide about it", "key", c.key, "attempts", l.seen.attempts)
	}
	if err == nil {
		err = ErrDead
	}
	return err
}

// dropStale removes a lease that stands beside a record.
func (l *lease[TX]) dropStale(ctx context.Context, nonce int64) error {
	c := l.call
	return c.store.persist(ctx, &write{key: c.key, insist: true, stmts: []pg.Stmt{
		{SQL: c.store.sql.dropStale, Args: []any{c.scope, c.digest, nonce}},
	}})
}

// finish puts the record in the place of the lease. Behind a take-over it does nothing, and the other one's answer counts.
func (l *lease[TX]) finish(ctx context.Context, state int64, result []byte) (record, error) {
	c := l.call
	var rows int64
	err := c.store.persist(ctx, &write{key: c.key, insist: true, stmts: []pg.Stmt{{
		SQL: c.store.sql.finish,
		Args: []any{
			c.scope, c.digest, l.nonce, seconds(c.op.ReplayFor), seconds(c.op.RememberFor), state, result,
		},
		Rows: &rows,
	}}})
	own := c.ownRecord(l.nonce, state, l.seen.createdAt, result)
	if !l.first { // the record has the fingerprint of the request that began the key, and so those in line are compared with it
		own.fpVersion, own.fp = l.seen.fpVersion, l.seen.fp
	}
	switch {
	case err == nil && rows > 0:
		return own, nil
	case err != nil && !c.store.isDuplicate(err):
		l.forget = true
		return record{}, err
	}
	// Somebody else has the key, or has decided it; or this is the second try of a write whose answer was lost.
	rec, lookErr := c.lookWhose(context.WithoutCancel(ctx))
	switch {
	case lookErr != nil:
		l.forget = true
		return record{}, fmt.Errorf("%w: %w", pg.ErrOutcomeUnknown, lookErr)
	case rec.rows == 0:
		return record{}, fmt.Errorf("%w: somebody else has taken the key over", ErrLeaseLost)
	case rec.attempt == l.nonce:
		return own, nil
	}
	return rec, l.dropStale(ctx, l.nonce)
}

// leave gives the key to whoever wants it next; the completer after a pause. A key whose function has called nobody is free
// as if it had not been asked for, if this was its first attempt: what earlier ones have called is to be found out.
func (l *lease[TX]) leave(ctx context.Context, cause error, called int) {
	c := l.call
	var err error
	gone := int64(0)
	if called == 0 && l.first {
		err = l.persist(ctx, pg.Stmt{SQL: c.store.sql.drop, Args: []any{c.scope, c.digest, l.nonce}, Rows: &gone})
	}
	if err == nil && gone == 0 { // also where a mark has landed whose answer was lost: then there is a step
		err = l.persist(ctx, pg.Stmt{
			SQL: c.store.sql.leave, Args: []any{c.scope, c.digest, l.nonce, l.pause(l.seen.attempts), printableError(cause)},
		})
	}
	if err != nil {
		l.forget = true
		c.store.cfg.Logger.Warn("idem: a key could not be left, it is free when the lease is over", "key", c.key, "err", err)
	}
}

// persist carries out what has to be said of the lease.
func (l *lease[TX]) persist(ctx context.Context, stmt pg.Stmt) error {
	return l.call.store.persist(ctx, &write{key: l.call.key, stmts: []pg.Stmt{stmt}, insist: true})
}

// printableError is what is stored of an error, for people who look.
func printableError(err error) string {
	const most = 500
	text := []rune(fmt.Sprintf("%q", fmt.Sprint(unmarked(err))))
	return string(text[1:min(len(text)-1, most)])
}

// pause is for how many seconds the completer leaves the key alone, or nil if that stays as it is: whoever takes over what
// was left does not put the completer's turn off, or one who repeats faster than that would keep it from ever coming.
func (l *lease[TX]) pause(attempts int64) *float64 {
	switch op := l.call.op; {
	case l.completer && attempts >= int64(op.Attempts):
		return new(float64) // its next look finds that the key is dead
	case l.completer || l.first:
		return new(op.backoff(attempts).Seconds())
	}
	return nil
}

// backoff is how long the completer leaves a key alone after so many attempts.
func (o Op) backoff(attempts int64) time.Duration {
	pause := o.RetryAfter
	for ; attempts > 0 && pause < longestRetryAfter; attempts-- {
		pause *= 2
	}
	return min(pause, max(longestRetryAfter, o.RetryAfter))
}

func (l *lease[TX]) claimStmt(inserted *int64) pg.Stmt {
	c := l.call
	return pg.Stmt{SQL: c.store.sql.claim, Args: []any{
		c.lock(), l.nonce, l.worker.id, c.op.backoff(0).Seconds(), c.fp.version,
		c.scope, c.digest, c.op.Name, c.storedID(), c.fp.sum, c.request,
	}, Dest: []any{&l.seen.createdAt}, Rows: inserted}
}

func (l *lease[TX]) leaseStmt() pg.Stmt {
	c, s := l.call, &l.seen
	*s = leaseRow{}
	return pg.Stmt{
		SQL: c.store.sql.lease, Args: []any{c.scope, c.digest},
		Dest: []any{&s.nonce, &s.worker, &s.state, &s.attempts, &s.fpVersion, &s.fp, &s.createdAt, &s.request, &s.age, &s.left, &s.due},
		Rows: &s.rows,
	}
}
