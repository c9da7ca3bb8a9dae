package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"cirello.io/pglock"
	"github.com/bsm/redislock"
	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/lib/pq" // which pglock asks for
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
)

// locks is this library, on a pool of its own.
type locks struct {
	*dblock.Client[pgx.Tx]
	pool *pgxpool.Pool
}

func newLocks(ctx context.Context, url string, cfg *dblock.Config) (*locks, error) {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return nil, err
	}
	client, err := dblock.New(ctx, pgxdriver.New(pool), cfg)
	if err != nil {
		pool.Close()
		return nil, err
	}
	return &locks{client, pool}, nil
}

func (l *locks) close(ctx context.Context) error {
	err := l.Close(ctx)
	l.pool.Close()
	return err
}

// ttl of the Redis locks. Their READMEs show 100 ms and 8 s; it costs the same, and a machine that stalls for a
// moment does not end the run.
const ttl = 30 * time.Second

// redisLocks are redislock and redsync.
type redisLocks struct {
	redislock *redislock.Client
	redsync   *redsync.Redsync
	close     func() error
}

func newRedisLocks(s *redisServer) *redisLocks {
	client := s.client()
	return &redisLocks{redislock: redislock.New(client), redsync: redsync.New(goredis.NewPool(client)), close: client.Close}
}

// pgLocks is pglock on lib/pq, as its README has it. It says nothing about the pool, whose defaults would have a new
// connection dialled for almost every statement; so this one keeps enough of them.
type pgLocks struct {
	*pglock.Client
	db *sql.DB
}

func newPGLocks(url string) (*pgLocks, error) {
	db, err := sql.Open("postgres", url)
	if err != nil {
		return nil, err
	}
	const connections = 64
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	client, err := pglock.New(db, pglock.WithLeaseDuration(3*time.Second), pglock.WithHeartbeatFrequency(time.Second))
	if err == nil {
		err = client.TryCreateTable()
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &pgLocks{client, db}, nil
}

// twoTrips is the floor: two round trips on one connection, one to lock and one to unlock.
func twoTrips(ctx context.Context, conn *pgx.Conn) error {
	for range 2 {
		var one int
		if err := conn.QueryRow(ctx, `select 1`).Scan(&one); err != nil {
			return err
		}
	}
	return nil
}

// names of keys for a goroutine: a few, so that each is free again and again.
type keyring [16]string

func keyrings(workers int) []keyring {
	all := make([]keyring, workers)
	for w := range all {
		for i := range all[w] {
			all[w][i] = "account-" + strconv.Itoa(w) + "-" + strconv.Itoa(i)
		}
	}
	return all
}

// growing checks the tokens of one goroutine, or of one key.
type growing struct{ last dblock.Token }

func (g *growing) next(token dblock.Token) error {
	if token <= g.last {
		return fmt.Errorf("token %d came after %d", token, g.last)
	}
	g.last = token
	return nil
}
