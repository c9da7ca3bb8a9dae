//go:build unix

package statemachine_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

// Two callbacks come at once: the second waits for the first, finds what it would have done, and asks once more: the
// statement of before the wait has seen the row as it was.
func TestTripsAfterAWait(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps+`; INSERT INTO lamp VALUES (1, 'a'), (2, 'a')`)
	wire := pgtest.NewWire()
	cfg := db.Config(t)
	cfg.MaxConns = 1
	cfg.ConnConfig.DialFunc = wire.Dial(cfg.ConnConfig.DialFunc)
	cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	pool := db.Pool(t)
	first, second := bindLamps(t, pgxdriver.New(pool), sm.Table{}), bindLamps(t, pgxdriver.New(db.Open(t, cfg)), sm.Table{})
	calls := []struct {
		ev      sm.Event[light]
		end     func(pgx.Tx, context.Context) error
		outcome sm.Outcome
		trips   int64
	}{
		{on, pgx.Tx.Rollback, sm.Applied, 1},
		{off, pgx.Tx.Commit, sm.AlreadyApplied, 2}, // only the history knows whose move it was, and is committed by now
		{dim, pgx.Tx.Commit, sm.AlreadyApplied, 2},
	}
	for _, id := range []int64{1, 2} {
		for _, c := range calls {
			tx, err := pool.Begin(t.Context())
			if err == nil {
				_, err = first.FireTx(t.Context(), tx, id, c.ev)
			}
			if err != nil {
				t.Fatal(err)
			}
			before := wire.Trips()
			answered := make(chan struct{})
			var res sm.Result[light]
			go func() {
				defer close(answered)
				res, err = second.Fire(t.Context(), id, c.ev)
			}()
			pgtest.Eventually(t, "the second waits", func() bool {
				return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0`) == 1
			})
			if err := c.end(tx, t.Context()); err != nil {
				t.Fatal(err)
			}
			<-answered
			trips := wire.Trips() - before
			if err != nil || res.Outcome != c.outcome || id == 2 && trips != c.trips { // the first prepares the texts
				t.Errorf("%s: got %v, %v after %d trips, want %v after %d", c.ev.Name(), res.Outcome, err, trips, c.outcome, c.trips)
			}
		}
	}
}

// Many rows are counted, so what a trigger says with the same code is not taken for an id that is not unique.
func TestTriggerFailsAsASubqueryDoes(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps+`; INSERT INTO lamp VALUES (1, 'a', 99), (2, 'a', 1);
		CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.watts = 99 THEN RAISE 'too bright' USING ERRCODE = '21000'; END IF; RETURN NEW; END $$;
		CREATE TRIGGER fail BEFORE UPDATE ON lamp FOR EACH ROW EXECUTE FUNCTION fail()`)
	rows, err := bindLamps(t, pgxdriver.New(db.Pool(t)), sm.Table{}).FireMany(t.Context(), []int64{1, 2}, on)
	if err != nil || len(rows) != 2 || rows[0].Err == nil || errors.Is(rows[0].Err, sm.ErrSchema) || !rows[1].Applied() {
		t.Errorf("got %+v, %v", rows, err)
	}
}
