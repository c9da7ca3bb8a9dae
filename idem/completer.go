package idem

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

const (
	completerLook   = time.Second // between two looks
	completerAtOnce = 8           // keys that one completer executes side by side
	completerBatch  = 100         // keys of an operation that it takes note of in one look
	forgetWorkers   = 1000        // looks between two deletions of the rows of processes long gone
)

// handlers are the functions that the completer knows.
type handlers[TX any] struct {
	mu   sync.Mutex
	byOp map[string]completion[TX]
}

// completion is how keys of one operation are finished.
type completion[TX any] struct {
	op  Op
	run func(c *call[TX], request []byte) stepsHandler[TX]
}

// Handle tells the completer how keys of an operation are finished: by the same function that [RunSteps] is given. It is called once for each
// operation, before [Store.RunCompleter]. Errors: an operation that cannot be used or is known already, a nil function, and a store with
// [Config.HideIDs], which has no ids to give to the function.
func Handle[I, T, TX any](s *Store[TX], op Op, fn func(ctx context.Context, run *Run[TX], in I) (T, error)) error {
	if s == nil || fn == nil {
		return errors.New("idem: handle: nil store or function")
	}
	if err := op.Validate(); err != nil {
		return err
	}
	name := pg.Printable(op.Name)
	if s.cfg.HideIDs {
		return fmt.Errorf("idem: handle %s: the store hides ids, so the completer cannot know whose keys it finds", name)
	}
	s.handlers.mu.Lock()
	defer s.handlers.mu.Unlock()
	if _, ok := s.handlers.byOp[op.Name]; ok {
		return fmt.Errorf("idem: handle %s: it has a function already", name)
	}
	if s.handlers.byOp == nil {
		s.handlers.byOp = map[string]completion[TX]{}
	}
	s.handlers.byOp[op.Name] = completion[TX]{op: op, run: func(c *call[TX], request []byte) stepsHandler[TX] {
		return func(ctx context.Context, run *Run[TX]) ([]byte, error) {
			in, err := decode[I](c.store.cfg.Codec, request)
			if err != nil {
				return nil, &handlerError{err}
			}
			var value T
			return encodingSteps(c.store.cfg.Codec, in, fn, &value)(ctx, run)
		}
	}}
	return nil
}

// RunCompleter finishes keys of [RunSteps] that were left: their process has died, or their function has returned an error and nobody has
// repeated the request. It works until ctx ends, then waits for the functions that it has called, whose ctx ends too, and returns
// nil. Run it in every process, or in some; they share the work.
//
// It looks once a second. A key is taken when its lease is over, and not before a pause that doubles with each attempt ([Op.RetryAfter]), whatever
// callers do in between: they are served, and do not put it off. After
// [Op.Attempts] it is dead: told to [Config.Observe] (Died) and [Config.Logger], listed by [Store.Stuck], and not tried again before
// [Store.Resolve]. A function that panics has failed; the panic is logged and goes no further. At most 8 functions run at the same time.
//
// Errors: no operation was given to [Handle]; [ErrSchema].
//
// Cost of a look: 1 round trip for each operation, a scan of the table of what is under way. A key that is taken: 4 round trips on pgx and 9 on database/sql before its
// function, two commits.
func (s *Store[TX]) RunCompleter(ctx context.Context) error {
	s.handlers.mu.Lock()
	known := make([]completion[TX], 0, len(s.handlers.byOp))
	for _, h := range s.handlers.byOp {
		known = append(known, h)
	}
	s.handlers.mu.Unlock()
	if len(known) == 0 {
		return errors.New("idem: run completer: no operation: tell Handle how keys are finished")
	}
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, completerAtOnce)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		for _, h := range known {
			err := s.completeAbandoned(ctx, h, slots, &running)
			switch {
			case errors.Is(err, ErrSchema):
				return fmt.Errorf("idem: run completer: %w", err)
			case err != nil && ctx.Err() == nil:
				s.cfg.Logger.Warn("idem: the completer cannot look for keys; it goes on trying", "operation", h.op.Name, "err", err)
			}
		}
		if n%forgetWorkers == 0 {
			_ = s.db.Pool().Run(ctx, pg.Stmt{SQL: s.sql.workersForget}) // another time
		}
		timer.Reset(s.look/2 + rand.N(s.look)) //nolint:gosec // jitter is no secret
	}
}

// completeAbandoned starts to finish what was left of an operation.
func (s *Store[TX]) completeAbandoned(ctx context.Context, h completion[TX], slots chan struct{}, running *sync.WaitGroup) error {
	if _, err := s.ready(ctx); err != nil {
		return err
	}
	var keys []Key
	for scan, err := range s.db.Pool().Query(ctx, s.sql.abandoned, h.op.Name, completerBatch) {
		if err != nil {
			return pg.ExplainSchema(s.cfg.Schema, err)
		}
		var scope, id string
		if err := scan(&scope, &id); err != nil {
			return err
		}
		keys = append(keys, h.op.Key(scope, id))
	}
	// Other completers see the same ones.
	rand.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] }) //nolint:gosec // an order is no secret
	for _, key := range keys {
		select {
		case <-ctx.Done():
			return nil
		case slots <- struct{}{}:
		}
		running.Go(func() {
			defer func() { <-slots }()
			s.complete(ctx, h, key)
		})
	}
	return nil
}

// complete finishes one key, if it can still be had.
func (s *Store[TX]) complete(ctx context.Context, h completion[TX], key Key) {
	c, err := newCall(s, key, NoFingerprint())
	if err != nil {
		s.cfg.Logger.Warn("idem: the completer has found a key that cannot be one", "err", err)
		return
	}
	c.op.Wait = s.look // callers who repeat without a pause leave it no more than a moment
	defer c.panicking()()
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Logger.Error("idem: function panicked in the completer", "key", key, "panic", p)
		}
	}()
	if c.server, err = s.ready(ctx); err != nil {
		return
	}
	v := s.queue.join(ctx, key.identity(s.cfg.Schema), c.op.Wait)
	if v.lead == nil {
		return // somebody here is at it, for longer than that
	}
	defer v.lead.pass()
	l, _, err := c.acquire(ctx, v.lead, true)
	if l == nil {
		c.told = true
		if err != nil && !errors.Is(err, ErrInFlight) && !errors.Is(err, ErrDead) && !errors.Is(err, errNotDue) && ctx.Err() == nil {
			s.cfg.Logger.Warn("idem: the completer could not take a key; it goes on trying", "key", key, "err", err)
		}
		return
	}
	v.lead.busy()
	rec, err := l.run(ctx, h.run(c, l.seen.request))
	c.share(ctx, v.lead, rec, err)
	if err == nil {
		_, err = c.answer(rec)
	}
	if err != nil {
		err = publish("complete", key, err)
	}
	c.ended(rec, err)
}
