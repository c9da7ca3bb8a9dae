package idem

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// MaxActor and MaxReason bound what a [Resolution], and [Store.Forget], say, in bytes.
const (
	MaxActor  = 255
	MaxReason = 1000
)

// Resolution is what a person has decided about a key that cannot be finished without one.
type Resolution struct {
	// Step is the step whose outcome is decided; "" if it is the whole key's.
	Step string

	// Outcome of that step: [Happened] or [NeverHappened]. After NeverHappened it is called again, with a new downstream key.
	//
	// Of a whole key: Happened ends it, and every repeat gets Value. Without an outcome, a dead key is tried again. A key of
	// Do whose effect, as you have found out, never happened is freed by [Store.Forget].
	Outcome Outcome

	// Value is what the step returns, or a repeat gets, from now on, if it happened. It is encoded by the [Codec].
	Value any

	// Refuse ends the key: it answers [ErrRefused] from now on, with Reason. It cannot end one with a step of unknown outcome.
	Refuse bool

	// Actor and Reason say who has decided, and why. Both are required.
	Actor, Reason string
}

// Resolve decides about a key that is dead, has a step of unknown outcome, or is blocked because a handler of [Do] ended its transaction ([StateUnknown]), and puts
// the decision on record in idem_resolution, in one commit. The
// key is then free to be executed by a repeat or by the completer, whose attempts begin anew; or it is done, or refused, and answers so. Whoever still believes that he
// owns the key does not any more.
//
// It is for what a person has found out: nothing checks that it is true. Value must be of the type that the step, or the function, returns; if
// it cannot be read, the step, or the repeat, fails and the key stays where it is. A key that is ended keeps its answer for [Op.ReplayFor] from now on.
//
// Errors: [ErrInvalidKey], [ErrInFlight] while somebody executes the key, [ErrNotStuck], [ErrUnknownOutcome] for the end of a key with
// a step undecided, and for a lost answer to the commit; [ErrSchema], [ErrUnavailable]. Without [ErrUnknownOutcome], an error means that nothing was
// changed.
//
// Cost: 4 round trips on pgx, 8 to 10 on database/sql, one commit.
func (s *Store[TX]) Resolve(ctx context.Context, key Key, r Resolution) error {
	c, err := newCall(s, key, NoFingerprint())
	if err == nil {
		err = r.check()
	}
	var data []byte
	if err == nil && r.Outcome == Happened {
		if data, err = s.cfg.Codec.Encode(r.Value); err == nil && data == nil {
			data = []byte{}
		}
	}
	if err == nil {
		c.server, err = s.ready(ctx)
	}
	if err == nil {
		err = c.resolve(ctx, r, data)
	}
	if err != nil {
		return publish("resolve", key, err)
	}
	return nil
}

func (r Resolution) check() error {
	if fault := pg.Fault(r.Actor, MaxActor); fault != "" {
		return errors.New("resolution: Actor " + fault)
	}
	if fault := pg.Fault(r.Reason, MaxReason); fault != "" {
		return errors.New("resolution: Reason " + fault)
	}
	switch {
	case r.Step == "" && r.Outcome == NeverHappened:
		return errors.New("resolution: NeverHappened without a Step: to execute the key again, leave the Outcome out, or Forget the key")
	case r.Step == "" && r.Outcome != Unsure && r.Outcome != Happened:
		return errors.New("resolution: Outcome must be Happened for a key")
	case r.Refuse && r.Step == "" && r.Outcome == Happened:
		return errors.New("resolution: Refuse and Happened for one key")
	case r.Step != "" && r.Outcome != Happened && r.Outcome != NeverHappened:
		return errors.New("resolution: Outcome must be Happened or NeverHappened for a Step")
	case r.Value != nil && r.Outcome != Happened:
		return errors.New("resolution: a Value without Happened")
	}
	return nil
}

// resolve is the transaction of Resolve. It locks the lease first, so that nobody takes it meanwhile.
func (c *call[TX]) resolve(ctx context.Context, r Resolution, data []byte) error {
	l := &lease[TX]{call: c, nonce: newAttempt()}
	tx, err := c.store.db.Begin(ctx, pg.ReadCommitted,
		pg.Stmt{
			SQL: sqlLockTimeout, Args: []any{strconv.FormatInt(resolveWait.Milliseconds(), 10), c.server.checkInterval},
			Dest: []any{new(string), new(string), new(string), new(bool)},
		},
		pg.Stmt{SQL: c.store.sql.resolveLock, Args: []any{c.scope, c.digest}, Dest: []any{new(int64)}, Rows: new(int64)})
	if pg.Code(err) == pg.CodeLockTimeout {
		return ErrInFlight
	}
	if err != nil {
		return c.explain(err)
	}
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	last, err := c.decide(tctx, tx, l, r, data)
	if err != nil {
		tx.Rollback(ctx)
		return err
	}
	var decided int64
	last[len(last)-1].Rows = &decided
	switch err = tx.Commit(tctx, last...); {
	case errors.Is(err, pg.ErrOutcomeUnknown):
		return err
	case pg.Code(err) == pg.CodeLockTimeout: // somebody is at the record: a purge, or one who forgets it
		return ErrInFlight
	case err != nil:
		return c.explain(err)
	case decided == 0:
		return fmt.Errorf("%w: nobody is executing it, and its outcome is known", ErrNotStuck)
	}
	return nil
}

