// Package pgerr turns pgx's error into the seam's, for every driver that may meet it.
package pgerr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgonce/pgonce/internal/pg"
)

// Map wraps an error of the server in a *pg.Error. ok is false for any other error.
func Map(err error) (mapped error, ok bool) {
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return unsent(err), false
	}
	return &pg.Error{
		Code: e.Code, Fatal: pg.IsFatal(cmp.Or(e.SeverityUnlocalized, e.Severity), e.Code),
		Schema: e.SchemaName, Table: e.TableName, Column: e.ColumnName,
		Constraint: e.ConstraintName, Detail: e.Detail, Err: err,
	}, true
}

// unsent names the refusal of an argument, for which neither pgx nor database/sql has a type of error. Both encode all of them before they send
// the statement. A text that is another one day is taken for a lost connection, as it was.
func unsent(err error) error {
	if err != nil && (strings.HasPrefix(err.Error(), "failed to encode args[") || strings.HasPrefix(err.Error(), "sql: converting argument ")) {
		return fmt.Errorf("%w: %w", pg.ErrNotSent, err)
	}
	return err
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
