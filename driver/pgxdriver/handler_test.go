//go:build unix

package pgxdriver_test

import (
	"context"
	"errors"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// A handler may use all of pgx.Tx. What it may not do is end the outermost transaction.
func TestHandlerMayUseAllOfPgx(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE effect (name text)`)
	ctx := t.Context()
	owned, err := pgxdriver.New(db.Pool(t)).Begin(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	tx := owned.Handle()
	steps := map[string]func() error{
		"Exec": func() error { _, err := tx.Exec(ctx, `INSERT INTO effect VALUES ('exec')`); return err },
		"CopyFrom": func() error {
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"effect"}, []string{"name"}, pgx.CopyFromRows([][]any{{"copy"}}))
			return err
		},
		"SendBatch": func() error {
			var b pgx.Batch
			b.Queue(`INSERT INTO effect VALUES ('batch')`)
			return tx.SendBatch(ctx, &b).Close()
		},
		"Prepare": func() error { _, err := tx.Prepare(ctx, "p", `SELECT 1`); return err },
		"LargeObjects": func() error {
			lo := tx.LargeObjects()
			_, err := lo.Create(ctx, 0)
			return err
		},
		"Begin, commit": func() error {
			return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, `INSERT INTO effect VALUES ('savepoint')`)
				return err
			})
		},
		"Begin, roll back": func() error {
			sp, err := tx.Begin(ctx)
			if err != nil {
				return err
			}
			if _, err := sp.Exec(ctx, `INSERT INTO effect VALUES ('undone')`); err != nil {
				return err
			}
			return sp.Rollback(ctx)
		},
		"Conn": func() error { return tx.Conn().Ping(ctx) },
	}
	for name, step := range steps {
		if err := step(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := tx.Commit(ctx); err == nil {
		t.Error("Commit was not refused")
	}
	if err := tx.Rollback(ctx); err == nil {
		t.Error("Rollback was not refused")
	}
	if err := owned.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if n := db.Int(t, `SELECT count(*) FROM effect WHERE name <> 'undone'`); n != 4 || db.Int(t, `SELECT count(*) FROM effect`) != 4 {
		t.Errorf("%d effects, want exec, copy, batch, savepoint", n)
	}
}

// Whatever a handler has kept of its transaction is dead after the call. The pool has one
// connection, so a statement that got through would run on somebody else's.
func TestWhatAHandlerLeaksIsDead(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE effect (name text)`)
	cfg := db.Config(t)
	cfg.MaxConns = 1
	d := pgxdriver.New(db.Open(t, cfg))
	ctx := t.Context()
	const late = `INSERT INTO effect VALUES ('late')`

	for name, end := range map[string]func(commit func() error, rollback func()) error{
		"commit":   func(commit func() error, _ func()) error { return commit() },
		"rollback": func(_ func() error, rollback func()) error { rollback(); return nil },
	} {
		owned, err := d.Begin(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		tx := owned.Handle()
		sp, err := tx.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		lo := tx.LargeObjects()
		if err := end(func() error { return owned.Commit(ctx) }, func() { owned.Rollback(ctx) }); err != nil {
			t.Fatal(err)
		}
		for what, use := range map[string]func() error{
			"Exec":              func() error { _, err := tx.Exec(ctx, late); return err },
			"Query":             func() error { rows, err := tx.Query(ctx, late); rows.Close(); return err },
			"QueryRow":          func() error { return tx.QueryRow(ctx, late).Scan() },
			"Begin":             func() error { _, err := tx.Begin(ctx); return err },
			"Prepare":           func() error { _, err := tx.Prepare(ctx, "late", late); return err },
			"Commit":            func() error { return tx.Commit(ctx) },
			"savepoint":         func() error { _, err := sp.Exec(ctx, late); return err },
			"savepoint, commit": func() error { return sp.Commit(ctx) },
			"SendBatch": func() error {
				var b pgx.Batch
				b.Queue(late)
				return tx.SendBatch(ctx, &b).Close()
			},
			"CopyFrom": func() error {
				_, err := tx.CopyFrom(ctx, pgx.Identifier{"effect"}, []string{"name"}, pgx.CopyFromRows([][]any{{"late"}}))
				return err
			},
			"LargeObjects, from before": func() error { _, err := lo.Create(ctx, 0); return err },
			"LargeObjects, from after": func() error {
				lo := tx.LargeObjects()
				_, err := lo.Create(ctx, 0)
				return err
			},
		} {
			if err := use(); !errors.Is(err, pgx.ErrTxClosed) {
				t.Errorf("%s, %s: got %v, want ErrTxClosed", name, what, err)
			}
		}
	}
	if n := db.Int(t, `SELECT (SELECT count(*) FROM effect) + (SELECT count(*) FROM pg_largeobject_metadata)`); n != 0 {
		t.Errorf("%d late writes got through", n)
	}
}

// The end of the call waits for a statement that a leaked goroutine has under way, and
// refuses its next one.
func TestEndWaitsForAStatementUnderWay(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE effect (name text)`)
	d := pgxdriver.New(db.Pool(t))
	owned, err := d.Begin(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	tx := owned.Handle()
	blocker := db.Pool(t)
	lock, err := blocker.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock.Exec(t.Context(), `LOCK TABLE effect`); err != nil {
		t.Fatal(err)
	}
	statements := make(chan error, 2)
	go func() {
		for range 2 {
			_, err := tx.Exec(context.Background(), `INSERT INTO effect VALUES ('leaked goroutine')`)
			statements <- err
		}
	}()
	pgtest.Eventually(t, "the leaked goroutine's statement waits", func() bool {
		return db.Int(t, `SELECT count(*) FROM pg_locks WHERE NOT granted`) == 1
	})
	ended := make(chan struct{})
	go func() {
		owned.Rollback(t.Context())
		close(ended)
	}()
	select {
	case <-ended:
		t.Error("the call ended in the middle of a statement")
	default:
	}
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-ended
	first, second := <-statements, <-statements
	if first != nil && !errors.Is(first, pgx.ErrTxClosed) || !errors.Is(second, pgx.ErrTxClosed) && second != nil {
		t.Errorf("got %v, then %v", first, second)
	}
	if n := db.Int(t, `SELECT count(*) FROM effect`); n != 0 {
		t.Errorf("%d effects after a rollback", n)
	}
}

// ctx ends in the very moment the answer to BEGIN arrives: the func that closes the socket runs
// beside the one that gives the connection up.
func TestContextEndsAsBeginIsAnswered(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := db.Config(t)
	cfg.MaxConns = 1
	var onRead atomic.Pointer[context.CancelFunc]
	dial := cfg.ConnConfig.DialFunc
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return &readHook{conn, &onRead}, err
	}
	d := pgxdriver.New(db.Open(t, cfg))
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		tx, err := d.Begin(t.Context(), "") // a connection that is good and idle
		if err != nil {
			t.Fatal(err)
		}
		tx.Rollback(ctx)
		onRead.Store(&cancel)
		tx, err = d.Begin(ctx, "")
		onRead.Store(nil)
		if err == nil {
			tx.Rollback(t.Context())
		} else if !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
		cancel()
	}
}

type readHook struct {
	net.Conn
	hook *atomic.Pointer[context.CancelFunc]
}

func (c *readHook) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if hook := c.hook.Load(); hook != nil {
		(*hook)()
	}
	return n, err
}

// A goroutine that outlived its handler and never lets go does not hold up the call for ever.
func TestEndDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE effect (name text)`)
	cfg := db.Config(t)
	cfg.MaxConns = 1
	d := pgxdriver.New(db.Open(t, cfg))
	ctx := pg.WithNetTimeout(t.Context(), 100*time.Millisecond)
	for name, end := range map[string]func(pg.OwnedTx[pgx.Tx]) error{
		"commit":   func(tx pg.OwnedTx[pgx.Tx]) error { return tx.Commit(ctx) },
		"rollback": func(tx pg.OwnedTx[pgx.Tx]) error { tx.Rollback(ctx); return pg.ErrTxBusy },
	} {
		owned, err := d.Begin(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		inSource, letGo, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			first := true
			_, _ = owned.Handle().CopyFrom(context.Background(), pgx.Identifier{"effect"}, []string{"name"}, pgx.CopyFromFunc(func() ([]any, error) {
				if first {
					first = false
					close(inSource)
					<-letGo
				}
				return nil, nil
			}))
		}()
		<-inSource
		if err := end(owned); !errors.Is(err, pg.ErrTxBusy) {
			t.Errorf("%s: got %v, want ErrTxBusy", name, err)
		}
		next, err := d.Begin(t.Context(), "") // the pool of one has room again
		if err != nil {
			t.Fatal(err)
		}
		next.Rollback(t.Context())
		close(letGo)
		<-done
	}
}

// A goroutine keeps using the transaction while its handler returns: it is waited for or refused, and
// under the race detector nothing meets.
func TestLeakedGoroutineRacesTheEnd(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE effect (name text)`)
	keys, err := idem.New(pgxdriver.New(db.Pool(t)), nil)
	if err != nil {
		t.Fatal(err)
	}
	op := idem.Op{Name: "leak"}
	for i := range 50 {
		refused, started := make(chan struct{}), make(chan struct{})
		_, err := idem.Do(t.Context(), keys, op.Key("m1", strconv.Itoa(i)), idem.NoFingerprint(), func(ctx context.Context, tx pgx.Tx) (int, error) {
			go func() {
				defer close(refused)
				for n := 0; ; n++ {
					if _, err := tx.Exec(context.WithoutCancel(ctx), `SELECT 1`); err != nil {
						return
					}
					if n == 0 {
						close(started)
					}
				}
			}()
			<-started
			if i%2 == 0 {
				return 0, errors.New("failed")
			}
			return 0, nil
		})
		<-refused
		if i%2 == 1 && err != nil {
			t.Fatal(err)
		}
	}
}
