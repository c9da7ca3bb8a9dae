package idem

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/pgonce/pgonce/internal/pg"
)

const (
	mostCombined = 128 // writes in one commit
	mostLeaders  = 2   // commits at the same time: while one waits for the disk, the other has the server work
)

// write is one change of one key, small enough to share a transaction with those of other keys. It may be
// carried out again when its outcome is unknown: each of its statements is for one nonce, and does the second time what it has done
// the first time.
type write struct {
	key   Key // in the order of which writes lock
	stmts []pg.Stmt
	moot  func() bool // says after the statements that there is nothing to commit; may be nil

	insist bool // also while the database is out of reach: what it says has happened

	digest []byte    // of the key, while it stands in line
	word   chan word // has room for what this one is told: that it leads, once, and what became of it
	leads  bool      // it has been told to
}

// word is what a writer in line is told: that it is its turn to lead, or what became of its write.
type word struct {
	lead bool
	err  error
}

// combiner puts the writes of many goroutines into few commits. Whoever finds a lead free leads: it
// takes what is there, up to a limit, and passes the lead on as soon as that is committed. So a writer
// alone waits for nobody, and writers that come while a commit is under way share the next one.
type combiner struct {
	mu      sync.Mutex
	line    []*write
	leaders int
}

// errAlone tells a writer that another one in its batch has failed, so nothing of the batch is there.
var errAlone = errors.New("one of several writes has failed")

// combine carries a write out, together with others.
func (s *Store[TX]) combine(ctx context.Context, w *write) error {
	if !s.db.Pipelined() {
		return s.alone(ctx, w) // each statement is a trip: a batch would be slower than its members side by side
	}
	c := &s.combiner
	w.word, w.digest = make(chan word, 2), w.key.digest()
	c.mu.Lock()
	c.line = append(c.line, w)
	leads := c.leaders < mostLeaders
	if leads {
		w.leads = true
		c.leaders++
	}
	c.mu.Unlock()
	for {
		if leads {
			s.leadBatch(ctx, w)
		}
		heard := <-w.word
		if heard.lead {
			leads = true
			continue
		}
		if errors.Is(heard.err, errAlone) {
			return s.alone(ctx, w)
		}
		return heard.err
	}
}

// leadBatch carries out what is in line, first come first served, and passes the lead on. The leader's own write is
// always among it, if nobody has taken it: so nobody who has led is left waiting without a leader.
func (s *Store[TX]) leadBatch(ctx context.Context, own *write) {
	c := &s.combiner
	c.mu.Lock()
	n := min(len(c.line), mostCombined)
	if i := slices.Index(c.line, own); i >= n {
		c.line[i], c.line[n-1] = c.line[n-1], own
	}
	batch := slices.Clone(c.line[:n])
	c.line = slices.Delete(c.line, 0, n)
	c.mu.Unlock()
	var err error
	switch len(batch) {
	case 0: // another leader has taken all
	case 1:
		err = s.alone(ctx, batch[0])
	default:
		err = s.together(ctx, batch)
	}
	c.mu.Lock()
	c.passOn()
	c.mu.Unlock()
	for _, w := range batch {
		w.word <- word{err: err}
	}
}

// passOn gives a lead to the first in line that has none, or takes it back. mu is held. Who is given the lead stays in
// line; another leader may take its write before it wakes up, and then it leads the others.
func (c *combiner) passOn() {
	for _, w := range c.line {
		if !w.leads {
			w.leads = true
			w.word <- word{lead: true}
			return
		}
	}
	c.leaders--
}

// together commits several writes at once, in the order of their keys, so that two processes cannot wait for
// each other. One that fails fails all; then each is to be tried by itself.
func (s *Store[TX]) together(ctx context.Context, batch []*write) error {
	batch = slices.SortedStableFunc(slices.Values(batch), compareWrites)
	var stmts []pg.Stmt
	for _, w := range batch {
		stmts = append(stmts, w.stmts...)
	}
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	tx, err := s.db.Begin(tctx, pg.ReadCommitted, stmts...)
	if err == nil {
		err = tx.Commit(tctx)
	}
	if pg.Rejected(err) {
		return errAlone
	}
	return err
}

// compareWrites is [Key.Compare] of their keys.
func compareWrites(a, b *write) int {
	return cmp.Or(cmp.Compare(a.key.scope, b.key.scope), bytes.Compare(a.digest, b.digest))
}

// alone carries one write out: one trip for one statement, two for several.
func (s *Store[TX]) alone(ctx context.Context, w *write) error {
	tctx, cancel := pg.TripContext(ctx)
	defer cancel()
	if len(w.stmts) == 1 {
		return s.db.Pool().Run(tctx, w.stmts[0])
	}
	tx, err := s.db.Begin(tctx, pg.ReadCommitted, w.stmts...)
	if err != nil {
		return err
	}
	if w.moot != nil && w.moot() {
		tx.Abandon(ctx)
		return nil
	}
	return tx.Commit(tctx)
}

// persist carries a write out, whatever happens on the way, for up to resolveWithin. It does not heed the end of ctx:
// a foreign call may have been made. A write whose answer is lost is carried out again by itself: on
// the rows that it is about it waits for the lost one, if that is still under way, and then finds what it has left.
//
// Errors: what the server refuses for good; [ErrUnavailable], and nothing was done; [pg.ErrOutcomeUnknown].
func (s *Store[TX]) persist(ctx context.Context, w *write) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resolveWithin)
	defer cancel()
	unsure := false
	for n := 1; ; n++ {
		var err error
		if n == 1 {
			err = s.combine(ctx, w)
		} else {
			err = s.alone(ctx, w)
		}
		switch {
		case err == nil:
			return nil
		case pg.Rejected(err) && !passing(err), !w.insist && !unsure && errors.Is(err, ErrUnavailable):
			return s.refused(err, unsure)
		case !pg.Rejected(err) && !errors.Is(err, ErrUnavailable) && !errors.Is(err, pg.ErrTxLost):
			unsure = true
		}
		if pause(ctx, min(n, 6)) != nil {
			return s.refused(fmt.Errorf("%w: %w", ErrUnavailable, err), unsure)
		}
	}
}

// refused is the error of a write that was given up.
func (s *Store[TX]) refused(err error, unsure bool) error {
	if unsure {
		return fmt.Errorf("%w: %v", pg.ErrOutcomeUnknown, err) //nolint:errorlint // what the last try met is no fact about the outcome
	}
	if pg.Code(err) == pg.CodeReadOnlyTx {
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	}
	return pg.ExplainSchema(s.cfg.Schema, err)
}

// passing says whether the server may accept what it has refused when it is asked again.
func passing(err error) bool {
	code := pg.Code(err)
	return isStale(err) || slices.Contains([]string{
		pg.CodeSerialization, pg.CodeDeadlock, pg.CodeLockTimeout, pg.CodeQueryCanceled, pg.CodeOutOfMemory,
	}, cmp.Or(code, "none"))
}
