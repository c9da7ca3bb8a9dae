//go:build unix

package dblock_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// How a process protects a row that it reads, thinks about and writes back.
const (
	unfenced     = "unfenced"      // by the lock alone
	fenced       = "FenceTx"       // in one transaction
	tokenChecked = "token checked" // at the row itself, which remembers the greatest token
)

// worker adds one to a counter again and again, under the lock.
type worker struct {
	pool *pgxpool.Pool
	way  string
	say  func(line)
}

// round is one time under the lock.
func (w worker) round(ctx context.Context, c *client) error {
	waiting, cancel := context.WithTimeout(ctx, 5*time.Second)
	l, err := c.Acquire(waiting, keyNumber(0), nil)
	cancel() // of the wait only: who has the lock takes his time, or it would not be known what he has committed
	if err != nil {
		return err
	}
	defer func() { _ = l.Release(ctx) }()
	switch w.way {
	case fenced:
		err = w.inOneTransaction(ctx, l)
	case tokenChecked:
		err = w.withToken(ctx, l)
	default:
		err = w.plainly(ctx, l)
	}
	if err == nil {
		w.say(line{Commits: 1})
	}
	return err
}

const thinkTime = 10 * time.Millisecond

var errOvertaken = errors.New("somebody else has the lock by now")

const sqlWrite = `WITH written AS (UPDATE counter SET n = $1, token = greatest(token, $2) RETURNING 1)
	INSERT INTO writes (token) SELECT $2 FROM written`

func (w worker) plainly(ctx context.Context, l *locked) error {
	var n int64
	if err := w.pool.QueryRow(ctx, `SELECT n FROM counter`).Scan(&n); err != nil {
		return err
	}
	pause(l.Context().Done(), thinkTime)
	if err := l.Err(); err != nil { // the best that can be done
		return err
	}
	pause(nil, 5*time.Millisecond) // on the way to the database
	_, err := w.pool.Exec(ctx, sqlWrite, n+1, int64(l.Token()))
	return err
}

func (w worker) inOneTransaction(ctx context.Context, l *locked) error {
	return pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		if err := l.FenceTx(ctx, tx); err != nil {
			return err
		}
		var n int64
		if err := tx.QueryRow(ctx, `SELECT n FROM counter`).Scan(&n); err != nil {
			return err
		}
		pause(nil, thinkTime)
		_, err := tx.Exec(ctx, sqlWrite, n+1, int64(l.Token()))
		return err
	})
}

// withToken leaves its token with the read, too. Else a holder from before could write between a read and
// the first write under the new token.
func (w worker) withToken(ctx context.Context, l *locked) error {
	var n int64
	err := w.pool.QueryRow(ctx, `UPDATE counter SET token = $1 WHERE token <= $1 RETURNING n`, int64(l.Token())).Scan(&n)
	if errors.Is(err, pgx.ErrNoRows) {
		return errOvertaken
	}
	if err != nil {
		return err
	}
	pause(nil, thinkTime)
	tag, err := w.pool.Exec(ctx, strings.Replace(sqlWrite, " RETURNING", " WHERE token <= $2 RETURNING", 1), n+1, int64(l.Token()))
	if err == nil && tag.RowsAffected() == 0 {
		return errOvertaken
	}
	return err
}

