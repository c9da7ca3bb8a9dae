package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/internal/localpg"
)

// postgres is a server of our own, reached by TCP as a server usually is.
type postgres struct {
	server  *localpg.Server
	url     string
	version string
}

// hba lets everybody in by the socket, whose folder is closed, and only those with the password by TCP. Of md5, since
// scram would make a connection cost milliseconds, and database/sql opens many.
const hba = `local all all trust
host all all 127.0.0.1/32 md5
`

// settings has room for the peers that open a connection for each caller, and for 20,000 locks.
func settings(hbaFile string) map[string]string {
	return map[string]string{
		"hba_file": hbaFile, "max_connections": "400", "max_locks_per_transaction": "512",
		"fsync": "on", "synchronous_commit": "on", "password_encryption": "md5",
	}
}

// startPostgres keeps the data in dataDir, and small files in dir.
func startPostgres(ctx context.Context, dataDir, dir string) (*postgres, error) {
	if err := onDisk(cmp.Or(dataDir, "/tmp")); err != nil {
		return nil, err
	}
	hbaFile := filepath.Join(dir, "pg_hba.conf")
	if err := os.WriteFile(hbaFile, []byte(hba), 0o644); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	server, err := localpg.Start(&localpg.Config{Durable: true, Dir: dataDir, Port: port, Settings: settings(hbaFile)})
	if err != nil {
		return nil, err
	}
	p := &postgres{server: server}
	if err := p.secure(ctx, port); err != nil {
		_ = server.Stop()
		return nil, err
	}
	return p, nil
}

// secure gives the superuser a password, and looks whether the server is what the figures say it is.
func (p *postgres) secure(ctx context.Context, port int) error {
	conn, err := pgx.Connect(ctx, p.server.URL("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	password := rand.Text()
	if _, err := conn.Exec(ctx, `ALTER ROLE postgres PASSWORD '`+password+`'`); err != nil {
		return err
	}
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword("postgres", password),
		Host: fmt.Sprintf("127.0.0.1:%d", port), Path: "/postgres", RawQuery: "sslmode=disable",
	}
	p.url = u.String()
	var fsync, synchronous string
	err = conn.QueryRow(ctx, `SELECT current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit')`).
		Scan(&p.version, &fsync, &synchronous)
	if err == nil && (fsync != "on" || synchronous != "on") {
		err = fmt.Errorf("fsync is %s and synchronous_commit is %s: both have to be on", fsync, synchronous)
	}
	return err
}

// onDisk refuses a RAM disk, on which a commit costs nothing.
func onDisk(dir string) error {
	const tmpfs = 0x01021994
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if runtime.GOOS == "linux" && int64(fs.Type) == tmpfs { //nolint:unconvert,nolintlint // types differ by platform
		return fmt.Errorf("%s is a RAM disk: name a folder on a disk with --dir, such as /var/tmp", dir)
	}
	return nil
}

// as is the server's URL for a client that says who it is.
func (p *postgres) as(name string) string { return p.url + "&application_name=" + name }
