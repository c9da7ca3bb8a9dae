//go:build unix

package conformance

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pg"
)

// open begins a transaction as a user's code would, and rolls it back at the end of the test.
func (b *bench[TX]) open(level pg.Isolation) TX {
	b.t.Helper()
	tx, err := b.pool.BeginTx(b.t.Context(), level)
	noErr(b.t, err)
	b.t.Cleanup(func() { _ = b.Rollback(context.Background(), tx) })
	return tx
}

func (b *bench[TX]) doTx(tx TX, id string) (idem.Result[string], error) {
	return idem.DoTx(b.t.Context(), b.keys, tx, refund.Key("m1", id), idem.Bytes([]byte(id)), b.effect(id))
}

func (b *bench[TX]) exec(tx TX, sql string) {
	b.t.Helper()
	noErr(b.t, b.Exec(b.t.Context(), tx, sql))
}

func (b *bench[TX]) commit(tx TX) {
	b.t.Helper()
	noErr(b.t, b.Commit(b.t.Context(), tx))
}

func (b *bench[TX]) rollback(tx TX) {
	b.t.Helper()
	noErr(b.t, b.Rollback(b.t.Context(), tx))
}

// The effect and its record go the way of the caller's transaction. The pool has one connection, which
// the caller is using.
func txNewAndRepeat[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 1)
	tx := b.open("")
	_, err := b.doTx(tx, "r1")
	noErr(t, err)
	b.rollback(tx)
	b.effects(0)
	b.records(0)

	tx = b.open("")
	first, err := b.doTx(tx, "r1")
	noErr(t, err)
	again, err := b.doTx(tx, "r1") // in the same transaction
	noErr(t, err)
	b.commit(tx)
	tx = b.open("")
	later, err := b.doTx(tx, "r1")
	noErr(t, err)
	b.exec(tx, `INSERT INTO effect VALUES ('the caller goes on')`)
	b.commit(tx)
	plain, err := b.do(t.Context(), "r1")
	noErr(t, err)
	for i, res := range []idem.Result[string]{first, again, later, plain} {
		if res.Value != "receipt r1" || res.Replayed != (i > 0) || !res.FirstAt.Equal(first.FirstAt) {
			t.Errorf("answer %d is %+v", i, res)
		}
	}
	b.effects(2)
	b.records(1)
}

// Whatever the handler does wrong, what it wrote is undone, and the caller commits the rest.
func txHandlerFails[TX any](t *testing.T, c Client[TX]) {
	for name, tc := range map[string]struct {
		handler func(b *bench[TX], ctx context.Context, tx TX) (string, error)
		want    error
	}{
		"error": {func(*bench[TX], context.Context, TX) (string, error) { return "", errRefused }, errRefused},
		"failed statement": {func(b *bench[TX], ctx context.Context, tx TX) (string, error) {
			return "", errors.Join(errRefused, b.Exec(ctx, tx, `SELECT 1/0`))
		}, errRefused},
		"swallowed failure": {func(b *bench[TX], ctx context.Context, tx TX) (string, error) {
			_ = b.Exec(ctx, tx, `SELECT 1/0`)
			return "fine", nil
		}, idem.ErrTxUnusable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, c, 1)
			tx := b.open("")
			b.exec(tx, `INSERT INTO effect VALUES ('before')`)
			_, err := idem.DoTx(t.Context(), b.keys, tx, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
				b.exec(tx, `INSERT INTO effect VALUES ('half')`)
				return tc.handler(b, ctx, tx)
			})
			wantErr(t, err, tc.want)
			b.exec(tx, `INSERT INTO effect VALUES ('after')`)
			b.commit(tx)
			wantInt(t, "half effects", b.db.Int(t, `SELECT count(*) FROM effect WHERE name = 'half'`), 0)
			b.effects(2)
			b.records(0)
		})
	}
}

func txHandlerPanics[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 1)
	for name, blow := range map[string]func(){"panic": func() { panic("boom") }, "Goexit": runtime.Goexit} {
		tx := b.open("")
		b.exec(tx, `INSERT INTO effect VALUES ('caller')`)
		var wg sync.WaitGroup
		wg.Go(func() {
			defer func() {
				if r := recover(); name == "panic" && r != "boom" {
					t.Errorf("recovered %v, want the handler's panic", r)
				}
			}()
			_, _ = idem.DoTx(t.Context(), b.keys, tx, refund.Key("m1", "r1"), idem.NoFingerprint(), func(context.Context, TX) (string, error) {
				b.exec(tx, `INSERT INTO effect VALUES ('half')`)
				blow()
				return "", nil
			})
		})
		wg.Wait()
		b.commit(tx)
	}
	b.effects(2)
	b.records(0)
}