// The shapes of Jepsen's test of etcd's locks, beside the history itself: processes read a row, think, and write it back
// under the lock, while holders are frozen for longer than the TTL and their sessions are killed. An unfenced lock loses updates. A fence
// loses none, and neither does a token that the row remembers.
func TestReadModifyWrite(t *testing.T) {
	t.Parallel()
	for _, way := range []string{unfenced, fenced, tokenChecked} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			seed := seedOf(t)
			b := newBench(t)
			b.Exec(t, `CREATE TABLE counter (n bigint NOT NULL, token bigint NOT NULL); INSERT INTO counter VALUES (0, 0);
				CREATE TABLE writes (id bigserial PRIMARY KEY, token bigint NOT NULL)`)
			s := &rewriting{b: b, random: rand.New(rand.NewPCG(seed, 3)), script: script{tenures: map[[2]int64]tenure{}}}
			for i := range 3 {
				u, err := url.Parse(b.URL)
				if err != nil {
					t.Fatal(err)
				}
				q := u.Query()
				q.Set("application_name", fmt.Sprint("actor", i))
				u.RawQuery = q.Encode()
				s.cast = append(s.cast, startActor(t, role{URL: u.String(), First: callersEach * i, Callers: 2, TTL: 500 * time.Millisecond, Seed: seed, Work: way}))
			}
			for s.faults < scale(12, 120) || way == unfenced && s.stale(t) == 0 && s.faults < 200 {
				s.strike(t)
			}
			for _, a := range s.cast {
				a.stop(t)
				s.script.follow(t, a)
			}
			lost := int64(s.script.commits) - b.Int(t, `SELECT n FROM counter`)
			stale := s.stale(t)
			t.Logf("R2 stale writes, %s=%d lost_updates=%d commits=%d faults=%d seed=%d", map[string]string{unfenced: "without fence", fenced: "with FenceTx", tokenChecked: "with token checked"}[way],
				stale, lost, s.script.commits, s.faults, seed)
			if bad := stale + lost; way == unfenced && bad == 0 {
				t.Error("nothing went wrong without a fence, so this shows nothing")
			} else if way != unfenced && bad != 0 {
				t.Errorf("%d stale writes, %d updates lost", stale, lost)
			}
		})
	}
}

// rewriting is such a run.
type rewriting struct {
	b      bench
	random *rand.Rand
	cast   []*actor
	script script
	faults int
}

// stale counts the writes that landed after one with a greater token.
func (s *rewriting) stale(t *testing.T) int64 {
	t.Helper()
	return s.b.Int(t, `SELECT count(*) FROM (SELECT token < max(token) OVER (ORDER BY id) AS stale FROM writes) AS w WHERE stale`)
}

// strike freezes the holder until its session is gone and others had time to write, or ends its session.
func (s *rewriting) strike(t *testing.T) {
	t.Helper()
	const holder = ` FROM pg_stat_activity JOIN pg_locks l USING (pid) WHERE l.locktype = 'advisory' AND l.granted
		AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND (l.classid::bigint << 32) | l.objid::bigint = $1 AND application_name LIKE '%:actor_'`
	number := keyNumber(0).Number()
	before := s.written(t)
	pgtest.Eventually(t, "work goes on", func() bool { return s.written(t) > before })
	if s.random.IntN(4) == 0 {
		s.b.Exec(t, strings.Replace(`SELECT pg_terminate_backend(pid)`+holder, "$1", fmt.Sprint(number), 1))
		s.faults++
		return
	}
	i := s.b.Int(t, `SELECT coalesce(max(right(application_name, 1)::bigint), -1)`+holder, number)
	if i < 0 {
		return
	}
	a := s.cast[i]
	if err := a.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	s.faults++
	before = s.written(t)
	over := time.Now().Add(1500 * time.Millisecond) // three TTLs: nobody else can write while a fenced transaction is open
	pgtest.Eventually(t, "others wrote, or could not", func() bool { return s.written(t) > before+1 || time.Now().After(over) })
	if err := a.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

func (s *rewriting) written(t *testing.T) int64 {
	t.Helper()
	return s.b.Int(t, `SELECT count(*) FROM writes`)
}

// work is what a process does in TestReadModifyWrite.
func work(ctx context.Context, r role, pool *pgxpool.Pool, c *client, say func(line), stop <-chan struct{}) {
	w := worker{pool: pool, way: r.Work, say: say}
	for !pause(stop, 0) {
		err := w.round(ctx, c)
		if err != nil && !errors.Is(err, dblock.ErrLost) && !errors.Is(err, dblock.ErrNotAcquired) && !errors.Is(err, dblock.ErrUnavailable) && !errors.Is(err, errOvertaken) {
			say(line{Error: fmt.Sprint(os.Getpid(), ": ", err)})
		}
	}
}
