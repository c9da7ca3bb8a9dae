// Package urges lets users urge tickets: the shape to copy.
//
// The first urge of a ticket opens a window of fifteen minutes, half-open: [t, t+15 min). Whoever urges within it joins the urge
// with a sub-record of his own, and is told "already urged" after that. The assignee hears of an urge once.
//
// The database's clock decides what the window is, a lock on the ticket decides who goes first, and
// constraints have the last word about both.
package urges

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/riverqueue/river"
)

// Window is how long an urge lasts. The database holds every row to it.
const Window = 15 * time.Minute

var (
	// ErrUnknownTicket means that there is no such ticket.
	ErrUnknownTicket = errors.New("no such ticket")

	// ErrNoUser means that nobody is said to urge.
	ErrNoUser = errors.New("a user of 1 to 100 bytes is required")
)

// Answer is what somebody who urges is told.
type Answer struct {
	Urge   int64     `json:"urge"`
	Opened bool      `json:"opened"` // his was the first of the window
	Again  bool      `json:"again"`  // he has urged in this window before
	Next   time.Time `json:"next"`   // when the window ends, and he may urge again
	Cached bool      `json:"-"`      // the database was not asked
}

// Message is the answer for people. What ends within a minute is over in the next one.
func (a Answer) Message(where *time.Location) string {
	next := a.Next.In(where).Add(time.Minute - 1).Truncate(time.Minute).Format("15:04")
	if a.Again {
		return "already urged, next at " + next
	}
	return "urged, next at " + next
}

// Config tunes a [Service]. A nil *Config is ready to use.
type Config struct {
	CacheSize int              // how many visits are remembered; defaults to 10,000
	Clock     func() time.Time // of the cache; defaults to time.Now
	Logger    *slog.Logger     // of locks and queue
}

// Service takes urges, over one pool.
type Service struct {
	pool  *pgxpool.Pool
	locks *dblock.Client[pgx.Tx]
	jobs  *river.Client[pgx.Tx]
	seen  *cache
}

// NewService checks that the library's tables are there, and that locks hold here. Close it when done.
func NewService(ctx context.Context, pool *pgxpool.Pool, cfg *Config) (*Service, error) {
	c := Config{CacheSize: 10_000, Clock: time.Now}
	if cfg != nil {
		c.Logger = cfg.Logger
		if cfg.CacheSize != 0 {
			c.CacheSize = cfg.CacheSize
		}
		if cfg.Clock != nil {
			c.Clock = cfg.Clock
		}
	}
	seen, err := newCache(c.CacheSize, c.Clock)
	if err != nil {
		return nil, err
	}
	jobs, err := NewPublisher(pool, c.Logger)
	if err != nil {
		return nil, err
	}
	locks, err := dblock.New(ctx, pgxdriver.New(pool), &dblock.Config{Logger: c.Logger})
	if err != nil {
		return nil, err
	}
	return &Service{pool: pool, locks: locks, jobs: jobs, seen: seen}, nil
}

// Close gives the locks back.
func (s *Service) Close(ctx context.Context) error { return s.locks.Close(ctx) }

// Urge urges a ticket once in a window for each user, however often he asks.
//
// Everybody who wants the same ticket stands in a queue, in this process in memory: nobody spins, and nobody keeps a connection
// while he waits. The wait ends with ctx ([dblock.ErrNotAcquired]). Other tickets are not waited for.
func (s *Service) Urge(ctx context.Context, ticket int64, user string) (a Answer, err error) {
	if user == "" || len(user) > 100 {
		return a, ErrNoUser
	}
	v := visit{ticket, user}
	if a, known := s.seen.get(v); known {
		return a, nil
	}
	key := dblock.Key{Space: "urging.ticket", ID: strconv.FormatInt(ticket, 10)}
	err = s.locks.Do(ctx, key, nil, func(ctx context.Context, lock *dblock.Lock[pgx.Tx]) (err error) {
		var known bool
		if a, known = s.seen.get(v); known {
			return nil // the same user was before us in the queue
		}
		a, err = s.write(ctx, lock, v)
		return err
	})
	return a, err
}

// write makes or joins the urge in one transaction, which calls nobody: the push is a job in the same commit.
func (s *Service) write(ctx context.Context, lock *dblock.Lock[pgx.Tx], v visit) (a Answer, err error) {
	var rest time.Duration
	asked := s.seen.now()
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := lock.FenceTx(ctx, tx); err != nil { // should the lock be lost on the way, the next one waits for this commit
			return err
		}
		err := tx.QueryRow(ctx, sqlOpen, v.ticket).Scan(&a.Urge, &a.Next, &rest)
		if errors.Is(err, pgx.ErrNoRows) {
			a.Opened = true
			err = s.raise(ctx, tx, v.ticket, &a, &rest)
		}
		if err != nil {
			return err
		}
		joined, err := tx.Exec(ctx, sqlJoin, a.Urge, v.user)
		a.Again = joined.RowsAffected() == 0
		return err
	})
	if err != nil {
		return Answer{}, err
	}
	s.seen.put(v, a, asked, rest) // it is committed, and we have the lock still: who is next in the queue finds it
	return a, nil
}

// raise opens a window and enqueues the push.
func (s *Service) raise(ctx context.Context, tx pgx.Tx, ticket int64, a *Answer, rest *time.Duration) error {
	err := tx.QueryRow(ctx, sqlRaise, ticket).Scan(&a.Urge, &a.Next, rest)
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("%w: %d", ErrUnknownTicket, ticket)
	}
	if err != nil {
		return err
	}
	_, err = s.jobs.InsertTx(ctx, tx, Push{Urge: a.Urge, Ticket: ticket}, nil)
	return err
}

// All is by the database's now(). The transaction begins when its caller has the ticket's lock, so this now() is
// after everything that an earlier holder has written, unless somebody sets the clock back; then the window is found all the same, since it
// has not ended.
const (
	sqlOpen = `SELECT id, ends_at, ends_at - now() FROM urging.urge WHERE ticket = $1 AND ends_at > now()`

	sqlRaise = `
INSERT INTO urging.urge (ticket, opened_at, ends_at, latest_at)
SELECT id, now(), now() + interval '15 minutes', now() FROM urging.ticket WHERE id = $1
RETURNING id, ends_at, ends_at - now()`

	// The sub-record and the urge's latest time; no row for who is there already.
	sqlJoin = `
WITH joined AS (INSERT INTO urging.urger (urge, user_id, at) VALUES ($1, $2, now()) ON CONFLICT DO NOTHING RETURNING at)
UPDATE urging.urge SET latest_at = greatest(latest_at, joined.at) FROM joined WHERE id = $1`
)

// Status is an urge, for whoever has the ticket.
type Status struct {
	Urge     int64     `json:"urge"`
	State    State     `json:"state"`
	OpenedAt time.Time `json:"opened_at"`
	EndsAt   time.Time `json:"ends_at"`
	LatestAt time.Time `json:"latest_at"`
	Users    int       `json:"users"`
}

// Status reads the urges of a ticket, the latest first.
func (s *Service) Status(ctx context.Context, ticket int64) ([]Status, error) {
	rows, _ := s.pool.Query(ctx, `
SELECT u.id, u.state, u.opened_at, u.ends_at, u.latest_at, (SELECT count(*) FROM urging.urger r WHERE r.urge = u.id)
FROM urging.urge u WHERE u.ticket = $1 ORDER BY u.ends_at DESC LIMIT 100`, ticket)
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Status])
}
