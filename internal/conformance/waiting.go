//go:build unix

package conformance

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// patient waits for other callers for longer than any test takes.
var patient = idem.Op{Name: refund.Name, Wait: time.Hour}

// ask executes key id under an operation, with a handler that makes one effect.
func (b *bench[TX]) ask(ctx context.Context, op idem.Op, id string, fp idem.Fingerprint) (idem.Result[string], error) {
	return idem.Do(ctx, b.keys, op.Key("m1", id), fp, b.effect(id))
}

// hold executes key id and stays in its handler until let go. done gets the end of the call.
func (b *bench[TX]) hold(id string, result error) (letGo func(), done <-chan error) {
	b.t.Helper()
	inside, goOn, end := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := idem.Do(b.t.Context(), b.keys, refund.Key("m1", id), idem.Bytes([]byte(id)), func(ctx context.Context, tx TX) (string, error) {
			if err := b.Exec(ctx, tx, `INSERT INTO effect VALUES ('`+id+`')`); err != nil {
				return "", err
			}
			close(inside)
			<-goOn
			return "receipt " + id, result
		})
		end <- err
	}()
	<-inside
	return sync.OnceFunc(func() { close(goOn) }), end
}

// A caller waits for one in another process and gets its answer; a request that is not the same
// is refused after the wait, and never replayed.
func idemWaits[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 1)
	other := b.other(1)
	letGo, done := b.hold("r1", nil)
	answers := make(chan idem.Result[string], 2)
	go func() {
		res, err := other.ask(t.Context(), patient, "r1", idem.Bytes([]byte("r1")))
		if err != nil {
			t.Error(err)
		}
		answers <- res
	}()
	pgtest.Eventually(t, "the other process waits", func() bool { return b.waiting() == 1 })
	forged := make(chan error, 1)
	go func() {
		_, err := other.ask(t.Context(), patient, "r1", idem.Bytes([]byte("another amount")))
		forged <- err
	}()
	letGo()
	noErr(t, <-done)
	if res := <-answers; !res.Replayed || res.Value != "receipt r1" {
		t.Errorf("got %+v", res)
	}
	wantErr(t, <-forged, idem.ErrMismatch)
	b.effects(1)
}

// The wait ends: with Op.Wait, with ctx, in memory and on the server. Nothing is left behind.
func idemWaitEnds[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 1)
	other := b.other(2)
	letGo, done := b.hold("r1", nil)
	short := idem.Op{Name: refund.Name, Wait: 20 * time.Millisecond}
	for name, who := range map[string]*bench[TX]{"in memory": b, "on the server": other} {
		_, err := who.ask(t.Context(), short, "r1", idem.NoFingerprint())
		wantErr(t, err, idem.ErrInFlight)

		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, err = who.ask(ctx, patient, "r1", idem.NoFingerprint())
		if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, idem.ErrInFlight) {
			t.Errorf("%s: got %v, want the end of ctx", name, err)
		}
		cancel()

		ctx, hangUp := context.WithCancelCause(t.Context())
		left := make(chan error, 1)
		go func() {
			_, err := who.ask(ctx, patient, "r1", idem.NoFingerprint())
			left <- err
		}()
		if who == other {
			pgtest.Eventually(t, "it waits on the server", func() bool { return b.waiting() == 1 })
		}
		hangUp(errHungUp)
		wantErr(t, <-left, errHungUp)
	}
	pgtest.Eventually(t, "nobody waits on the server any more", func() bool { return b.waiting() == 0 })
	letGo()
	noErr(t, <-done)
	b.effects(1)
}

var errHungUp = errors.New("the client hung up")

// The first caller fails. Those who wait take over one by one, in memory and across processes.
func idemWaitersTakeOver[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 1)
	other := b.other(1)
	letGo, done := b.hold("r1", errRefused)
	var wg sync.WaitGroup
	var mu sync.Mutex
	executed := 0
	for n := range 12 {
		who := []*bench[TX]{b, other}[n%2]
		wg.Go(func() {
			res, err := who.ask(t.Context(), patient, "r1", idem.Bytes([]byte("r1")))
			if err != nil || res.Value != "receipt r1" {
				t.Errorf("got %+v, %v", res, err)
			}
			mu.Lock()
			defer mu.Unlock()
			if !res.Replayed {
				executed++
			}
		})
	}
	pgtest.Eventually(t, "one of the other process waits", func() bool { return b.waiting() == 1 })
	letGo()
	wantErr(t, <-done, errRefused)
	wg.Wait()
	wantInt(t, "executed", int64(executed), 1)
	b.effects(1)
}

