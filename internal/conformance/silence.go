//go:build unix

package conformance

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/fault"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

// threeRows are rows that no client library reads ahead of, and small enough for the kernel to take one that nobody reads from a server.
const threeRows = `SELECT g, repeat('x', 30000) FROM generate_series(1, 3) g`

// silence has the connection that q uses next fall silent. It is used twice before: pgx pings one that is taken out of a pool of database/sql for the
// first time, or has not been used for a second, and that ping has no deadline but that of ctx.
func silence(t *testing.T, proxy *fault.Proxy, q pg.Querier, kind fault.Kind) {
	t.Helper()
	var pid, before int64
	pgtest.Eventually(t, "the pool has a good connection", func() bool {
		before = pid
		return q.Run(t.Context(), pg.Stmt{SQL: pg.SQLBackendPID, Dest: []any{&pid}}) == nil && pid == before
	})
	proxy.Arm(pid, kind)
}

// answered fails the test when fn is held for ever.
func answered(t *testing.T, fn func() error) (err error) {
	t.Helper()
	result := make(chan error, 1)
	go func() { result <- fn() }()
	select {
	case err = <-result:
	case <-time.After(time.Minute):
		t.Fatal("it is held for ever")
	}
	return err
}

// wantSilence wants the error of a server that has not answered, which is not the end of a ctx, and not known to have done nothing.
func wantSilence(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.Is(err, pg.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// The network falls silent in a query whose ctx has no end: before the first row, between two, and behind a caller who has had enough. The
// query ends, its connection is closed and its place in the pool free, for whoever is told of it too. A neighbour goes on.
func seamSilentRows[TX any](t *testing.T, c Client[TX]) {
	for name, tc := range map[string]struct {
		kind fault.Kind
		rows int64
		stop bool
	}{
		"before the first row": {fault.MuteNext, 0, false},
		"between rows":         {fault.MuteSecondRow, 1, false},
		"after the last one":   {fault.MuteSecondRow, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			proxy := fault.New(t, db.URL)
			d := c.Open(t, db.Via(proxy.URL()), 2).Driver
			neighbour := begin(t, d, "")
			silence(t, proxy, d.Pool(), tc.kind)
			ctx := pg.WithNetTimeout(t.Context(), time.Second)
			var rows int64
			err := answered(t, func() (failed error) {
				for _, err := range d.Pool().Query(ctx, threeRows) {
					if err != nil {
						failed = err
						if err := d.Pool().Run(t.Context(), pg.Stmt{SQL: `SELECT 1`}); err != nil {
							t.Errorf("its place in the pool is not free: %v", err)
						}
						continue
					}
					if rows++; tc.stop {
						break
					}
				}
				return failed
			})
			if tc.stop {
				noErr(t, err)
			} else {
				wantSilence(t, err)
			}
			wantInt(t, "rows", rows, tc.rows)
			noErr(t, d.Pool().Run(t.Context(), pg.Stmt{SQL: `SELECT 1`}))
			noErr(t, neighbour.Commit(t.Context()))
		})
	}
}

// The network deadline is for the server: what the loop's body takes does not use it up, and the connection has none when it is back.
func seamSlowReader[TX any](t *testing.T, c Client[TX]) {
	d := c.Open(t, pgtest.New(t), 1).Driver
	const deadline = 2 * time.Second
	rows := int64(0)
	for _, err := range d.Pool().Query(pg.WithNetTimeout(t.Context(), deadline), threeRows) {
		noErr(t, err)
		if rows++; rows == 1 {
			<-time.After(2*deadline + 100*time.Millisecond)
		}
	}
	wantInt(t, "rows", rows, 3)
	noErr(t, d.Pool().Run(t.Context(), pg.Stmt{SQL: `SELECT pg_sleep($1::float8)`, Args: []any{(deadline + 100*time.Millisecond).Seconds()}}))
}

// The caller's ctx ends: in the body, with the next row swallowed by the network or come already, and while a row is awaited. It
// ends the query with its own error and cause, not with the network's.
func seamReaderGivesUp[TX any](t *testing.T, c Client[TX]) {
	enough := errors.New("enough")
	for name, tc := range map[string]struct {
		kind   fault.Kind
		sql    string
		inBody bool
	}{
		"in the body":            {fault.MuteSecondRow, threeRows, true},
		"in the body, all there": {fault.None, `SELECT generate_series(1, 3)`, true},
		"while it waits":         {fault.MuteSecondRow, threeRows, false},
		"before the first row":   {fault.MuteNext, threeRows, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			proxy := fault.New(t, db.URL)
			d := c.Open(t, db.Via(proxy.URL()), 1).Driver
			silence(t, proxy, d.Pool(), tc.kind)
			ctx, cancel := context.WithCancelCause(pg.WithNetTimeout(t.Context(), time.Hour)) // which ends nothing here
			defer cancel(nil)
			want := []error{context.Canceled, enough}
			if !tc.inBody {
				var stop context.CancelFunc
				ctx, stop = context.WithTimeout(ctx, 500*time.Millisecond)
				defer stop()
				want = []error{context.DeadlineExceeded}
			}
			var rows int64
			err := answered(t, func() (failed error) {
				for _, err := range d.Pool().Query(ctx, tc.sql) {
					if failed = err; err == nil {
						rows++
					}
					if tc.inBody {
						cancel(enough)
						<-time.After(100 * time.Millisecond) // the client library has heard of it before the next row is awaited, or else after
					}
				}
				return failed
			})
			for _, want := range want {
				wantErr(t, err, want)
			}
			if errors.Is(err, os.ErrDeadlineExceeded) || rows > 1 {
				t.Errorf("got %v, after %d rows", err, rows)
			}
			noErr(t, d.Pool().Run(t.Context(), pg.Stmt{SQL: `SELECT 1`}))
		})
	}
}

