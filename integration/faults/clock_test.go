//go:build linux

package faults_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/localpg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

const (
	hour = time.Hour
	day  = 24 * time.Hour
)

// clock is the wall clock of a server. Its other clock, by which time-outs and the kernel go, is left alone, as by an
// administrator who sets the time.
type clock struct {
	file  string
	pool  *pgxpool.Pool
	ahead time.Duration
}

// onClock starts a server with a clock of its own.
func onClock(t *testing.T) (*clock, *service) {
	t.Helper()
	if faketime == "" {
		t.Skip("there is no libfaketime here: run scripts/setup.sh faults")
	}
	dir, err := os.MkdirTemp("/tmp", "clock-") //nolint:usetesting // it has to be read by the server's user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c := &clock{file: filepath.Join(dir, "offset")}
	c.write(t)
	server := start(t, &localpg.Config{Env: []string{
		"LD_PRELOAD=" + faketime, "FAKETIME_TIMESTAMP_FILE=" + c.file, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1",
	}})
	c.pool = open(t, server.URL("postgres"))
	migrate(t, c.pool)
	s := newService(t, c.pool)
	return c, s
}

func (c *clock) write(t *testing.T) {
	t.Helper()
	next := c.file + ".next"
	err := os.WriteFile(next, fmt.Appendf(nil, "%+d\n", int64(c.ahead/time.Second)), 0o644)
	if err := errors.Join(err, os.Rename(next, c.file)); err != nil {
		t.Fatal(err)
	}
}

// set sets the server's clock so far ahead of ours, and returns when the server goes by that.
func (c *clock) set(t *testing.T, ahead time.Duration) {
	t.Helper()
	c.ahead = ahead
	c.write(t)
	pgtest.Eventually(t, "the server's clock is set", func() bool {
		var now time.Time
		err := c.pool.QueryRow(t.Context(), `SELECT clock_timestamp()`).Scan(&now)
		return err == nil && time.Until(now.Add(-ahead)).Abs() < 5*time.Minute
	})
}

// steps are what an administrator, or a failover to another host, may do to a clock.
var steps = map[string]time.Duration{"an hour ahead": hour, "an hour back": -hour, "days ahead": 3 * day, "days back": -3 * day}

// The clock is stepped while a handler is at work. It is executed once.
func TestClockIsSteppedUnderAHandler(t *testing.T) {
	t.Parallel()
	c, s := onClock(t)
	ahead := time.Duration(0)
	for name, step := range steps {
		ahead += step
		res, err := idem.Do(t.Context(), s.keys, refund.Key("m", name), idem.NoFingerprint(), func(ctx context.Context, tx pgx.Tx) (string, error) {
			_, err := tx.Exec(ctx, `INSERT INTO effect VALUES ($1, '')`, name)
			c.set(t, ahead)
			return name, err
		})
		if err != nil || res.Value != name || res.Replayed {
			t.Errorf("%s: got %+v, %v", name, res, err)
		}
		rep, err := idem.Do(t.Context(), s.keys, refund.Key("m", name), idem.NoFingerprint(), func(context.Context, pgx.Tx) (string, error) {
			return "", errors.New("executed again")
		})
		if err != nil || !rep.Replayed || rep.Value != name {
			t.Errorf("%s: the repeat got %+v, %v", name, rep, err)
		}
		if n := number(t, c.pool, `SELECT count(*) FROM effect WHERE name = $1`, name); n != 1 {
			t.Errorf("%s: %d effects", name, n)
		}
	}
	fmt.Printf("faults clock handler steps=%d effects=%d ok=%t\n", len(steps), number(t, c.pool, `SELECT count(*) FROM effect`), !t.Failed())
}

// shortly is an operation whose results are kept for a day, and its keys for thirty.
var shortly = idem.Op{Name: "refund.short"}

// What is remembered goes by the server's clock. While it is ahead, results seem to be gone early: ErrExpired, and no second execution.
// A key is forgotten early only when it is ahead of RememberFor and a purge runs then. When it is back nothing else is left of it. Forever is
// for ever.
func TestMemoryWhenTheClockIsStepped(t *testing.T) {
	t.Parallel()
	c, s := onClock(t)
	executed := map[string]int{}
	do := func(op idem.Op, name string) (replayed bool, err error) {
		res, err := idem.Do(t.Context(), s.keys, op.Key("m", name), idem.NoFingerprint(), func(context.Context, pgx.Tx) (string, error) {
			executed[name]++
			return name, nil
		})
		return res.Replayed, err
	}
	expect := func(when string, op idem.Op, name string, replayed bool, times int, want error) {
		t.Helper()
		got, err := do(op, name)
		if got != replayed || !errors.Is(err, want) || executed[name] != times {
			t.Errorf("%s: %s: replayed %t, executed %d times, %v; want %t, %d, %v", when, name, got, executed[name], err, replayed, times, want)
		}
	}
	expect("at first", shortly, "short", false, 1, nil)
	expect("at first", refund, "forever", false, 1, nil)
	c.set(t, -3*day)
	expect("3 days back", shortly, "short", true, 1, nil)
	expect("3 days back", shortly, "back then", false, 1, nil)
	c.set(t, 0)
	expect("put right", shortly, "back then", false, 1, idem.ErrExpired)
	c.set(t, 3*day)
	expect("3 days ahead", shortly, "short", false, 1, idem.ErrExpired)
	expect("3 days ahead", refund, "forever", true, 1, nil)
	c.set(t, 0)
	expect("put right", shortly, "short", true, 1, nil)

	c.set(t, 40*day)
	if stats, err := s.keys.PurgeOnce(t.Context()); err != nil || stats.Deleted != 2 {
		t.Errorf("a purge in 40 days: %+v, %v", stats, err)
	}
	c.set(t, 0)
	expect("after that purge", shortly, "short", false, 2, nil) // which is why money is remembered for ever
	expect("after that purge", refund, "forever", true, 1, nil)
	c.set(t, -3*day)
	if stats, err := s.keys.PurgeOnce(t.Context()); err != nil || stats.Deleted != 0 {
		t.Errorf("a purge 3 days back: %+v, %v", stats, err)
	}
	fmt.Printf("faults clock memory ok=%t\n", !t.Failed())
}