// While another transaction executes the key, or has and is not committed, nobody waits, and the
// caller's transaction stays usable.
func txInFlight[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	other := b.other(1)
	first := b.open("")
	_, err := b.doTx(first, "r1")
	noErr(t, err)
	tx := other.open("")
	_, err = other.doTx(tx, "r1")
	wantErr(t, err, idem.ErrInFlight)
	_, err = other.keys.SeenTx(t.Context(), tx, refund.Key("m1", "r1"))
	wantErr(t, err, idem.ErrInFlight)
	_, err = b.do(t.Context(), "r1")
	wantErr(t, err, idem.ErrInFlight)
	b.commit(first)
	res, err := other.doTx(tx, "r1")
	noErr(t, err)
	if !res.Replayed {
		t.Errorf("got %+v", res)
	}
	other.exec(tx, `INSERT INTO effect VALUES ('other')`)
	other.commit(tx)
	b.effects(2)
	b.records(1)
}

func txFinal[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 1)
	for _, replayed := range []bool{false, true} {
		tx := b.open("")
		b.exec(tx, `INSERT INTO effect VALUES ('caller')`)
		res, err := idem.DoTx(t.Context(), b.keys, tx, refund.Key("m1", "r1"), idem.NoFingerprint(), b.refuse)
		b.wantRefused(res, err, replayed)
		b.commit(tx)
	}
	tx := b.open("")
	res, err := idem.DoTx(t.Context(), b.keys, tx, refund.Key("m1", "r2"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		_ = b.Exec(ctx, tx, `SELECT 1/0`)
		return "account closed", idem.Final(errRefused)
	})
	b.wantRefused(res, err, false)
	b.commit(tx)
	b.effects(2)
	b.records(2)
}

// The caller rolls back to a savepoint from before the call: record and effect vanish together, and
// the key is free.
func txSavepoints[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	tx := b.open("")
	b.exec(tx, `SAVEPOINT mine`)
	_, err := b.doTx(tx, "r1")
	noErr(t, err)
	b.exec(tx, `ROLLBACK TO SAVEPOINT mine`)
	_, err = b.other(1).do(t.Context(), "r1")
	noErr(t, err)
	res, err := b.doTx(tx, "r1")
	noErr(t, err)
	if !res.Replayed {
		t.Errorf("got %+v", res)
	}
	b.commit(tx)
	b.effects(1)

	// The handler does the same: its own savepoint and the key's lock are gone with it.
	tx = b.open("")
	b.exec(tx, `SAVEPOINT mine`)
	_, err = idem.DoTx(t.Context(), b.keys, tx, refund.Key("m1", "r2"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		noErr(t, b.Exec(ctx, tx, `ROLLBACK TO SAVEPOINT mine`))
		return b.effect("r2")(ctx, tx)
	})
	wantErr(t, err, idem.ErrTxUnusable)
	_ = b.Commit(t.Context(), tx) // the server makes a rollback of it
	b.effects(1)
	b.records(1)
}

