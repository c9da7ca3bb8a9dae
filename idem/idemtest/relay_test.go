//go:build unix

package idemtest_test

import (
	"context"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/idem/idemtest"
)

// relay listens on TCP for a server on a unix socket, and returns the server's URL by way of it.
func relay(t *testing.T, serverURL string) string {
	t.Helper()
	u, err := url.Parse(serverURL)
	if err != nil {
		t.Fatal(err)
	}
	folder := u.Query().Get("host")
	if folder == "" {
		return serverURL // it is on TCP
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var pumps sync.WaitGroup
	pumps.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("unix", filepath.Join(folder, ".s.PGSQL.5432"))
			if err != nil {
				_ = client.Close()
				continue
			}
			pump := func(to, from net.Conn) {
				_, _ = io.Copy(to, from)
				_, _ = to.Close(), from.Close()
			}
			pumps.Go(func() { pump(client, server) })
			pumps.Go(func() { pump(server, client) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		pumps.Wait()
	})
	u.Host, u.RawQuery = l.Addr().String(), ""
	return u.String()
}

// The database is reached by TCP, on one connection, by the simple protocol and by COPY.
func TestCrashEverywhereOverTCP(t *testing.T) {
	t.Parallel()
	db, pool := newPayouts(t)
	at := relay(t, db.URL)
	for table, insert := range map[string]func(ctx context.Context, conn *pgx.Conn, id string) error{
		"once": func(ctx context.Context, conn *pgx.Conn, id string) error {
			_, err := conn.Exec(ctx, `INSERT INTO once VALUES ($1) ON CONFLICT DO NOTHING`, pgx.QueryExecModeSimpleProtocol, id)
			return err
		},
		"seen": func(ctx context.Context, conn *pgx.Conn, id string) error {
			tx, err := conn.Begin(ctx)
			if err != nil {
				return err
			}
			defer func() { _ = tx.Rollback(ctx) }()
			var n int
			if _, err = tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended($1, 0))`, id); err == nil {
				err = tx.QueryRow(ctx, `SELECT count(*) FROM seen WHERE id = $1`, id).Scan(&n)
			}
			if err == nil && n == 0 {
				_, err = tx.CopyFrom(ctx, pgx.Identifier{"seen"}, []string{"id", "serial"}, pgx.CopyFromRows([][]any{{id, 1}}))
			}
			if err == nil {
				err = tx.Commit(ctx)
			}
			return err
		},
	} {
		idemtest.CrashEverywhere(t, at, func(ctx context.Context, p *idemtest.Process, id string) (string, error) {
			conn, err := pgx.Connect(ctx, p.DatabaseURL())
			if err != nil {
				return "", err
			}
			defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
			return table, insert(ctx, conn, id)
		}, counting(pool, table), patient)
	}
}
