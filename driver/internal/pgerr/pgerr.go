// Package pgerr turns pgx's error into the seam's, for every driver that may meet it.
package pgerr

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgonce/pgonce/internal/pg"
)

// Map wraps an error of the server in a *pg.Error. ok is false for any other error.
func Map(err error) (mapped error, ok bool) {
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return err, false
	}
	return &pg.Error{
		Code: e.Code, Fatal: pg.IsFatal(cmp.Or(e.SeverityUnlocalized, e.Severity), e.Code),
		Schema: e.SchemaName, Table: e.TableName, Column: e.ColumnName,
		Constraint: e.ConstraintName, Detail: e.Detail, Err: err,
	}, true
}

// Ended adds to the error of what ctx has broken off why that has ended. An answer of the server stands for itself.
func Ended(ctx context.Context, err error) error {
	if ctx.Err() == nil || pg.Rejected(err) {
		return err
	}
	for _, why := range []error{ctx.Err(), context.Cause(ctx)} {
		if !errors.Is(err, why) {
			err = fmt.Errorf("%w: %w", why, err)
		}
	}
	return err
}