// Those who wait on the server leave most of the pool to others; the rest polls.
func idemWaitersAreFew[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 6)
	other := b.other(4) // one of them may wait
	noErr(t, other.keys.Validate(t.Context()))
	var letGo []func()
	var done []<-chan error
	var wg sync.WaitGroup
	for n := range 5 {
		id := fmt.Sprintf("r%d", n)
		goOn, end := b.hold(id, nil)
		letGo, done = append(letGo, goOn), append(done, end)
		wg.Go(func() {
			res, err := other.ask(t.Context(), patient, id, idem.NoFingerprint())
			if err != nil || !res.Replayed {
				t.Errorf("%s: got %+v, %v", id, res, err)
			}
		})
	}
	pgtest.Eventually(t, "one waits on the server", func() bool { return b.waiting() == 1 })
	for range 20 {
		if n := b.waiting(); n > 1 {
			t.Errorf("%d wait on the server, at most 1 of 4 connections may", n)
		}
		_, err := other.do(t.Context(), "free") // there is room for others
		noErr(t, err)
	}
	for n := range letGo {
		letGo[n]()
		noErr(t, <-done[n])
	}
	wg.Wait()
	b.effects(6)
}

// A wait is bounded by Op.Wait and not by the role's time-outs, and leaves these to the handler.
func idemWaitKeepsTimeouts[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects+fmt.Sprintf(`; ALTER DATABASE %[1]q SET lock_timeout = '1234ms'; ALTER DATABASE %[1]q SET statement_timeout = '1s'`, db.Name))
	b := at(t, c, db, c.Open(t, db, 1), nil)
	other := b.other(1)
	letGo, done := b.hold("r1", errRefused)
	timeouts := make(chan error, 1)
	go func() {
		_, err := idem.Do(t.Context(), other.keys, patient.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
			return "", b.Exec(ctx, tx, `INSERT INTO effect VALUES (current_setting('lock_timeout') || current_setting('statement_timeout'))`)
		})
		timeouts <- err
	}()
	pgtest.Eventually(t, "the other process waits", func() bool { return b.waiting() == 1 })
	pgtest.Eventually(t, "it has waited for longer than a statement of the role may take", func() bool {
		return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory' AND query_start < clock_timestamp() - interval '1100 ms'`) == 1
	})
	letGo()
	wantErr(t, <-done, errRefused)
	noErr(t, <-timeouts)
	wantInt(t, "handlers with the role's time-outs", db.Int(t, `SELECT count(*) FROM effect WHERE name = '1234ms1s'`), 1)
}

// A storm from two processes with patience: nobody has to ask twice.
func idemPatientStorm[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 3)
	other := b.other(3)
	var wg sync.WaitGroup
	for n := range 60 {
		who := []*bench[TX]{b, other}[n%2]
		id := fmt.Sprintf("r%d", n/2%3)
		wg.Go(func() {
			res, err := who.ask(t.Context(), patient, id, idem.Bytes([]byte(id)))
			if err != nil || res.Value != "receipt "+id {
				t.Errorf("%s: got %+v, %v", id, res, err)
			}
		})
	}
	wg.Wait()
	b.effects(3)
	b.records(3)
}

// The handler runs at the level that its operation asks for, whatever the role's default is.
func idemIsolation[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects+fmt.Sprintf(`; ALTER DATABASE %q SET default_transaction_isolation = 'repeatable read'`, db.Name))
	b := at(t, c, db, c.Open(t, db, 1), nil)
	for level, want := range map[idem.Isolation]string{
		"": "read committed", idem.ReadCommitted: "read committed", idem.RepeatableRead: "repeatable read", idem.Serializable: "serializable",
	} {
		op := idem.Op{Name: "level " + want, Isolation: level}
		_, err := idem.Do(t.Context(), b.keys, op.Key("m1", string(level)+"x"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
			return "", b.Exec(ctx, tx, `INSERT INTO effect SELECT current_setting('transaction_isolation') WHERE current_setting('transaction_isolation') = '`+want+`'`)
		})
		noErr(t, err)
	}
	b.effects(4)
	_, err := b.ask(t.Context(), idem.Op{Name: "x", Isolation: "read uncommitted"}, "r1", idem.NoFingerprint())
	wantErr(t, err, idem.ErrInvalidKey)
}

