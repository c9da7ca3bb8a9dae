package idem

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// storedStep is a row of idem_step.
type storedStep struct {
	ord, state, round int64
	name              string
	result            []byte
}

// read runs a statement that changes nothing, on one connection after the other while they turn out dead.
func (c *call[TX]) read(ctx context.Context, stmt func() pg.Stmt) error {
	const most = 100
	var err error
	for n, start := 1, time.Now(); ; n++ {
		if err = c.store.db.Pool().Run(ctx, stmt()); !isStale(err) || n == most || time.Since(start) >= pg.NetTimeout(ctx) {
			break
		}
	}
	return c.readError(ctx, err)
}

func (c *call[TX]) readError(ctx context.Context, err error) error {
	switch {
	case err != nil && ctx.Err() != nil:
		return errors.Join(context.Cause(ctx), err)
	case err != nil && !pg.Rejected(err):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return pg.ExplainSchema(c.store.cfg.Schema, err)
}

// storedSteps reads what owners before this one have done. Nobody else writes to it: the key is ours.
func (c *call[TX]) storedSteps(ctx context.Context) (steps []storedStep, err error) {
	const most = 100
	for n, start := 1, time.Now(); ; n++ {
		steps, err = c.queryStoredSteps(ctx)
		if !isStale(err) || n == most || time.Since(start) >= pg.NetTimeout(ctx) {
			return steps, c.readError(ctx, err)
		}
	}
}

func (c *call[TX]) queryStoredSteps(ctx context.Context) (steps []storedStep, err error) {
	for scan, err := range c.store.db.Pool().Query(ctx, c.store.sql.steps, c.scope, c.digest) {
		if err != nil {
			return nil, err
		}
		var st storedStep
		if err := scan(&st.ord, &st.name, &st.state, &st.round, &st.result); err != nil {
			return nil, err
		}
		steps = append(steps, st)
	}
	return steps, nil
}
