package main

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/urging/urges"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// desk is a service in this process, with a ticket.
type desk struct {
	*urges.Service
	db     *pgtest.DB
	std    *sql.DB       // the service's
	pool   *pgxpool.Pool // the test's
	ticket int64
	later  atomic.Int64
}

func newDesk(t *testing.T, cfg urges.Config) *desk {
	t.Helper()
	db, g := newGround(t)
	d := &desk{db: db, std: db.SQL(t), pool: g.Pool, ticket: db.Int(t, `INSERT INTO urging.ticket (assignee) VALUES ('a') RETURNING id`)}
	cfg.Clock = func() time.Time { return time.Now().Add(time.Duration(d.later.Load())) }
	var err error
	if d.Service, err = urges.NewService(t.Context(), d.std, &cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close(context.WithoutCancel(t.Context())) })
	return d
}

func (d *desk) urge(t *testing.T, user string) urges.Answer {
	t.Helper()
	a, err := d.Urge(t.Context(), d.ticket, user)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (d *desk) age(t *testing.T, by time.Duration) {
	t.Helper()
	if err := demo.Age(t.Context(), d.pool, by, demo.Aged{Schema: "urging"}); err != nil {
		t.Fatal(err)
	}
	d.later.Add(int64(by))
}

// The window is fixed: who joins late does not make it longer, and what comes after it begins a new one. The database refuses
// windows that overlap, and takes those that touch.
func TestWindowIsFixed(t *testing.T) {
	t.Parallel()
	d := newDesk(t, urges.Config{})
	first := d.urge(t, "ann")
	d.age(t, 10*time.Minute)
	second := d.urge(t, "bob")
	if !first.Opened || second.Opened || second.Again || second.Urge != first.Urge || !second.Next.Equal(first.Next.Add(-10*time.Minute)) {
		t.Errorf("%+v, then %+v", first, second)
	}
	if a := d.urge(t, "ann"); !a.Again || !a.Cached {
		t.Errorf("ann, within the window: %+v", a)
	}
	d.age(t, 5*time.Minute)
	third := d.urge(t, "ann")
	if !third.Opened || third.Again || third.Urge == first.Urge {
		t.Errorf("ann, after the window: %+v", third)
	}
	latest := d.db.Int(t, `SELECT count(*) FROM urging.urge u WHERE latest_at = (SELECT max(at) FROM urging.urger WHERE urge = u.id)`)
	if latest != 2 {
		t.Errorf("%d urges have the time of their last user as the latest, want 2", latest)
	}
	const insert = `
INSERT INTO urging.urge (ticket, opened_at, ends_at, latest_at)
SELECT ticket, ends_at - $1::interval, ends_at - $1::interval + interval '15 minutes', ends_at FROM urging.urge WHERE id = $2`
	if _, err := d.pool.Exec(t.Context(), insert, time.Microsecond, third.Urge); err == nil || !strings.Contains(err.Error(), "23P01") {
		t.Errorf("a window that overlaps: %v", err)
	}
	if _, err := d.pool.Exec(t.Context(), insert, time.Duration(0), third.Urge); err != nil {
		t.Errorf("a window that begins when another ends: %v", err)
	}
}

// The cache answers repeats without the database, and only while the answer is true: what it has forgotten or what is over is
// asked for again.
func TestCacheSaysWhatIsTrue(t *testing.T) {
	t.Parallel()
	d := newDesk(t, urges.Config{CacheSize: 2})
	d.urge(t, "ann")
	over, cancel := context.WithCancel(t.Context())
	cancel() // with this, nobody gets a lock or a connection
	if a, err := d.Urge(over, d.ticket, "ann"); err != nil || !a.Again || !a.Cached {
		t.Errorf("a repeat: %+v, %v", a, err)
	}
	if _, err := d.Urge(over, d.ticket, "bob"); !errors.Is(err, context.Canceled) {
		t.Errorf("a first time: %v", err)
	}
	d.urge(t, "bob")
	d.urge(t, "cid") // and ann is forgotten
	if a := d.urge(t, "ann"); !a.Again || a.Cached {
		t.Errorf("ann, forgotten: %+v", a)
	}
	d.later.Add(int64(urges.Window)) // the process believes that the window is over: the database says that it is not
	if a := d.urge(t, "ann"); !a.Again || a.Cached {
		t.Errorf("ann, when the cache is out of date: %+v", a)
	}
}

// Waiting for a ticket's lock ends with the caller's ctx. Of the pool it takes one connection, however many wait, beside the
// one that the locks have.
func TestWaitEndsWithContext(t *testing.T) {
	t.Parallel()
	d := newDesk(t, urges.Config{})
	locks, err := dblock.New(t.Context(), pgxdriver.New(d.pool), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = locks.Close(context.WithoutCancel(t.Context())) }()
	lock, err := locks.Acquire(t.Context(), dblock.Key{Space: "urging.ticket", ID: strconv.FormatInt(d.ticket, 10)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := d.Urge(ctx, d.ticket, "ann"); !errors.Is(err, dblock.ErrNotAcquired) || !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
	}
	pgtest.Eventually(t, "they wait, one of them in the server's queue, and two connections of the pool are held", func() bool {
		return d.std.Stats().InUse == 2 &&
			d.db.Int(t, `SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == 1
	})
	cancel()
	wg.Wait()
	if err := lock.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if a := d.urge(t, "ann"); a.Again || !a.Opened {
		t.Errorf("after that: %+v", a)
	}
}

// Who urges twice at the same moment is told once that it was his first.
func TestOneUserAtOnce(t *testing.T) {
	t.Parallel()
	d := newDesk(t, urges.Config{})
	var first atomic.Int64
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			if a := d.urge(t, "ann"); !a.Again {
				first.Add(1)
			}
		})
	}
	wg.Wait()
	if n, jobs := first.Load(), d.db.Int(t, `SELECT count(*) FROM urging_queue.river_job`); n != 1 || jobs != 1 {
		t.Errorf("%d were told that it was the first, %d pushes are in the queue", n, jobs)
	}
	if _, err := d.Urge(t.Context(), -1, "ann"); !errors.Is(err, urges.ErrUnknownTicket) {
		t.Errorf("an unknown ticket: %v", err)
	}
	if _, err := d.Urge(t.Context(), d.ticket, ""); !errors.Is(err, urges.ErrNoUser) {
		t.Errorf("nobody: %v", err)
	}
}

// An urge, its sub-record and its job are one commit: whichever of them is refused, none is there.
func TestUrgeAndPushAreOneCommit(t *testing.T) {
	t.Parallel()
	d := newDesk(t, urges.Config{})
	const count = `SELECT (SELECT count(*) FROM urging.urge) + (SELECT count(*) FROM urging.urger) + (SELECT count(*) FROM urging_queue.river_job)`
	d.db.Exec(t, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not now'; END $$`)
	for _, table := range []string{"urging.urger", "urging_queue.river_job"} {
		d.db.Exec(t, `CREATE TRIGGER refuse BEFORE INSERT ON `+table+` FOR EACH ROW EXECUTE FUNCTION refuse()`)
		if _, err := d.Urge(t.Context(), d.ticket, "ann"); err == nil || !strings.Contains(err.Error(), "not now") {
			t.Errorf("%s: got %v", table, err)
		}
		if n := d.db.Int(t, count); n != 0 {
			t.Errorf("%s: %d rows are left of what was rolled back", table, n)
		}
		d.db.Exec(t, `DROP TRIGGER refuse ON `+table)
	}
	if a := d.urge(t, "ann"); a.Again || !a.Opened || d.db.Int(t, count) != 3 {
		t.Errorf("after that: %+v", a)
	}
}

// A pool that its locks could use up is refused.
func TestPoolIsLargeEnough(t *testing.T) {
	t.Parallel()
	std := new(sql.DB) // nothing is sent
	std.SetMaxOpenConns(7)
	if _, err := urges.NewService(t.Context(), std, nil); err == nil || !strings.Contains(err.Error(), "SetMaxOpenConns(8)") {
		t.Errorf("got %v", err)
	}
}

// Next is a minute in which the window is over.
func TestMessage(t *testing.T) {
	t.Parallel()
	at := func(seconds int) time.Time {
		return time.Date(2026, 1, 2, 14, 31, 0, 0, time.UTC).Add(time.Duration(seconds) * time.Second)
	}
	for _, tc := range []struct {
		answer urges.Answer
		want   string
	}{
		{urges.Answer{Again: true, Next: at(60)}, "already urged, next at 14:32"},
		{urges.Answer{Again: true, Next: at(59)}, "already urged, next at 14:32"},
		{urges.Answer{Next: at(61)}, "urged, next at 14:33"},
	} {
		if got := tc.answer.Message(time.UTC); got != tc.want {
			t.Errorf("%v: %q, want %q", tc.answer.Next, got, tc.want)
		}
	}
}
