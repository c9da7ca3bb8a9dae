// Package original urges tickets as it was first done, with a lock and a cache in Redis. It is here to be measured beside the
// right way; do not copy it. A table stands for Redis: each command is a statement, and as atomic as the command.
package original

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/examples/urging/urges"
)

// life is that of the lock. The original's was seconds; here a second takes ten milliseconds, of the clocks too, so that
// a demonstration does.
const life = 50 * time.Millisecond

// Service is an instance with a clock of its own, as every application server has.
type Service struct {
	pool *pgxpool.Pool
	skew time.Duration
}

// New makes an instance whose clock is ahead by skew.
func New(pool *pgxpool.Pool, skew time.Duration) *Service { return &Service{pool, skew} }

func (s *Service) now() time.Time { return time.Now().Add(s.skew) }

// Urge has the flaws of the original:
//   - a hit of the cache changes nothing, for there is no return; and what is stored has no expiry and the wrong value,
//     since the number was taken for an offset;
//   - it spins until it has the lock, on the server, for as long as that takes;
//   - it judges by its own clock whether the lock has expired, and whether the window is open;
//   - the lock is lost to whoever finds it expired while its holder works, and nothing else keeps two from inserting;
//   - when something fails, the lock is not released.
func (s *Service) Urge(ctx context.Context, ticket int64, user string) (a urges.Answer, err error) {
	cached := fmt.Sprintf("urged:%d:%s", ticket, user)
	if _, err := s.get(ctx, cached); err != nil {
		return a, err
	}
	key, stamp := fmt.Sprintf("lock:%d", ticket), ""
	for stamp == "" {
		if stamp, err = s.lock(ctx, key); err != nil {
			return a, err
		}
	}
	if a, err = s.checkThenInsert(ctx, ticket, user); err != nil {
		return a, err
	}
	const offset15 = `INSERT INTO urging_original.redis (key, value) VALUES ($1, repeat(' ', 15) || '1') ON CONFLICT (key) DO NOTHING`
	if _, err := s.pool.Exec(ctx, offset15, cached); err != nil {
		return a, err
	}
	return a, s.unlock(ctx, key, stamp)
}

// checkThenInsert looks for an open window and a sub-record, and inserts what it has not found.
func (s *Service) checkThenInsert(ctx context.Context, ticket int64, user string) (a urges.Answer, err error) {
	now := s.now()
	var opened time.Time
	const find = `SELECT id, opened_at FROM urging_original.urge WHERE ticket = $1 ORDER BY id DESC LIMIT 1`
	err = s.pool.QueryRow(ctx, find, ticket).Scan(&a.Urge, &opened)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && now.Sub(opened) >= urges.Window {
		a.Opened, opened = true, now
		const insert = `INSERT INTO urging_original.urge (ticket, opened_at, latest_at) VALUES ($1, $2, $2) RETURNING id`
		err = s.pool.QueryRow(ctx, insert, ticket, now).Scan(&a.Urge)
	}
	if err != nil {
		return a, err
	}
	a.Next = opened.Add(urges.Window)
	const look = `SELECT EXISTS (SELECT FROM urging_original.urger WHERE urge = $1 AND user_id = $2)`
	if err = s.pool.QueryRow(ctx, look, a.Urge, user).Scan(&a.Again); err != nil || a.Again {
		return a, err
	}
	if _, err = s.pool.Exec(ctx, `INSERT INTO urging_original.urger (urge, user_id) VALUES ($1, $2)`, a.Urge, user); err != nil {
		return a, err
	}
	_, err = s.pool.Exec(ctx, `UPDATE urging_original.urge SET latest_at = $2 WHERE id = $1`, a.Urge, now)
	return a, err
}

func (s *Service) get(ctx context.Context, key string) (value string, err error) {
	err = s.pool.QueryRow(ctx, `SELECT value FROM urging_original.redis WHERE key = $1`, key).Scan(&value)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	return value, err
}

// lock is SETNX with the time of expiry as the value; whoever finds it expired takes it by GETSET, and has it if the old value is
// what he had read. The loser of that has overwritten the winner's stamp by then.
func (s *Service) lock(ctx context.Context, key string) (stamp string, err error) {
	expiry := strconv.FormatInt(s.now().Add(life).UnixMicro(), 10)
	set, err := s.pool.Exec(ctx, `INSERT INTO urging_original.redis (key, value) VALUES ($1, $2) ON CONFLICT DO NOTHING`, key, expiry)
	if err != nil {
		return "", err
	}
	if set.RowsAffected() == 1 {
		return expiry, nil
	}
	current, err := s.get(ctx, key)
	if err != nil || current == "" {
		return "", err
	}
	until, err := strconv.ParseInt(current, 10, 64)
	if err != nil || s.now().UnixMicro() < until {
		return "", err
	}
	var old string
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `SELECT value FROM urging_original.redis WHERE key = $1 FOR UPDATE`, key).Scan(&old); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `UPDATE urging_original.redis SET value = $2 WHERE key = $1`, key, expiry)
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	if err != nil || old != current {
		return "", err
	}
	return expiry, nil
}

// unlock is get, then delete.
func (s *Service) unlock(ctx context.Context, key, stamp string) error {
	value, err := s.get(ctx, key)
	if err != nil || value != stamp {
		return err
	}
	_, err = s.pool.Exec(ctx, `DELETE FROM urging_original.redis WHERE key = $1`, key)
	return err
}
