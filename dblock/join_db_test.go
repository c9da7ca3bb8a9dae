//go:build unix

package dblock_test

import (
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// The first session moves the sequence and is cancelled before that is on disk, when others can see already that it is alive. The next
// one gives out tokens beyond the gap, and then the server crashes.
func TestTokensSurviveAJoinThatIsCutShort(t *testing.T) {
	t.Parallel()
	srv, pool := ownServer(t, flushesLate())
	warm, err := dblock.New(t.Context(), pgxdriver.New(pool), nil)
	if err != nil {
		t.Fatal(err)
	}
	release(t, acquire(t, warm, "1", nil))
	if err := warm.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	cut, err := pgx.Connect(t.Context(), srv.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	tx, err := cut.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sql, gate, members := dblock.Join()
	if _, err := tx.Exec(t.Context(), sql, gate, members); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := clientOf(t, pool, nil)
	l := acquire(t, c, "1", nil)
	if err := syscall.Kill(int(cut.PgConn().PID()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = lost(t, l)
	_ = cut.Close(t.Context())
	var behind int64
	pgtest.Eventually(t, "the server is back", func() bool { // a process of before may still answer on a connection of before
		conn, err := pgx.Connect(t.Context(), srv.URL("postgres"))
		if err != nil {
			return false
		}
		defer func() { _ = conn.Close(t.Context()) }()
		return conn.QueryRow(t.Context(), `SELECT last_value FROM pgonce.fence`).Scan(&behind) == nil
	})
	t.Logf("the sequence is at %d, the token had number %d", behind, int64(l.Token())>>10&(1<<38-1))
	next := acquire(t, c, "1", nil)
	if next.Token() <= l.Token() {
		t.Errorf("token %d after %d", next.Token(), l.Token())
	}
	release(t, next)
}
