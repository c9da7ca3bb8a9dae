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
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/sqldriver"
	"github.com/pgonce/pgonce/examples/internal/riversql"
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
	Logger    *slog.Logger     // of the locks
}

// The locks' connections come out of the pool and stay out: one that holds locks, and at most so many that wait for one. A pool of
// fewer than leastConns would have too few left for those who have their lock and want to write.
const (
	lockWaiters = 4
	leastConns  = lockWaiters + 4
)

// Service takes urges, over one pool of database/sql.
type Service struct {
	db    *sql.DB
	locks *dblock.Client[*sql.Tx]
	seen  *cache
}

// NewService checks that the library's tables are there, and that locks hold here. db has at least eight connections, or no limit.
// Close the service when done.
func NewService(ctx context.Context, db *sql.DB, cfg *Config) (*Service, error) {
	if n := db.Stats().MaxOpenConnections; n > 0 && n < leastConns {
		return nil, fmt.Errorf("a pool of %d connections is too small: SetMaxOpenConns(%d) or more", n, leastConns)
	}
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
	locks, err := dblock.New(ctx, sqldriver.New(db), &dblock.Config{MaxWaiters: lockWaiters, Logger: c.Logger})
	if err != nil {
		return nil, err
	}
	return &Service{db: db, locks: locks, seen: seen}, nil
}

// Close gives the locks back.
func (s *Service) Close(ctx context.Context) error { return s.locks.Close(ctx) }

// Urge urges a ticket once in a window for each user, however often he asks.
//
// Everybody who wants the same ticket stands in a queue, in this process in memory: nobody spins, and one of them waits on the server for
// all of this process. The wait ends with ctx ([dblock.ErrNotAcquired]). Other tickets are not waited for.
func (s *Service) Urge(ctx context.Context, ticket int64, user string) (a Answer, err error) {
	if user == "" || len(user) > 100 {
		return a, ErrNoUser
	}
	v := visit{ticket, user}
	if a, known := s.seen.get(v); known {
		return a, nil
	}
	key := dblock.Key{Space: "urging.ticket", ID: strconv.FormatInt(ticket, 10)}
	err = s.locks.Do(ctx, key, nil, func(ctx context.Context, lock *dblock.Lock[*sql.Tx]) (err error) {
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
func (s *Service) write(ctx context.Context, lock *dblock.Lock[*sql.Tx], v visit) (a Answer, err error) {
	var micros int64 // the rest of the window
	asked := s.seen.now()
	err = inTx(ctx, s.db, func(tx *sql.Tx) error {
		if err := lock.FenceTx(ctx, tx); err != nil { // should the lock be lost on the way, the next one waits for this commit
			return err
		}
		err := tx.QueryRowContext(ctx, sqlOpen, v.ticket).Scan(&a.Urge, &a.Next, &micros)
		if errors.Is(err, sql.ErrNoRows) {
			a.Opened = true
			err = raise(ctx, tx, v.ticket, &a, &micros)
		}
		if err != nil {
			return err
		}
		joined, err := tx.ExecContext(ctx, sqlJoin, a.Urge, v.user)
		if err != nil {
			return err
		}
		n, err := joined.RowsAffected()
		a.Again = n == 0
		return err
	})
	if err != nil {
		return Answer{}, err
	}
	s.seen.put(v, a, asked, time.Duration(micros)*time.Microsecond) // it is committed, and we have the lock still: who is next in the queue finds it
	return a, nil
}

// raise opens a window and enqueues the push.
func raise(ctx context.Context, tx *sql.Tx, ticket int64, a *Answer, micros *int64) error {
	err := tx.QueryRowContext(ctx, sqlRaise, ticket).Scan(&a.Urge, &a.Next, micros)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("%w: %d", ErrUnknownTicket, ticket)
	}
	if err != nil {
		return err
	}
	return riversql.InsertTx(ctx, tx, QueueSchema, Push{Urge: a.Urge, Ticket: ticket})
}

// inTx runs fn in a transaction.
func inTx(ctx context.Context, db *sql.DB, fn func(tx *sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := fn(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// All is by the database's now(). The transaction begins when its caller has the ticket's lock, so this now() is
// after everything that an earlier holder has written, unless somebody sets the clock back; then the window is found all the same, since it
// has not ended.
const (
	sqlOpen = `
SELECT id, ends_at, (extract(epoch FROM ends_at - now()) * 1000000)::bigint FROM urging.urge WHERE ticket = $1 AND ends_at > now()`

	sqlRaise = `
INSERT INTO urging.urge (ticket, opened_at, ends_at, latest_at)
SELECT id, now(), now() + interval '15 minutes', now() FROM urging.ticket WHERE id = $1
RETURNING id, ends_at, (extract(epoch FROM ends_at - now()) * 1000000)::bigint`

	// The sub-record and the urge's latest time; no row for who is there already.
	sqlJoin = `
WITH joined AS (INSERT INTO urging.urger (urge, user_id, at) VALUES ($1, $2, now()) ON CONFLICT DO NOTHING RETURNING at)
UPDATE urging.urge SET latest_at = greatest(latest_at, joined.at) FROM joined WHERE id = $1`
)
