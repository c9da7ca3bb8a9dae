//go:build unix

package idem_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/fault"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// The answer to the statement that stores an outcome is lost. Whoever looks finds a record, and has to know
// that it is the own one: what the call has found out itself is no replay.
func TestOwnRecordAfterALostAnswer(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		call func(context.Context, *idem.Store[pgx.Tx]) (idem.Result[string], error)
		err  error
	}{
		"a refusal": {func(ctx context.Context, keys *idem.Store[pgx.Tx]) (idem.Result[string], error) {
			return idem.Do(ctx, keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(context.Context, pgx.Tx) (string, error) {
				return "declined", idem.Final(errors.New("no money"))
			})
		}, idem.ErrRefused},
		"steps": {func(ctx context.Context, keys *idem.Store[pgx.Tx]) (idem.Result[string], error) {
			return idem.RunSteps(ctx, keys, refund.Key("m1", "r1"), idem.NoFingerprint(), "request", func(context.Context, *idem.Run[pgx.Tx], string) (string, error) {
				return "receipt", nil
			})
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			cut := &answerCutter{proxy: fault.New(t, db.URL)}
			cfg := db.Via(cut.proxy.URL()).Config(t)
			cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // or the answer would be to the preparation
			cfg.ConnConfig.Tracer = cut
			keys := newStore(t, db.Open(t, cfg), nil)
			res, err := tc.call(t.Context(), keys)
			if !errors.Is(err, tc.err) || res.Value == "" || res.Replayed {
				t.Errorf("got %+v, %v", res, err)
			}
			if !cut.done.Load() {
				t.Error("nothing was cut")
			}
			again, err := tc.call(t.Context(), keys)
			if !errors.Is(err, tc.err) || again.Value != res.Value || !again.Replayed {
				t.Errorf("again: got %+v, %v", again, err)
			}
		})
	}
}

// answerCutter breaks the first connection that is sent a record.
type answerCutter struct {
	proxy *fault.Proxy
	done  atomic.Bool
}

func (c *answerCutter) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(data.SQL, `INSERT INTO "pgonce"."idem_record"`) && c.done.CompareAndSwap(false, true) {
		c.proxy.Arm(int64(conn.PgConn().PID()), fault.CutAnswer)
	}
	return ctx
}

func (*answerCutter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
