//go:build unix

package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/internal/fault"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/riverqueue/river/rivertype"
)

// line is a River queue with a worker on it.
type line struct {
	*inbox
	client *river.Client[pgx.Tx]
	worker *Worker
}

func newLine(t *testing.T) *line {
	t.Helper()
	l := &line{inbox: newInbox(t)}
	quiet := slog.New(slog.DiscardHandler)
	driver := riverpgxv5.New(l.Pool)
	m, err := rivermigrate.New(driver, &rivermigrate.Config{Logger: quiet})
	if err == nil {
		_, err = m.Migrate(t.Context(), rivermigrate.DirectionUp, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	workers := river.NewWorkers()
	l.worker = &Worker{Pool: l.Pool, Keys: l.keys, Handle: func(ctx context.Context, tx pgx.Tx, m Message) error { return l.handle(ctx, tx, m) }}
	river.AddWorker(workers, l.worker)
	l.client, err = river.NewClient(driver, &river.Config{
		Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 4}}, Workers: workers, Logger: quiet, MaxAttempts: 3,
		FetchPollInterval: 50 * time.Millisecond, FetchCooldown: 10 * time.Millisecond, TestOnly: true, RetryPolicy: atOnce{},
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// atOnce is the policy of a queue that a test waits for.
type atOnce struct{}

func (atOnce) NextRetry(*rivertype.JobRow) time.Time { return time.Now() }

// work runs the queue until every job is done with.
func (l *line) work() {
	l.t.Helper()
	l.start()
	l.finish()
}

func (l *line) start() {
	l.t.Helper()
	if err := l.client.Start(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
}

func (l *line) finish() {
	l.t.Helper()
	pgtest.Eventually(l.t, "the jobs", func() bool {
		return l.db.Int(l.t, `SELECT count(*) FROM river_job WHERE finalized_at IS NULL`) == 0
	})
	if err := l.client.Stop(context.WithoutCancel(l.t.Context())); err != nil {
		l.t.Fatal(err)
	}
}

func (l *line) insert(message, body string) {
	l.t.Helper()
	if _, err := l.client.Insert(l.t.Context(), Args{Source: "bank", Message: message, Body: []byte(body)}, nil); err != nil {
		l.t.Fatal(err)
	}
}

// jobs counts those in a state.
func (l *line) jobs(state string, want int64) {
	l.t.Helper()
	if n := l.db.Int(l.t, fmt.Sprintf(`SELECT count(*) FROM river_job WHERE state = '%s'`, state)); n != want {
		l.t.Errorf("%d jobs are %s, want %d", n, state, want)
	}
}

// Published twice, delivered again after it was done, and tried again after an error: one effect each.
func TestRiverDeliversAgain(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	var runs atomic.Int64
	l.handle = func(ctx context.Context, tx pgx.Tx, m Message) error {
		err := AddCredit(ctx, tx, m)
		if runs.Add(1) <= 2 {
			err = errors.Join(err, errors.New("the database is busy"))
		}
		return err
	}
	for _, message := range []string{"m1", "m1", "m2"} {
		l.insert(message, hundred)
	}
	l.work()
	l.has(200, 0, 0)
	l.jobs("completed", 3)
	l.db.Exec(t, `UPDATE river_job SET state = 'available', finalized_at = NULL, scheduled_at = now()`) // a broker that has lost its memory
	l.work()
	l.has(200, 0, 0)
	l.jobs("completed", 3)
	if runs.Load() < 4 {
		t.Errorf("%d runs: nothing was tried again", runs.Load())
	}
}

// Effect, memory of the message and acknowledgement are one commit: what undoes one undoes all of them.
func TestRiverCommitsOnce(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.db.Exec(t, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$;
		CREATE TRIGGER refuse AFTER UPDATE ON river_job FOR EACH ROW WHEN (NEW.state = 'completed' AND OLD.attempt < 3) EXECUTE FUNCTION refuse()`)
	l.insert("m1", hundred)
	l.work()
	l.has(100, 0, 0)
	l.jobs("completed", 1)
	if n := l.db.Int(t, `SELECT attempt::bigint FROM river_job`); n != 3 {
		t.Errorf("%d attempts, want 3: the first two had to be undone at the acknowledgement", n)
	}
}

// The worker's connection is cut at COMMIT: it does not know what became of it, and need not.
func TestRiverLosesTheAnswerToCommit(t *testing.T) {
	t.Parallel()
	for kind, runs := range map[fault.Kind]int64{fault.CutBeforeCommit: 2, fault.CutAfterCommit: 1} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			proxy := fault.New(t, l.db.URL)
			l.worker.Pool = l.db.Via(proxy.URL()).Pool(t)
			var ran atomic.Int64
			l.handle = func(ctx context.Context, tx pgx.Tx, m Message) error {
				if ran.Add(1) == 1 {
					proxy.Arm(int64(tx.Conn().PgConn().PID()), kind)
				}
				return AddCredit(ctx, tx, m)
			}
			l.insert("m1", hundred)
			l.work()
			l.has(100, 0, 0)
			l.jobs("completed", 1)
			if ran.Load() != runs {
				t.Errorf("%d runs, want %d", ran.Load(), runs)
			}
		})
	}
}

// A bad message is cancelled at once, one that always fails is discarded by the queue, and neither leaves anything.
func TestRiverPutsPoisonAside(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.handle = func(ctx context.Context, tx pgx.Tx, m Message) error {
		err := AddCredit(ctx, tx, m)
		if m.ID == "fails" {
			err = errors.Join(err, errors.New("no such account"))
		}
		if m.ID == "kills" {
			panic("a bug")
		}
		return err
	}
	for message, body := range map[string]string{"bad": "{}", "fails": hundred, "kills": hundred, "m1": hundred} {
		l.insert(message, body)
	}
	l.work()
	l.has(100, 0, 0)
	l.jobs("completed", 1)
	l.jobs("cancelled", 1)
	l.jobs("discarded", 2)
	if n := l.db.Int(t, `SELECT count(*) FROM pgonce.idem_record`); n != 1 {
		t.Errorf("%d messages are remembered, want 1", n)
	}
}

// Two deliveries of one message at once: one has the effect, the other is put off, and not blamed.
func TestRiverDeliversTwiceAtOnce(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	inside, release := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	l.handle = func(ctx context.Context, tx pgx.Tx, m Message) error {
		if once.CompareAndSwap(false, true) {
			close(inside)
			<-release
		}
		return AddCredit(ctx, tx, m)
	}
	l.insert("m1", hundred)
	l.insert("m1", hundred)
	l.start()
	<-inside
	pgtest.Eventually(t, "the other is put off", func() bool {
		return l.db.Int(t, `SELECT count(*) FROM river_job WHERE metadata ? 'snoozes'`) > 0
	})
	close(release)
	l.finish()
	l.has(100, 0, 0)
	l.jobs("completed", 2)
}
