//go:build unix

package conformance

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

var refund = idem.Op{Name: "refund.create"}

// bench is a store on a database with the effect table.
type bench[TX any] struct {
	Client[TX]
	t    *testing.T
	db   *pgtest.DB
	pool Pool[TX]
	keys *idem.Store[TX]
}

func setup[TX any](t *testing.T, c Client[TX], conns int) *bench[TX] {
	t.Helper()
	db := pgtest.New(t)
	db.Exec(t, effects)
	return at(t, c, db, c.Open(t, db, conns), nil)
}

// at is a store on a database that the test has prepared.
func at[TX any](t *testing.T, c Client[TX], db *pgtest.DB, pool Pool[TX], cfg *idem.Config) *bench[TX] {
	t.Helper()
	keys, err := idem.New(pool.Driver, cfg)
	noErr(t, err)
	return &bench[TX]{c, t, db, pool, keys}
}

// other is another process on the same database: another store over another pool.
func (b *bench[TX]) other(conns int) *bench[TX] {
	b.t.Helper()
	return at(b.t, b.Client, b.db, b.Open(b.t, b.db, conns), nil)
}

// waiting counts the backends that wait for an advisory lock.
func (b *bench[TX]) waiting() int64 {
	return b.db.Int(b.t, `SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
}

// do executes key id with a handler that makes one effect and returns id.
func (b *bench[TX]) do(ctx context.Context, id string) (idem.Result[string], error) {
	return idem.Do(ctx, b.keys, refund.Key("m1", id), idem.Bytes([]byte(id)), b.effect(id))
}

func (b *bench[TX]) effect(id string) func(context.Context, TX) (string, error) {
	return func(ctx context.Context, tx TX) (string, error) {
		return "receipt " + id, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('`+id+`')`)
	}
}

// quiet waits until no transaction is open: a backend whose client has closed the socket takes a
// moment to notice.
func (b *bench[TX]) quiet() {
	b.t.Helper()
	pgtest.Eventually(b.t, "no transaction is open", func() bool {
		return b.db.Int(b.t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()`) == 0
	})
}

func (b *bench[TX]) effects(want int64) {
	b.t.Helper()
	wantInt(b.t, "effects", b.db.Int(b.t, `SELECT count(*) FROM effect`), want)
}

func (b *bench[TX]) records(want int64) {
	b.t.Helper()
	wantInt(b.t, "records", b.db.Int(b.t, `SELECT count(*) FROM pgonce.idem_record`), want)
}

func idemNewAndRepeat[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 1)
	_, ok, err := idem.Lookup[string](t.Context(), b.keys, refund.Key("m1", "r1"), idem.Bytes([]byte("r1")))
	if ok || err != nil {
		t.Errorf("lookup before: %v, %v", ok, err)
	}
	first, err := b.do(t.Context(), "r1")
	noErr(t, err)
	if first.Value != "receipt r1" || first.Replayed || first.FirstAt.IsZero() {
		t.Errorf("first: %+v", first)
	}
	for range 2 {
		again, err := b.do(t.Context(), "r1")
		noErr(t, err)
		if again.Value != first.Value || !again.Replayed || !again.FirstAt.Equal(first.FirstAt) {
			t.Errorf("repeat: %+v, first was %+v", again, first)
		}
	}
	found, ok, err := idem.Lookup[string](t.Context(), b.keys, refund.Key("m1", "r1"), idem.Bytes([]byte("r1")))
	if err != nil || !ok || found.Value != first.Value || !found.Replayed || !found.FirstAt.Equal(first.FirstAt) {
		t.Errorf("lookup after: %+v, %v, %v", found, ok, err)
	}
	b.effects(1)
	b.records(1)
}

func idemMismatch[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	first, err := b.do(t.Context(), "r1")
	noErr(t, err)
	key := refund.Key("m1", "r1")
	_, err = idem.Do(t.Context(), b.keys, key, idem.Bytes([]byte("another amount")), b.effect("r1"))
	wantErr(t, err, idem.ErrMismatch)
	if e, ok := errors.AsType[*idem.MismatchError](err); !ok || e.Key != key || !e.FirstAt.Equal(first.FirstAt) {
		t.Errorf("got %#v", err)
	}
	_, _, err = idem.Lookup[string](t.Context(), b.keys, key, idem.Bytes([]byte("another amount")))
	wantErr(t, err, idem.ErrMismatch)
	res, err := idem.Do(t.Context(), b.keys, key, idem.NoFingerprint(), b.effect("r1"))
	noErr(t, err)
	if !res.Replayed {
		t.Error("NoFingerprint should accept any request")
	}
	// A fingerprint by an algorithm of another release must not refuse a repeat.
	b.db.Exec(t, `UPDATE pgonce.idem_record SET fp_ver = 77`)
	res, err = b.do(t.Context(), "r1")
	noErr(t, err)
	if !res.Replayed {
		t.Error("an unknown fingerprint version should replay")
	}
	b.effects(1)
}

// Scope, operation and id are three things, and no two of them run together.
func idemSeparate[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	for _, key := range []idem.Key{
		refund.Key("m1", "r1"), refund.Key("m2", "r1"), refund.Key("m1", "r2"), refund.Key("m", "1r1"),
		idem.Op{Name: "refund"}.Key("m1", ".creater1"), idem.Op{Name: "payout"}.Key("m1", "r1"),
	} {
		res, err := idem.Do(t.Context(), b.keys, key, idem.NoFingerprint(), b.effect("x"))
		noErr(t, err)
		if res.Replayed {
			t.Errorf("%v was taken for another key", key)
		}
	}
	b.effects(6)
}

func idemInFlight[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 4)
	inside, goOn, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
			close(inside)
			<-goOn
			return b.effect("r1")(ctx, tx)
		})
		done <- err
	}()
	<-inside
	for range 3 {
		_, err := b.do(t.Context(), "r1")
		wantErr(t, err, idem.ErrInFlight)
	}
	_, err := b.do(t.Context(), "r2")
	noErr(t, err) // other keys are free
	_, ok, err := idem.Lookup[string](t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint())
	if ok || err != nil {
		t.Errorf("lookup while in flight: %v, %v", ok, err)
	}
	close(goOn)
	noErr(t, <-done)
	res, err := b.do(t.Context(), "r1") // the first had no fingerprint, so any request is the same
	noErr(t, err)
	if res.Value != "receipt r1" || !res.Replayed {
		t.Errorf("got %+v", res)
	}
	b.effects(2)
}

// Many callers of few keys, each until it is answered: one effect a key, one answer for all.
func idemStorm[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 6)
	ids := []string{"r1", "r2", "r3"}
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		firsts  = map[string]int{}
		instant = map[string]time.Time{}
	)
	for n := range 60 {
		id := ids[n%len(ids)]
		wg.Go(func() {
			for {
				res, err := b.do(t.Context(), id)
				if errors.Is(err, idem.ErrInFlight) {
					runtime.Gosched()
					continue
				}
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Errorf("%s: %v", id, err)
					return
				}
				if !res.Replayed {
					firsts[id]++
				}
				if at, ok := instant[id]; ok && !at.Equal(res.FirstAt) || res.Value != "receipt "+id {
					t.Errorf("%s: answer %+v differs from the one of %v", id, res, at)
				}
				instant[id] = res.FirstAt
				return
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		wantInt(t, "executions of "+id, int64(firsts[id]), 1)
	}
	b.effects(3)
	b.records(3)
}

// The end of ctx at every step: before, while the handler works, after it.
func idemContextEnds[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 1)
	noErr(t, b.keys.Validate(t.Context()))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := b.do(ctx, "r1")
	wantErr(t, err, context.Canceled)
	b.effects(0)

	ctx, cancel = context.WithCancel(t.Context())
	_, err = idem.Do(ctx, b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		noErr(t, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('r1')`))
		cancel()
		return "", b.Exec(ctx, tx, `INSERT INTO effect VALUES ('r1')`)
	})
	wantErr(t, err, context.Canceled)
	b.effects(0)

	b.quiet()
	ctx, cancel = context.WithCancel(t.Context())
	res, err := idem.Do(ctx, b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		err := b.Exec(ctx, tx, `INSERT INTO effect VALUES ('r1')`)
		cancel()
		return "receipt r1", err
	})
	noErr(t, err) // the work is done, so it is committed
	if res.Value != "receipt r1" {
		t.Errorf("got %+v", res)
	}
	b.effects(1)

	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = idem.Do(t.Context(), b.keys, refund.Key("m1", "r2"), idem.NoFingerprint(), func(context.Context, TX) (string, error) {
		_, err := b.do(ctx, "r3") // the pool's only connection is ours
		return "", err
	})
	wantErr(t, err, idem.ErrUnavailable)
	wantErr(t, err, context.DeadlineExceeded)
	b.effects(1)
}