// The handler ends the caller's transaction. After a rollback the key is free; after a commit, its effect is
// durable without a record, so the key is blocked.
func txHandlerEnds[TX any](t *testing.T, c Client[TX]) {
	sql := func(text string) func(b *bench[TX], ctx context.Context, tx TX) error {
		return func(b *bench[TX], ctx context.Context, tx TX) error { return b.Exec(ctx, tx, text) }
	}
	for name, tc := range map[string]struct {
		end     func(b *bench[TX], ctx context.Context, tx TX) error
		durable bool
	}{
		"COMMIT":             {sql(`COMMIT`), true},
		"COMMIT AND CHAIN":   {sql(`COMMIT AND CHAIN`), true},
		"ROLLBACK":           {sql(`ROLLBACK`), false},
		"ROLLBACK AND CHAIN": {sql(`ROLLBACK AND CHAIN`), false},
		"by verb, commit":    {func(b *bench[TX], ctx context.Context, tx TX) error { return b.Commit(ctx, tx) }, true},
		"by verb, rollback":  {func(b *bench[TX], ctx context.Context, tx TX) error { return b.Rollback(ctx, tx) }, false},
	} {
		for _, result := range []error{nil, errRefused} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				b := setup(t, c, 2)
				other := b.other(1)
				_, err := idem.DoTx(t.Context(), b.keys, b.open(""), refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
					b.exec(tx, `INSERT INTO effect VALUES ('r1')`)
					noErr(t, tc.end(b, ctx, tx))
					return "", result
				})
				if result == nil || tc.durable {
					wantErr(t, err, idem.ErrTxEnded)
				} else if !errors.Is(err, idem.ErrTxEnded) {
					wantErr(t, err, result)
				}
				_, err = other.do(t.Context(), "r1")
				if tc.durable {
					wantErr(t, err, idem.ErrUnknownOutcome)
				} else {
					noErr(t, err)
				}
				b.effects(1)
			})
		}
	}
}

// A handler of Do executes a second key with its own transaction. The same key, or a second Do, is
// refused, also when it comes by another ctx.
func idemNested[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	outer := func(inner func(ctx context.Context, tx TX) error) error {
		_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "outer"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
			if err := b.Exec(ctx, tx, `INSERT INTO effect VALUES ('outer')`); err != nil {
				return "", err
			}
			return "", inner(ctx, tx)
		})
		return err
	}
	innerTx := func(ctx context.Context, tx TX, id string) error {
		_, err := idem.DoTx(ctx, b.keys, tx, refund.Key("m1", id), idem.NoFingerprint(), b.effect(id))
		return err
	}
	wantErr(t, outer(func(ctx context.Context, _ TX) error { _, err := b.do(ctx, "inner"); return err }), idem.ErrNested)
	wantErr(t, outer(func(ctx context.Context, tx TX) error { return innerTx(ctx, tx, "outer") }), idem.ErrReentrant)
	wantErr(t, outer(func(ctx context.Context, tx TX) error {
		return innerTx(context.WithoutCancel(t.Context()), tx, "outer") //nolint:contextcheck // a ctx that knows nothing of the handler
	}), idem.ErrReentrant)
	b.effects(0)
	b.records(0)

	var later context.Context
	noErr(t, outer(func(ctx context.Context, tx TX) error {
		later = context.WithoutCancel(ctx)
		return innerTx(ctx, tx, "inner")
	}))
	_, err := b.do(later, "after") // the handler is over, so this is not inside it
	noErr(t, err)
	b.effects(3)
	b.records(3)
}

// A transaction that cannot write is refused before the handler runs, and stays usable where it can.
func txReadOnly[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 1)
	_, err := b.do(t.Context(), "r1")
	noErr(t, err)
	tx := b.open("")
	b.exec(tx, `SET TRANSACTION READ ONLY`)
	_, err = b.doTx(tx, "r2")
	wantErr(t, err, idem.ErrReadOnly)
	res, err := b.doTx(tx, "r1")
	noErr(t, err)
	if !res.Replayed {
		t.Errorf("got %+v", res)
	}
	_, err = b.keys.SeenTx(t.Context(), tx, refund.Key("m1", "r2"))
	wantErr(t, err, idem.ErrReadOnly)
	b.effects(1)
}

// What cannot be used is refused without touching the transaction.
func txMisuse[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 1)
	var none TX
	_, err := b.doTx(none, "r1")
	wantText(t, err, "nil transaction")
	_, err = b.keys.SeenTx(t.Context(), none, refund.Key("m1", "r1"))
	wantText(t, err, "nil transaction")
	tx := b.open("")
	_, err = idem.DoTx[string](t.Context(), b.keys, tx, refund.Key("m1", "r1"), idem.NoFingerprint(), nil)
	wantText(t, err, "nil handler")
	_, err = b.keys.SeenTx(t.Context(), tx, refund.Key("", "r1"))
	wantErr(t, err, idem.ErrInvalidKey)
	_, err = b.doTx(tx, "r1")
	noErr(t, err)
	b.rollback(tx)
	_, err = b.doTx(tx, "r1")
	wantText(t, err, "ended")
	b.effects(0)
}
