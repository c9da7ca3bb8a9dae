//go:build unix

package dblock_test

import (
	"context"
	"errors"
	"iter"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// deafDriver gives no sockets away, so that only heartbeats find out.
type deafDriver struct{ pg.Driver[pgx.Tx] }

func (d deafDriver) Session(ctx context.Context) (pg.Session, error) {
	s, err := d.Driver.Session(ctx)
	return deafSession{s}, err
}

type deafSession struct{ pg.Session }

func (deafSession) Socket() syscall.RawConn { return nil }

// pooler hands statements of its sessions to few server sessions, as a pooler in transaction mode does: the one that was
// given back last goes first.
type pooler struct {
	pg.Driver[pgx.Tx]
	mu   sync.Mutex
	free []pg.Session
	all  []pg.Session
}

func (p *pooler) Session(context.Context) (pg.Session, error) { return pooled{p}, nil }

func (p *pooler) with(ctx context.Context, fn func(pg.Session) error) error {
	p.mu.Lock()
	if len(p.free) == 0 {
		s, err := p.Driver.Session(ctx)
		if err != nil {
			p.mu.Unlock()
			return err
		}
		p.free, p.all = append(p.free, s), append(p.all, s)
	}
	s := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.free = append(p.free, s)
		p.mu.Unlock()
	}()
	return fn(s)
}

type pooled struct{ *pooler }

func (s pooled) Run(ctx context.Context, st pg.Stmt) error { return s.RunAll(ctx, st) }
func (s pooled) RunAll(ctx context.Context, stmts ...pg.Stmt) error {
	return s.with(ctx, func(s pg.Session) error { return s.RunAll(ctx, stmts...) })
}

func (pooled) Query(context.Context, string, ...any) iter.Seq2[pg.Scan, error] { return nil }
func (pooled) Cancel(context.Context) error                                    { return nil }
func (pooled) Close(context.Context) error                                     { return nil }
func (pooled) Socket() syscall.RawConn                                         { return nil }

// liar answers some statements by itself.
type liar struct {
	pg.Driver[pgx.Tx]
	lie func(pg.Stmt)
}

func (l liar) Session(ctx context.Context) (pg.Session, error) {
	s, err := l.Driver.Session(ctx)
	return lying{s, l.lie}, err
}

type lying struct {
	pg.Session
	lie func(pg.Stmt)
}

func (s lying) Run(ctx context.Context, st pg.Stmt) error {
	err := s.Session.Run(ctx, st)
	s.lie(st)
	return err
}

// New refuses where session locks would not hold, by name, and leaves nothing behind.
func TestNewRefuses(t *testing.T) {
	t.Parallel()
	facts := func(fn func(version *int64, standby *bool)) func(pg.Stmt) {
		return func(st pg.Stmt) {
			if strings.Contains(st.SQL, "server_version_num") {
				fn(st.Dest[1].(*int64), st.Dest[2].(*bool))
			}
		}
	}
	for name, tc := range map[string]struct {
		lie  func(pg.Stmt)
		want error
	}{
		"locks that always succeed": {func(st pg.Stmt) {
			if strings.Contains(st.SQL, "pg_try_advisory_lock") {
				*st.Dest[0].(*bool) = true
			}
		}, dblock.ErrUnsupported},
		"unlocks that always succeed": {func(st pg.Stmt) {
			if strings.Contains(st.SQL, "pg_advisory_unlock") {
				*st.Dest[0].(*bool) = true
			}
		}, dblock.ErrUnsupported},
		"an old server": {facts(func(version *int64, _ *bool) { *version = 130012 }), dblock.ErrUnsupported},
		"a standby":     {facts(func(_ *int64, standby *bool) { *standby = true }), dblock.ErrReadOnly},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			if _, err := dblock.New(t.Context(), liar{pgxdriver.New(b.pool), tc.lie}, nil); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
	t.Run("a pooler in transaction mode", func(t *testing.T) {
		t.Parallel()
		b := newBench(t)
		p := &pooler{Driver: pgxdriver.New(b.pool)}
		// On a machine so slow that the pooler always has a free connection left, it looks like locks that exclude nobody.
		if _, err := dblock.New(t.Context(), p, nil); !errors.Is(err, dblock.ErrSessionNotPinned) && !errors.Is(err, dblock.ErrUnsupported) {
			t.Errorf("got %v", err)
		}
		for _, s := range p.all {
			_ = s.Close(t.Context())
		}
	})
	t.Run("no schema", func(t *testing.T) {
		t.Parallel()
		db := pgtest.NewEmpty(t)
		if _, err := dblock.New(t.Context(), pgxdriver.New(db.Pool(t)), nil); !errors.Is(err, dblock.ErrSchema) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no rights on the sequence", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		role := db.Role(t)
		db.GrantDML(t, role)
		db.Exec(t, `REVOKE ALL ON ALL SEQUENCES IN SCHEMA pgonce FROM "`+role+`"`)
		if _, err := dblock.New(t.Context(), pgxdriver.New(db.Via(db.As(t, role)).Pool(t)), nil); !errors.Is(err, dblock.ErrSchema) || !strings.Contains(err.Error(), "SEQUENCES") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no driver", func(t *testing.T) {
		t.Parallel()
		if _, err := dblock.New[pgx.Tx](t.Context(), nil, nil); err == nil {
			t.Error("a nil driver was accepted")
		}
		if _, err := dblock.New(t.Context(), pgxdriver.New(nil), nil); err == nil {
			t.Error("a nil pool was accepted")
		}
	})
}

// A role with DML rights only, and settings that would cut locks and waits short, works.
func TestPlainRole(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	role := db.Role(t)
	db.GrantDML(t, role)
	db.Exec(t, `ALTER ROLE "`+role+`" SET statement_timeout = '1s'; ALTER ROLE "`+role+`" SET lock_timeout = '1s';
		ALTER ROLE "`+role+`" SET default_transaction_read_only = on;
		ALTER ROLE "`+role+`" SET default_transaction_isolation = 'serializable'; ALTER ROLE "`+role+`" SET synchronous_commit = off`)
	pool := db.Via(db.As(t, role)).Pool(t)
	a, b := clientOf(t, pool, nil), clientOf(t, pool, nil)
	l := acquire(t, a, "1", nil)
	won := make(chan *locked, 1)
	go func() { won <- acquire(t, b, "1", nil) }()
	began := db.Int(t, `SELECT (1000 * extract(epoch FROM clock_timestamp()))::bigint`)
	pgtest.Eventually(t, "longer than either", func() bool {
		return db.Int(t, `SELECT (1000 * extract(epoch FROM clock_timestamp()))::bigint`) > began+2500
	})
	release(t, l)
	l = <-won
	release(t, l)
}