// Another key's lock has the same number, or somebody else holds it: the price is a needless
// ErrInFlight, or a needless wait. What is finished answers all the same.
func idemForeignLock[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	other := b.other(1)
	_, err := b.do(t.Context(), "r1")
	noErr(t, err)
	for _, id := range []string{"r1", "r2"} {
		lock := begin(t, other.pool.Driver, "", pg.Stmt{SQL: `SELECT pg_advisory_xact_lock($1)`, Args: []any{lockOf("m1", refund.Name, id)}})
		_, err := b.do(t.Context(), id)
		if id == "r1" {
			noErr(t, err) // is finished
		} else {
			wantErr(t, err, idem.ErrInFlight)
		}
		waited := make(chan error, 1)
		go func() {
			_, err := b.ask(t.Context(), patient, id, idem.NoFingerprint())
			waited <- err
		}()
		if id == "r2" {
			pgtest.Eventually(t, "it waits", func() bool { return b.waiting() == 1 })
		}
		lock.Rollback(t.Context())
		noErr(t, <-waited)
	}
	b.effects(2)
}

// lockOf is the number of a key's advisory lock, as the architecture page has it.
func lockOf(scope, op, id string) int64 {
	h := sha256.New()
	for _, part := range []string{"pgonce.idem", "pgonce", scope, op, id} {
		_ = binary.Write(h, binary.BigEndian, uint64(len(part)))
		_, _ = io.WriteString(h, part)
	}
	return int64(binary.BigEndian.Uint64(h.Sum(nil)))
}

// Nobody is let in where the server cannot be reached.
func idemStoreDown[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	b := at(t, c, db, c.Open(t, db.Via("postgres://nobody@/nowhere?host=/nonexistent"), 1), nil)
	for _, op := range []idem.Op{refund, patient} {
		_, err := idem.Do(t.Context(), b.keys, op.Key("m1", "r1"), idem.NoFingerprint(), func(context.Context, TX) (string, error) {
			t.Error("the handler ran")
			return "", nil
		})
		wantErr(t, err, idem.ErrUnavailable)
	}
}

// What is refused, in flight or another request, does not touch the record it is about.
func idemRefusalsTouchNothing[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	_, err := b.do(t.Context(), "r1")
	noErr(t, err)
	const row = `SELECT count(*) FROM pgonce.idem_record WHERE xmax::text = '0' AND ctid = '(0,1)'`
	wantInt(t, "untouched before", b.db.Int(t, row), 1)
	for range 3 {
		_, err = b.ask(t.Context(), patient, "r1", idem.Bytes([]byte("another amount")))
		wantErr(t, err, idem.ErrMismatch)
		_, err = b.do(t.Context(), "r1")
		noErr(t, err)
	}
	wantInt(t, "untouched after", b.db.Int(t, row), 1)
	b.records(1)
}

// A record that was in the way has vanished when it is looked for: the key is claimed anew, and not
// answered by a guess.
func idemRecordVanishes[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects)
	var vanish func()
	b := at(t, c, db, c.Open(t, db, 2), &idem.Config{Observe: func(e idem.Event) {
		if e.Kind == idem.Retried {
			vanish()
		}
	}})
	vanish = func() { db.Exec(t, `DELETE FROM pgonce.idem_record`) }
	runs := 0
	res, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		if runs++; runs == 1 { // a record appears under our feet, as from a restored backup
			b.db.Exec(t, `INSERT INTO pgonce.idem_record SELECT 1, now(), 'infinity', 'infinity', 1, 1, 'm1',
				substring(sha256('\x000000000000000d'::bytea || 'refund.create' || '\x0000000000000002'::bytea || 'r1') for 16), 'refund.create', 'r1', NULL, '"theirs"'`)
		}
		return b.effect("r1")(ctx, tx)
	})
	noErr(t, err)
	if res.Replayed || runs != 2 {
		t.Errorf("%d runs, got %+v", runs, res)
	}
	b.effects(1)
	b.records(1)
}
