// Package pgerr turns pgx's error into the seam's, for every driver that may meet it.
package pgerr

import (
	"cmp"
	"errors"

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
