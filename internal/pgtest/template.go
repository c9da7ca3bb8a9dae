//go:build unix

package pgtest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/url"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/migrations"
)

const (
	// The clients of one database, with what they do.
	sqlClients = `
SELECT format('pid %s %s: %s', pid, state, query) FROM pg_stat_activity
WHERE datname = $1 AND backend_type = 'client backend' ORDER BY pid`

	// Advisory locks and open transactions in one database, the one that asks aside.
	sqlBusy = `
SELECT format('pid %s holds an advisory lock (%s, %s)', l.pid, l.classid, l.objid)
FROM pg_locks l JOIN pg_database d ON d.oid = l.database
WHERE l.locktype = 'advisory' AND d.datname = $1
UNION ALL
SELECT format('pid %s %s: %s', pid, state, query) FROM pg_stat_activity
WHERE datname = $1 AND pid <> pg_backend_pid() AND backend_type = 'client backend'
  AND (state LIKE 'idle in transaction%' OR state = 'active')`

	templateLock = 0x70676f6e63655f74 // "pgonce_t"
)

var template struct {
	sync.Mutex
	name string
}

// templateFor migrates a template database once for all test binaries that share the
// server. Its name is the hash of the migrations, so a changed file makes a new one.
func templateFor(ctx context.Context, admin string) (string, error) {
	template.Lock()
	defer template.Unlock()
	if template.name != "" {
		return template.name, nil
	}
	script, err := migrations.Script(nil)
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("pgonce_t_%x", sha256.Sum256([]byte(script)))[:24]
	conn, err := pgx.Connect(ctx, admin)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock($1)`, templateLock); err != nil {
		return "", err
	}
	if err := ensureTemplate(ctx, conn, admin, name, script); err != nil {
		return "", err
	}
	template.name = name
	return name, nil
}

// ensureTemplate marks the database as a template when it is complete; one that
// is not marked is the remains of a killed run.
func ensureTemplate(ctx context.Context, conn *pgx.Conn, admin, name, script string) error {
	var complete bool
	err := conn.QueryRow(ctx, `SELECT coalesce(bool_or(datistemplate), false) FROM pg_database WHERE datname = $1`, name).Scan(&complete)
	if err != nil || complete {
		return err
	}
	for _, sql := range []string{`DROP DATABASE IF EXISTS "` + name + `" WITH (FORCE)`, `CREATE DATABASE "` + name + `"`} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	u, err := replaceDatabase(admin, name)
	if err != nil {
		return err
	}
	tmpl, err := pgx.Connect(ctx, u)
	if err != nil {
		return err
	}
	_, err = tmpl.Exec(ctx, script)
	_ = tmpl.Close(ctx)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, `ALTER DATABASE "`+name+`" WITH is_template true`)
	return err
}

// createDatabase clones a template, by copying its files where the server lets us choose.
func createDatabase(ctx context.Context, admin, name, from string) error {
	conn, err := pgx.Connect(ctx, admin)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	sql := `CREATE DATABASE "` + name + `"`
	if from != "" {
		sql += ` TEMPLATE "` + from + `"`
	}
	var version int
	if err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		return err
	}
	if version >= 150000 {
		sql += ` STRATEGY file_copy`
	}
	_, err = conn.Exec(ctx, sql)
	return err
}

func withDatabase(t testing.TB, admin, name string) string {
	t.Helper()
	u, err := replaceDatabase(admin, name)
	must(t, err)
	return u
}

func replaceDatabase(admin, name string) (string, error) {
	u, err := url.Parse(admin)
	if err != nil {
		return "", err
	}
	u.Path = "/" + name
	return u.String(), nil
}
