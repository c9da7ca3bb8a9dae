//go:build unix

package dblock_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
)

func named(name string) *dblock.Config { return &dblock.Config{Holder: name} }

// status is what a client says of key id.
func status(t *testing.T, c *client, id string) dblock.KeyStatus {
	t.Helper()
	s, err := c.Inspect(within(t), key(id))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range s {
		if k.Key == key(id) {
			return k
		}
	}
	t.Fatalf("nothing of %s in\n%s", id, s)
	return dblock.KeyStatus{}
}

// Two processes, holders and waiters in each: who has what, who waits for whom, and by which name.
func TestInspect(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	a, c := b.client(t, named("host-a")), b.client(t, named("host-b"))
	l := acquire(t, a, "1", nil)
	won := make(chan *locked, 3)
	for _, waiter := range []*client{a, c, c} {
		go func() { won <- acquire(t, waiter, "1", nil) }()
	}
	waiting(t, b, 1)
	pgtest.Eventually(t, "all are in line", func() bool { return a.InLine(key("1")) == 1 && c.InLine(key("1")) == 2 })

	st := status(t, a, "1")
	if st.Kind != dblock.AdvisoryLock || st.Number != key("1").Number() || len(st.Holdings) != 1 || len(st.Waits) != 2 {
		t.Fatalf("got %+v", st)
	}
	h := st.Holdings[0]
	if h.By != dblock.BySession || !h.Own || h.Name != "host-a" || h.PID == 0 || h.Shared || h.Token != l.Token() || h.Held <= 0 || h.Left <= 0 || h.Left > 15*time.Second || h.Gone {
		t.Errorf("own holder: %+v", h)
	}
	for _, w := range st.Waits {
		if w.Shared || w.Waited <= 0 {
			t.Errorf("got %+v", w)
		}
		if own := w.Name == "host-a"; own && (!w.Own || w.PID != 0 || w.Callers != 1 || w.For != nil) ||
			!own && (w.Own || w.Name != "host-b" || w.PID == 0 || w.Callers != 0 || len(w.For) != 1 || w.For[0] != h.PID) {
			t.Errorf("got %+v", w)
		}
	}

	st = status(t, c, "1") // the same from the other side
	if len(st.Holdings) != 1 || len(st.Waits) != 1 {
		t.Fatalf("got %+v", st)
	}
	if o := st.Holdings[0]; o.By != dblock.BySession || o.Own || o.Name != "host-a" || o.PID != h.PID || o.Token != 0 || o.Held != 0 || o.Left <= 0 || o.Left > 15*time.Second {
		t.Errorf("holder elsewhere: %+v", o)
	}
	if w := st.Waits[0]; !w.Own || w.Callers != 2 || w.PID == 0 || w.Waited <= 0 || len(w.For) != 1 || w.For[0] != h.PID {
		t.Errorf("own waiters: %+v", w)
	}
	release(t, l)
	for range 3 {
		release(t, <-won)
	}
	if st := status(t, c, "1"); len(st.Holdings)+len(st.Waits) != 0 {
		t.Errorf("a free key: %+v", st)
	}
	if s, err := c.Inspect(within(t)); err != nil || len(s) != 0 {
		t.Errorf("nothing is held, and nothing was asked for: %v, %v", s, err)
	}
}

// Shared holders in two processes, and an exclusive waiter.
func TestInspectShared(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	a, c, d := b.client(t, named("a")), b.client(t, named("b")), b.client(t, named("c"))
	shared := &dblock.LockConfig{Shared: true}
	held := []*locked{acquire(t, a, "1", shared), acquire(t, a, "1", shared), acquire(t, c, "1", shared)}
	won := make(chan *locked, 2)
	go func() { won <- acquire(t, d, "1", nil) }()
	waiting(t, b, 1)
	st := status(t, a, "1")
	if len(st.Holdings) != 3 || len(st.Waits) != 1 || len(st.Waits[0].For) != 2 {
		t.Fatalf("got %+v", st)
	}
	for _, h := range st.Holdings {
		if !h.Shared || h.By != dblock.BySession {
			t.Errorf("got %+v", h)
		}
	}
	for _, l := range held {
		release(t, l)
	}
	release(t, <-won)
}

// A key of another process is known by its number, until it is named. Its liveness lock and the locks of other
// programs are no keys.
func TestInspectShowsKeysOnly(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	a, c := b.client(t, nil), b.client(t, nil)
	l := acquire(t, a, "1", nil)
	tx, err := b.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		`SELECT pg_advisory_xact_lock(42)`, `SELECT pg_advisory_xact_lock(4, 2)`,
		`SET LOCAL application_name = 'pgonce:00000000:15000:x'`, `SELECT pg_advisory_xact_lock(43)`,
	} {
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	s, err := c.Inspect(within(t))
	if err != nil || len(s) != 1 || s[0].Key != (dblock.Key{}) || s[0].Number != key("1").Number() || len(s[0].Holdings) != 1 {
		t.Errorf("got\n%v, %v", s, err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Error(err)
	}
	release(t, l)
	if _, err := c.Inspect(within(t), dblock.Key{Space: "order"}); !errors.Is(err, dblock.ErrInvalidKey) {
		t.Errorf("got %v", err)
	}
}

// What transactions do to a key: a fenced one keeps others out when its holder is gone; one of LockTx has the key, or
// waits for it.
func TestInspectTransactions(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	cfg := b.Config(t)
	cfg.ConnConfig.RuntimeParams["application_name"] = "refund worker"
	pool := b.Open(t, cfg)
	a, c := b.client(t, nil), b.client(t, nil)
	begin := func() pgx.Tx {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return tx
	}
	for _, shared := range []bool{false, true} {
		l := acquire(t, a, "1", &dblock.LockConfig{Shared: shared})
		tx := begin()
		if err := l.FenceTx(t.Context(), tx); err != nil {
			t.Fatal(err)
		}
		if st := status(t, c, "1"); len(st.Holdings) != 2 || st.Holdings[0].By != dblock.BySession || st.Holdings[1].By != dblock.ByFence || st.Holdings[1].Shared != shared {
			t.Errorf("fenced: %+v", st)
		}
		release(t, l)
		won := make(chan *locked, 1)
		go func() { won <- acquire(t, a, "1", nil) }()
		waiting(t, b, 1)
		for _, by := range []*client{a, c} {
			st := status(t, by, "1")
			if len(st.Holdings) != 1 || len(st.Waits) != 1 {
				t.Fatalf("released: %+v", st)
			}
			if h := st.Holdings[0]; h.By != dblock.ByFence || h.Name != "refund worker" || h.Shared != shared || h.Held <= 0 || h.Left != 0 || st.Waits[0].For[0] != h.PID {
				t.Errorf("released: %+v", st)
			}
		}
		if s, err := c.Inspect(within(t)); err != nil || len(s) != 1 || s[0].Number != key("1").Number() {
			t.Errorf("without its name: %v\n%s", err, s)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		release(t, <-won)
	}
	tx := begin()
	if err := a.LockTx(t.Context(), tx, key("1"), nil); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	second := begin()
	go func() { done <- c.LockTx(within(t), second, key("1"), nil) }()
	waiting(t, b, 1)
	st := status(t, a, "1")
	if len(st.Holdings) != 1 || st.Holdings[0].By != dblock.ByOther || st.Holdings[0].Own || len(st.Waits) != 1 ||
		st.Waits[0].Name != "refund worker" || st.Waits[0].For[0] != st.Holdings[0].PID {
		t.Errorf("LockTx: %+v", st)
	}
	_ = tx.Rollback(t.Context())
	if err := <-done; err != nil {
		t.Error(err)
	}
	_ = second.Rollback(t.Context())
}

// The server has ended a session, and its holder has not heard of it: that can be seen. So can that nobody holds
// the key any more after a process was killed.
func TestInspectAfterALoss(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c, err := dblock.New(t.Context(), deafDriver{pgxdriver.New(b.pool)}, &dblock.Config{TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	l := acquire(t, c, "1", nil)
	b.Exec(t, fmt.Sprintf(`SELECT pg_terminate_backend(%d)`, status(t, c, "1").Holdings[0].PID))
	pgtest.Eventually(t, "the session is gone", func() bool { return b.keyLocks(t, 2) == 0 })
	if st := status(t, c, "1"); len(st.Holdings) != 1 || !st.Holdings[0].Gone || l.Err() != nil {
		t.Errorf("got %+v, %v", st, l.Err())
	}
	if err := c.Close(t.Context()); err != nil {
		t.Error(err)
	}

	h := startHolder(t, b.URL)
	other := b.client(t, nil)
	if st := status(t, other, "1"); len(st.Holdings) != 1 || !strings.Contains(st.Holdings[0].Name, fmt.Sprintf("/%d", h.Process.Pid)) {
		t.Errorf("want process %d, got %+v", h.Process.Pid, st)
	}
	if err := h.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "nobody holds it", func() bool { return len(status(t, other, "1").Holdings) == 0 })
}

// A plain role sees everything of its own role; of another role's sessions not how long they have been idle.
func TestInspectAsAPlainRole(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	role := db.Role(t)
	db.GrantDML(t, role)
	pool, rootPool := db.Via(db.As(t, role)).Pool(t), db.Pool(t)
	a, c := clientOf(t, pool, named("a")), clientOf(t, pool, named("b"))
	root := clientOf(t, rootPool, named("root"))
	l, m := acquire(t, a, "1", nil), acquire(t, root, "2", nil)
	if h := status(t, c, "1").Holdings; len(h) != 1 || h[0].Name != "a" || h[0].Left <= 0 {
		t.Errorf("own role: %+v", h)
	}
	if h := status(t, c, "2").Holdings; len(h) != 1 || h[0].By != dblock.BySession || h[0].Name != "root" || h[0].PID == 0 || h[0].Left != 0 {
		t.Errorf("another role: %+v", h)
	}
	release(t, l)
	release(t, m)
}

// Names are whatever somebody has called himself. They are cut where the server cuts, and never in the middle of a
// character; what cannot be shown is escaped in the table, and nobody can write lines into it.
func TestInspectHostileNames(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.client(t, nil)
	for name, want := range map[string]string{
		strings.Repeat("x", 63):     strings.Repeat("x", 40),
		strings.Repeat("ü", 31):     strings.Repeat("ü", 6),
		"100%25: a%0Ab\u202e \"q\"": "100%25: a%0Ab\u202e \"q\"",
		"worker 7":                  "worker 7",
	} {
		a := b.client(t, named(name))
		l := acquire(t, a, "1", nil)
		if h := status(t, c, "1").Holdings; len(h) != 1 || !strings.HasPrefix(name, h[0].Name) || !strings.HasPrefix(h[0].Name, want) {
			t.Errorf("%q: got %+v, want at least %q", name, h, want)
		}
		release(t, l)
	}
	for _, name := range []string{strings.Repeat("x", 64), "a\nb", "\xff"} {
		if _, err := dblock.New(t.Context(), pgxdriver.New(b.pool), named(name)); err == nil || !strings.Contains(err.Error(), "Holder") {
			t.Errorf("%q: got %v", name, err)
		}
	}
	tx, err := b.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), `SET LOCAL application_name = 'pgonce:ffffffff:99999999999:%0A%1b[2J'`); err != nil {
		t.Fatal(err)
	}
	if err := c.LockTx(t.Context(), tx, key("1"), nil); err != nil {
		t.Fatal(err)
	}
	s, err := c.Inspect(within(t), key("1"))
	if err != nil || strings.Count(s.String(), "\n") != 2 || strings.ContainsAny(s.String(), "\x1b") || !strings.Contains(s.String(), `%0A%1b[2J`) {
		t.Errorf("got %v\n%s", err, s)
	}
}