// What only reads is bounded as well, and says that the database is not available.
func idemSilentReads[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects)
	proxy := fault.New(t, db.URL)
	b := at(t, c, db, c.Open(t, db.Via(proxy.URL()), 1), nil)
	for _, id := range []string{"r1", "r2"} {
		_, err := b.do(t.Context(), id)
		noErr(t, err)
	}
	ctx := pg.WithNetTimeout(t.Context(), time.Second)
	list := func() (failed error) {
		for _, err := range b.keys.List(ctx, "m1", nil) {
			failed = err
		}
		return failed
	}
	for _, tc := range []struct {
		name string
		kind fault.Kind
		verb func() error
	}{
		{"list", fault.MuteNext, list},
		{"list, in the middle", fault.MuteSecondRow, list},
		{"inspect", fault.MuteSecondRow, func() error { // the first row is that of the lock
			_, err := b.keys.Inspect(ctx, refund.Key("m1", "r1"))
			return err
		}},
		{"stuck", fault.MuteNext, func() error { _, err := b.keys.Stuck(ctx, 1); return err }},
	} {
		silence(t, proxy, b.pool.Pool(), tc.kind)
		if err := answered(t, tc.verb); !errors.Is(err, idem.ErrUnavailable) {
			t.Errorf("%s: got %v, want ErrUnavailable", tc.name, err)
		}
	}
	_, err := b.do(t.Context(), "r1")
	noErr(t, err)
	b.effects(2)
}

// What only reads says that the database is not available. Of events at many rows, nobody knows what became of them.
func machineSilentNetwork[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, items+`; INSERT INTO item VALUES (1), (2)`)
	proxy := fault.New(t, db.URL)
	d := c.Open(t, db.Via(proxy.URL()), 1).Driver
	b := bind(t, d, flow, sm.Table{Name: "item"})
	noErr(t, b.Validate(t.Context()))
	ctx := pg.WithNetTimeout(t.Context(), time.Second)

	silence(t, proxy, d.Pool(), fault.MuteSecondRow)
	err := answered(t, func() error { _, err := b.FireMany(ctx, []int64{1, 2}, goEvent); return err })
	wantErr(t, err, sm.ErrUnknownOutcome)
	if errors.Is(err, sm.ErrUnavailable) {
		t.Errorf("what may have been done was reported as nothing done: %v", err)
	}
	pgtest.Eventually(t, "the server has done it", func() bool { return db.Int(t, `SELECT count(*) FROM item WHERE state = 't'`) == 2 })

	for name, verb := range map[string]func() error{
		"history": func() (failed error) {
			for _, err := range b.History(ctx, 1) {
				failed = err
			}
			return failed
		},
		"verify history": func() (failed error) {
			for _, err := range b.VerifyHistory(pg.WithNetTimeout(ctx, 20*time.Millisecond)) { // it has 240 of them
				failed = err
			}
			return failed
		},
		"a first call": func() error { return bind(t, d, flow, sm.Table{Name: "item"}).Validate(ctx) },
	} {
		silence(t, proxy, d.Pool(), fault.MuteNext)
		if err := answered(t, verb); !errors.Is(err, sm.ErrUnavailable) {
			t.Errorf("%s: got %v, want ErrUnavailable", name, err)
		}
	}
	noErr(t, b.Validate(t.Context()))
}

// Nobody who looks at leases is held for ever.
func leaseSilentInspect[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	proxy := fault.New(t, db.URL)
	l := &locks[TX]{t, c, db, c.Open(t, db.Via(proxy.URL()), 1), dblock.NewLeases[TX]}
	client := l.client(nil)
	silence(t, proxy, l.pool.Pool(), fault.MuteNext)
	ctx := pg.WithNetTimeout(t.Context(), time.Second)
	wantErr(t, answered(t, func() error { _, err := client.Inspect(ctx); return err }), dblock.ErrUnavailable)
	_, err := client.Inspect(l.ctx())
	noErr(t, err)
}
