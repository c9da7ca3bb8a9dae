//go:build unix

package statemachine_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

// before does something once, just before the first statement that moves rows is sent.
type before struct {
	once sync.Once
	do   func()
}

func (b *before) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(data.SQL, "pgonce_moved") {
		b.once.Do(b.do)
	}
	return ctx
}

func (*before) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// A row that was not there to be locked, or not in the scope, and is before the statement that moves rows, is not moved past its guard.
func TestGuardIsAskedOfARowThatComesLate(t *testing.T) {
	t.Parallel()
	refused := errors.New("over the limit")
	guard := func(context.Context, pgx.Tx, light) error { return refused }
	for name, fire := range map[string]func(*sm.Binding[int64, light, pgx.Tx], *pgxpool.Pool) error{
		"FireFunc": func(b *sm.Binding[int64, light, pgx.Tx], _ *pgxpool.Pool) error {
			_, err := b.FireFunc(t.Context(), 1, on, guard)
			if !errors.Is(err, refused) {
				return errors.Join(errors.New("the guard was not asked"), err)
			}
			return nil
		},
		"FireFuncTx": func(b *sm.Binding[int64, light, pgx.Tx], pool *pgxpool.Pool) error {
			return pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				_, err := b.FireFuncTx(t.Context(), tx, 1, on, guard)
				if !errors.Is(err, sm.ErrRetryTx) || !sm.IsRetryable(err) {
					return errors.Join(errors.New("not to be tried again"), err)
				}
				return pgx.ErrTxClosed // rolls back
			})
		},
	} {
		for how, late := range map[string]struct{ before, then string }{
			"inserted":             {`SELECT 1`, `INSERT INTO lamp VALUES (1, 'a', 20)`},
			"moved into the scope": {`INSERT INTO lamp VALUES (1, 'a', 10)`, `UPDATE lamp SET watts = 20`},
		} {
			t.Run(name+", "+how, func(t *testing.T) {
				t.Parallel()
				db := pgtest.New(t)
				db.Exec(t, lamps+"; "+late.before)
				cfg := db.Config(t)
				cfg.ConnConfig.Tracer = &before{do: func() { db.Exec(t, late.then) }}
				pool := db.Open(t, cfg)
				if err := fire(bindLamps(t, pgxdriver.New(pool), sm.Table{Scope: "watts > 10"}), pool); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
					t.Error(err)
				}
				if n := db.Int(t, `SELECT count(*) FROM lamp WHERE state = 'a' AND watts = 20 AND NOT EXISTS (SELECT FROM pgonce.transition)`); n != 1 {
					t.Error("the row was moved, or did not come late")
				}
			})
		}
	}
}