// decide runs what depends on what is there, and returns what is left to do.
func (c *call[TX]) decide(ctx context.Context, tx pg.TxQuerier, l *lease[TX], r Resolution, data []byte) ([]pg.Stmt, error) {
	if err := tx.Run(ctx, l.leaseStmt()); err != nil {
		return nil, c.explain(err)
	}
	switch {
	case l.seen.rows == 0 && r.ends():
		return []pg.Stmt{c.decideRecord(r, data)}, nil
	case l.seen.rows == 0:
		return nil, fmt.Errorf("%w: nobody is executing it, or it is finished", ErrNotStuck)
	case l.seen.left > 0:
		return nil, ErrInFlight
	}
	round, open, err := c.decideStep(ctx, tx, r, data)
	switch {
	case err != nil:
		return nil, err
	case r.Step == "" && l.seen.state != leaseDead && !r.ends():
		return nil, fmt.Errorf("%w: it is not dead, so it is tried again anyhow", ErrNotStuck)
	case r.ends() && open != "":
		return nil, fmt.Errorf("%w: step %q: decide about it first", ErrUnknownOutcome, open)
	}
	last := []pg.Stmt{
		{SQL: c.store.sql.workerBury, Args: []any{l.seen.worker}},
		{SQL: c.store.sql.revive, Args: []any{c.scope, c.digest, l.seen.nonce, l.nonce}},
		{SQL: c.store.sql.resolution, Args: []any{
			round, int64(r.Outcome), c.scope, c.digest, c.op.Name, c.storedID(), r.Step, r.Actor, r.Reason, data,
		}},
	}
	if r.ends() {
		state, result := r.end(data)
		last = append(last, pg.Stmt{SQL: c.store.sql.finish, Args: []any{
			c.scope, c.digest, l.nonce, seconds(c.op.ReplayFor), seconds(c.op.RememberFor), state, result,
		}})
	}
	return last, nil
}

// ends says whether the decision is the key's answer.
func (r Resolution) ends() bool { return r.Refuse || r.Step == "" && r.Outcome == Happened }

// end is what becomes the key's record.
func (r Resolution) end(data []byte) (state int64, result []byte) {
	if r.Refuse {
		return stateRefused, packRefusal(r.Reason, nil)
	}
	return stateDone, data
}

// decideRecord gives a blocked key its answer. It affects no row where the key is not blocked.
func (c *call[TX]) decideRecord(r Resolution, data []byte) pg.Stmt {
	state, result := r.end(data)
	return pg.Stmt{SQL: c.store.sql.resolveRecord, Args: []any{
		c.scope, c.digest, state, result, seconds(c.op.ReplayFor), seconds(c.op.RememberFor), int64(r.Outcome), r.Actor, r.Reason, data,
	}}
}

// decideStep writes the outcome of a step, and says which one is still undecided.
func (c *call[TX]) decideStep(ctx context.Context, tx pg.TxQuerier, r Resolution, data []byte) (round int64, open string, err error) {
	if r.Step != "" {
		state, more := stepDone, int64(0)
		if r.Outcome == NeverHappened {
			state, more = stepCleared, 1
		}
		var rows int64
		err := tx.Run(ctx, pg.Stmt{
			SQL: c.store.sql.resolveStep, Args: []any{c.scope, c.digest, r.Step, state, more, data},
			Dest: []any{&round}, Rows: &rows,
		})
		if err != nil {
			return 0, "", c.explain(err)
		}
		if rows == 0 {
			return 0, "", fmt.Errorf("%w: it has no step %q of unknown outcome", ErrNotStuck, pg.Printable(r.Step))
		}
	}
	for scan, err := range tx.Query(ctx, c.store.sql.steps, c.scope, c.digest) {
		if err != nil {
			return 0, "", c.explain(err)
		}
		var st storedStep
		if err := scan(&st.ord, &st.name, &st.state, &st.round, &st.result); err != nil {
			return 0, "", err
		}
		if st.state == stepStarted {
			open = st.name
		}
	}
	return round, open, nil
}

// Stuck is a key that needs a person.
type Stuck struct {
	Scope, Op, ID string
	Dead          bool      // the completer has given it up
	Attempts      int       // of the completer
	Since         time.Time // when it was first executed
	LastError     string    // of the last attempt that could say so
	Step          string    // whose outcome is unknown, or ""
	Downstream    string    // what that step is called to the other side; "" where the store hides ids
}

// Stuck lists up to limit keys that nobody executes and that are dead, or have a step of unknown outcome, the oldest first. The latter may be
// decided by the next attempt's reconcile. What a person has found out goes to [Store.Resolve]. Cost: 1 round trip, a scan of the
// table of what is under way.
func (s *Store[TX]) Stuck(ctx context.Context, limit int) (list []Stuck, err error) {
	if _, err := s.ready(ctx); err != nil {
		return nil, fmt.Errorf("idem: stuck: %w", err)
	}
	for scan, err := range s.db.Pool().Query(ctx, s.sql.stuck, limit) {
		if err != nil {
			return nil, fmt.Errorf("idem: stuck: %w", s.readError(err))
		}
		var k Stuck
		var attempts, round int64
		if err := scan(&k.Scope, &k.Op, &k.ID, &k.Dead, &attempts, &k.Since, &k.LastError, &k.Step, &round); err != nil {
			return nil, fmt.Errorf("idem: stuck: %w", err)
		}
		k.Attempts = int(attempts)
		if k.Step != "" && k.ID != "" {
			k.Downstream = Op{Name: k.Op}.Key(k.Scope, k.ID).downstream(s.cfg.Schema, k.Step, round)
		}
		list = append(list, k)
	}
	return list, nil
}
