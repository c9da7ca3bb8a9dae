//go:build unix

package conformance

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

var hasty = idem.Op{Name: "hasty", MaxHandler: 50 * time.Millisecond}

// A handler that takes too long is rolled back, whether it heeds its ctx or not, and is not run again.
func idemMaxHandler[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	for name, result := range map[string]error{
		"heeds its ctx":          context.DeadlineExceeded,
		"returns nil":            nil,
		"asks for another run":   sqlStateError(pg.CodeSerialization),
		"returns its own reason": errRefused,
	} {
		runs := 0
		_, err := idem.Do(t.Context(), b.keys, hasty.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
			runs++
			noErr(t, b.Exec(context.WithoutCancel(ctx), tx, `INSERT INTO effect VALUES ('r1')`))
			<-ctx.Done()
			wantErr(t, context.Cause(ctx), idem.ErrHandlerTimeout)
			return "late", result
		})
		wantErr(t, err, idem.ErrHandlerTimeout)
		if result != nil {
			wantErr(t, err, result)
		}
		wantInt(t, name+": runs", int64(runs), 1)
	}
	b.effects(0)
	b.records(0)
}

// A role allows less idleness than MaxHandler, and the handler more: the server ends its
// transaction. The handler is not run again only to meet the same end.
func idemStricterRole[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects+fmt.Sprintf(`; ALTER DATABASE %q SET idle_in_transaction_session_timeout = '2s'`, db.Name))
	b := at(t, c, db, c.Open(t, db, 2), nil)
	runs := int64(0)
	_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
		runs++
		noErr(t, b.Exec(ctx, tx, `INSERT INTO effect VALUES ('r1')`))
		b.quiet() // until the server has had enough
		return "late", nil
	})
	wantErr(t, err, idem.ErrHandlerTimeout)
	wantInt(t, "runs", runs, 1)
	b.effects(0)
	b.records(0)
}

type sqlStateError string

func (e sqlStateError) Error() string    { return "sqlstate " + string(e) }
func (e sqlStateError) SQLState() string { return string(e) }

// A host that vanishes in its handler, as far as the server can tell: nothing comes from it any
// more, and its connection stays open. The server frees the key by itself.
func idemHostVanishes[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	inside, wake, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := idem.Do(t.Context(), b.keys, hasty.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
			err := b.Exec(context.WithoutCancel(ctx), tx, `INSERT INTO effect VALUES ('r1')`)
			close(inside)
			<-wake
			return "from the grave", err
		})
		done <- err
	}()
	<-inside
	var res idem.Result[string]
	patient := idem.Op{Name: hasty.Name} // the same key, with time enough on a slow machine
	pgtest.Eventually(t, "the key is free", func() bool {
		var err error
		res, err = idem.Do(t.Context(), b.keys, patient.Key("m1", "r1"), idem.NoFingerprint(), b.effect("r1"))
		return err == nil
	})
	close(wake)
	wantErr(t, <-done, idem.ErrHandlerTimeout)
	if res.Value != "receipt r1" || res.Replayed {
		t.Errorf("got %+v", res)
	}
	b.effects(1)
}

// What the server is told for one transaction ends with it, and a stricter role has its way.
func idemServerLimits[TX any](t *testing.T, c Client[TX]) {
	for role, want := range map[string]string{"0": "31s", "7s": "7s", "1500ms": "1500ms", "2min": "31s", "1h": "31s"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			db.Exec(t, effects+fmt.Sprintf(`; ALTER DATABASE %q SET idle_in_transaction_session_timeout = '%s'`, db.Name, role))
			d := c.Open(t, db, 1)
			b := at(t, c, db, d, nil)
			_, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (string, error) {
				return "", b.Exec(ctx, tx, `INSERT INTO effect SELECT current_setting('idle_in_transaction_session_timeout') || ' ' || current_setting('client_connection_check_interval')`)
			})
			noErr(t, err)
			wantInt(t, "in the handler: "+want, db.Int(t, `SELECT count(*) FROM effect WHERE name = $1`, want+" 500ms"), 1)
			var after string
			noErr(t, d.Pool().Run(t.Context(), pg.Stmt{SQL: `SELECT current_setting('client_connection_check_interval')`, Dest: []any{&after}}))
			if after != "0" {
				t.Errorf("after the call the setting is %s", after)
			}
		})
	}
}