// A key that is executed in steps: when the clock jumps ahead its lease is over, another caller goes on with it, and nothing of the first
// one lands but what he had done. When it goes back he keeps it.
func TestStepsWhenTheClockIsStepped(t *testing.T) {
	t.Parallel()
	c, s := onClock(t)
	ahead := time.Duration(0)
	for name, step := range steps {
		key := remit.Key("m", name)
		there, goOn := make(chan struct{}), make(chan struct{})
		done := make(chan error, 1)
		owner := newService(t, open(t, c.pool.Config().ConnString()))
		owner.bank = s.bank
		go func() {
			_, err := idem.RunSteps(t.Context(), owner.keys, key, idem.NoFingerprint(), name, owner.remitting(func(ctx context.Context) {
				close(there)
				select {
				case <-goOn:
				case <-ctx.Done():
				}
			}))
			done <- err
		}()
		<-there
		ahead += step
		c.set(t, ahead)
		repeat := func() (idem.Result[string], error) {
			return idem.RunSteps(t.Context(), s.keys, key, idem.NoFingerprint(), name, s.remitting(nil))
		}
		if step > 0 {
			pgtest.Eventually(t, name+": another one goes on", func() bool {
				_, err := repeat()
				return err == nil
			})
			if err := <-done; !errors.Is(err, idem.ErrLeaseLost) {
				t.Errorf("%s: the owner is told %v", name, err)
			}
		} else {
			if _, err := repeat(); !errors.Is(err, idem.ErrInFlight) {
				t.Errorf("%s: while it is executed: %v", name, err)
			}
			close(goOn)
			if err := <-done; err != nil {
				t.Errorf("%s: the owner is told %v", name, err)
			}
		}
		if res, err := repeat(); err != nil || !res.Replayed {
			t.Errorf("%s: the repeat got %+v, %v", name, res, err)
		}
		if n := number(t, c.pool, `SELECT count(*) FROM booked WHERE name = $1`, name); n != 1 {
			t.Errorf("%s: booked %d times", name, n)
		}
		if n := len(s.bank[name]); n != 1 {
			t.Errorf("%s: paid under %d references", name, n)
		}
	}
	fmt.Printf("faults clock steps steps=%d ok=%t\n", len(steps), !t.Failed())
}

// A key whose owner has died is free when his lease is over by the server's clock. If that goes back, it is held until the clock has caught
// up, or until a person who knows that he is dead deletes his row.
func TestDeadOwnerWhenTheClockGoesBack(t *testing.T) {
	t.Parallel()
	c, s := onClock(t)
	for name, free := range map[string]func(){
		"caught up": func() { c.set(t, 3*hour) },
		"deleted": func() {
			say(t, c.pool, `DELETE FROM pgonce.idem_worker WHERE alive_until > now() + interval '1 hour'`)
		},
	} {
		c.set(t, 2*hour)
		own := open(t, c.pool.Config().ConnString())
		keys, err := idem.New(pgxdriver.New(own), &idem.Config{Lease: 3 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		key := remit.Key("m", name)
		_, err = idem.RunSteps(t.Context(), keys, key, idem.NoFingerprint(), name, s.remitting(func(context.Context) { own.Close() }))
		if err == nil {
			t.Fatal("it has a connection still")
		}
		repeat := func() error {
			_, err := idem.RunSteps(t.Context(), s.keys, key, idem.NoFingerprint(), name, s.remitting(nil))
			return err
		}
		c.set(t, 0)
		if err := repeat(); !errors.Is(err, idem.ErrInFlight) {
			t.Errorf("%s: when the clock is back: %v", name, err)
		}
		free()
		pgtest.Eventually(t, name+": the key is free", func() bool { return repeat() == nil })
		if n := len(s.bank[name]); n != 1 {
			t.Errorf("%s: paid under %d references", name, n)
		}
	}
	fmt.Printf("faults clock dead-owner ok=%t\n", !t.Failed())
}

// Timed events fire by the server's clock, early or late with it, and once.
func TestSweepWhenTheClockIsStepped(t *testing.T) {
	t.Parallel()
	c, s := onClock(t)
	sweep := func(when string, want int) {
		t.Helper()
		rows, err := s.orders.Sweep(t.Context(), nil, nil)
		if err != nil || len(rows) != want {
			t.Errorf("%s: %d rows were moved, %v; want %d", when, len(rows), err, want)
		}
	}
	create := func(id int64) {
		t.Helper()
		if _, err := s.orders.Create(t.Context(), id, "unpaid"); err != nil {
			t.Fatal(err)
		}
	}
	create(1)
	sweep("at once", 0)
	c.set(t, -3*day)
	create(2)
	sweep("3 days back", 0)
	c.set(t, 0)
	sweep("put right", 1) // the second one is old now
	c.set(t, 2*hour)
	create(3)
	sweep("2 hours ahead", 1)
	c.set(t, 0)
	sweep("back", 0)
	if _, err := s.orders.Fire(t.Context(), 3, pay); err != nil {
		t.Error(err)
	}
	c.set(t, 3*day)
	sweep("3 days ahead", 0)
	for b, err := range s.orders.VerifyHistory(t.Context()) {
		t.Errorf("%v, %v", b, err)
	}
	fmt.Printf("faults clock sweep ok=%t\n", !t.Failed())
}
