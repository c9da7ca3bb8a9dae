// Package sqlxdriver connects pgonce to sqlx. Handlers get a *sqlx.Tx.
//
//	keys, err := idem.New(sqlxdriver.New(db), nil)
package sqlxdriver

import (
	"context"
	"database/sql"

	"github.com/jmoiron/sqlx"
	"github.com/pgonce/pgonce/driver/sqldriver"
)

// New uses db, which stays the caller's to close. Everything said of sqldriver
// holds here: it is the same driver with another transaction type.
func New(db *sqlx.DB) *sqldriver.Driver[*sqlx.Tx] {
	if db == nil {
		return sqldriver.With[*sqlx.Tx](nil, nil)
	}
	return sqldriver.With(db.DB, func(ctx context.Context) (*sql.Conn, sqldriver.BeginFunc[*sqlx.Tx], error) {
		conn, err := db.Connx(ctx)
		if err != nil {
			return nil, nil, err
		}
		return conn.Conn, conn.BeginTxx, nil
	})
}
