//go:build unix

package pgtest

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Role creates a role without any right, and drops it at the end of the test. Its password is its name.
func (db *DB) Role(t testing.TB) string {
	t.Helper()
	role := fmt.Sprintf("app_%s_%d", db.Name, serial.Add(1))
	db.Exec(t, `CREATE ROLE `+quote(role)+` LOGIN PASSWORD '`+role+`'`)
	t.Cleanup(func() { db.Exec(t, `DROP OWNED BY `+quote(role)+`; DROP ROLE `+quote(role)) })
	return role
}

// GrantDML gives a role what an application needs, and no more: the three GRANTs that the
// documentation names.
func (db *DB) GrantDML(t testing.TB, role string) {
	t.Helper()
	db.Exec(t, `GRANT USAGE ON SCHEMA pgonce TO `+quote(role)+`;
		GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pgonce TO `+quote(role)+`;
		GRANT USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA pgonce TO `+quote(role))
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }
