//go:build unix

package idem_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// cutter breaks one connection at the n-th message that is sent over any: before it, or after it, so that the
// server has it and nobody hears the answer.
type cutter struct {
	left  atomic.Int64
	after bool
}

var errCut = errors.New("cut by the test")

func (c *cutter) dial(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &cutConn{Conn: conn, cutter: c}, nil
	}
}

type cutConn struct {
	net.Conn
	cutter *cutter
	deaf   atomic.Bool
}

func (c *cutConn) Write(p []byte) (int, error) {
	if c.cutter.left.Add(-1) != 0 {
		return c.Conn.Write(p)
	}
	if !c.cutter.after {
		_ = c.Close()
		return 0, errCut
	}
	c.deaf.Store(true)
	return c.Conn.Write(p)
}

func (c *cutConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p) // so the server has done it
	if c.deaf.Load() {
		_ = c.Close()
		return 0, errCut
	}
	return n, err
}

// The connection breaks before and after each message of a key. The caller asks again until it is answered: one payment, each
// write once, one answer.
func TestStepsCutAtEveryMessage(t *testing.T) {
	t.Parallel()
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprintf("after %t", after), func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			db.Exec(t, effects+";"+bankTable)
			bank := db.Pool(t)
			for n, more := int64(1), true; more; n++ {
				more = cutOnce(t, db, bank, n, after)
				if n > 200 {
					t.Fatal("it has no end")
				}
			}
		})
	}
}

// cutOnce executes a key whose n-th message meets a cut, and says whether there was one.
func cutOnce(t *testing.T, db *pgtest.DB, bank *pgxpool.Pool, n int64, after bool) bool {
	t.Helper()
	db.Exec(t, `TRUNCATE effect, bank, pgonce.idem_record, pgonce.idem_lease, pgonce.idem_step, pgonce.idem_worker`)
	cut := &cutter{after: after}
	cfg := db.Config(t)
	cfg.MaxConns = 2
	cfg.ConnConfig.DialFunc = cut.dial(cfg.ConnConfig.DialFunc)
	cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	keys, err := idem.New(pgxdriver.New(pool), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := keys.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	cut.left.Store(n)
	var first string
	for tries := 0; ; tries++ {
		res, err := idem.RunSteps(t.Context(), keys, remit.Key("m1", "r1"), idem.NoFingerprint(), "in ", remitting(bank, func(string) {}))
		if err == nil && first != "" {
			if res.Value != first || !res.Replayed {
				t.Errorf("cut at %d: got %+v, the first answer was %q", n, res, first)
			}
			break
		}
		if err == nil {
			first = res.Value
			continue
		}
		if tries > 10 {
			t.Fatalf("cut at %d: still %v", n, err)
		}
		if errors.Is(err, idem.ErrInFlight) { // a claim that nobody knows of: it is free when the lease is over
			db.Exec(t, `UPDATE pgonce.idem_worker SET alive_until = statement_timestamp() - interval '1 second'`)
		}
	}
	for what, want := range map[string]int64{"bank": 1, "effect": 2, "pgonce.idem_record": 1, "pgonce.idem_lease": 0, "pgonce.idem_step": 0} {
		if got := db.Int(t, `SELECT count(*) FROM `+what); got != want {
			t.Errorf("cut at %d (after %t): %d rows in %s, want %d", n, after, got, what, want)
		}
	}
	return cut.left.Load() <= 0
}

// Names of steps and their keys are what other systems remember: they are frozen.
func TestDownstreamKeysAreFrozen(t *testing.T) {
	t.Parallel()
	key := idem.Op{Name: "remittance.send"}.Key("m1", "r1")
	seen := map[string]bool{}
	for _, tc := range []struct {
		schema, step string
		round        int64
		want         string
	}{
		{"pgonce", "pay", 0, "ff4bb34ca5f4d5e91a17953a78eee2c9"}, {"pgonce", "pay", 1, ""}, {"pgonce", "pay1", 0, ""}, {"other", "pay", 0, ""},
	} {
		got := idem.Downstream(key, tc.schema, tc.step, tc.round)
		if seen[got] || len(got) != 32 || tc.want != "" && got != tc.want {
			t.Errorf("%+v: got %s", tc, got)
		}
		seen[got] = true
	}
}

// The server restarts while a key waits for the bank.
func TestServerRestartsUnderSteps(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, effects+";"+bankTable)
	pool := db.Pool(t)
	keys := newStore(t, pool, &idem.Config{Lease: 2 * time.Second})
	for range 3 {
		res, err := idem.RunSteps(t.Context(), keys, remit.Key("m1", "r1"), idem.NoFingerprint(), "in ", remitting(pool, func(at string) {
			if at == "after it has left" || at == "before the payment" {
				db.KillOthers(t)
			}
		}))
		if err != nil || res.Value == "" {
			t.Errorf("got %+v, %v", res, err)
		}
	}
	if n := db.Int(t, `SELECT count(*) FROM bank`); n != 1 {
		t.Errorf("%d payments", n)
	}
}