// A backend that is terminated inside the handler loses the work, and only that.
func idemBackendKilled[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	runs := 0
	res, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		err := b.Exec(ctx, tx, `INSERT INTO effect VALUES ('r1')`)
		if runs++; runs == 1 {
			b.db.Exec(t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'idle in transaction'`)
			b.db.Exec(t, `SELECT 1`)
		}
		return "receipt r1", err
	})
	if err != nil { // found out by COMMIT, whose answer never came
		if !errors.Is(err, idem.ErrUnknownOutcome) {
			t.Fatalf("got %v", err)
		}
		b.effects(0)
		res, err = b.do(t.Context(), "r1")
		noErr(t, err)
	}
	if res.Value != "receipt r1" || res.Replayed {
		t.Errorf("got %+v", res)
	}
	b.effects(1)
	b.records(1)
}

// A database that refuses writes is found out before the handler runs. Finished keys still
// answer there.
func idemReadOnly[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects)
	writable := at(t, c, db, c.Open(t, db, 1), nil)
	_, err := writable.do(t.Context(), "r1")
	noErr(t, err)

	db.Exec(t, `ALTER DATABASE "`+db.Name+`" SET default_transaction_read_only = on`)
	frozen := at(t, c, db, c.Open(t, db, 1), nil)
	_, err = idem.Do(t.Context(), frozen.keys, refund.Key("m1", "r2"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		if !c.BeginsReadWrite {
			t.Error("the handler ran")
		}
		return frozen.effect("r2")(ctx, tx)
	})
	if c.BeginsReadWrite { // a default is no right: this client may write, and does so once
		noErr(t, err)
		frozen.effects(2)
	} else {
		wantErr(t, err, idem.ErrReadOnly)
		frozen.effects(1)
	}
	res, err := frozen.do(t.Context(), "r1")
	noErr(t, err)
	if !res.Replayed {
		t.Errorf("got %+v", res)
	}
}
