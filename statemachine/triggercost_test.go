//go:build unix

package statemachine_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

// written is what moving every row of a fresh table of 500 writes, each in a statement of its own and all in one transaction: bytes of WAL, and how many of the
// updates were HOT. The times are fixed: WAL leaves out what
// the old and the new row end alike with, which for times of the clock depends on the hour.
func written(t *testing.T, pool *pgxpool.Pool, table, before string, trigger bool) (wal, hot int64) {
	t.Helper()
	const rows = 500
	b, err := sm.Bind[int64](sm.MustNew("lights", sm.Initial[light]("a"), sm.Final[light]("z"), from("a").On(on).To("b"), from("b").On(off).To("z")),
		pgxdriver.New(pool), sm.Table{Name: table, NoHistory: true})
	if err != nil {
		t.Fatal(err)
	}
	if trigger {
		before += b.TriggerSQL(nil)
	}
	setUp := fmt.Sprintf(`CREATE TABLE %s (id bigint PRIMARY KEY, state text NOT NULL DEFAULT 'a', since timestamptz NOT NULL DEFAULT '2026-01-01 00:00Z') WITH (fillfactor = 40);
		INSERT INTO %s SELECT g FROM generate_series(1, %d) g; %s`, table, table, rows, before)
	if _, err := pool.Exec(t.Context(), setUp); err != nil {
		t.Fatal(err)
	}
	err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		const position = `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint`
		var after int64
		for id := range int64(rows) {
			res, err := b.FireTx(t.Context(), tx, id+1, on, sm.Set("since", "2026-02-03 04:05Z"))
			if err != nil || !res.Applied() {
				return fmt.Errorf("got %+v, %w", res, err)
			}
			if id == 99 { // xids, and the first record of pages, are behind us
				if err := tx.QueryRow(context.Background(), position).Scan(&wal); err != nil {
					return err
				}
			}
		}
		if err := tx.QueryRow(t.Context(), position).Scan(&after); err != nil {
			return err
		}
		wal = after - wal
		return tx.QueryRow(t.Context(), `SELECT pg_stat_get_xact_tuples_hot_updated('`+table+`'::regclass)`).Scan(&hot)
	})
	if err != nil {
		t.Fatal(err)
	}
	return wal / 400, hot
}

// The trigger writes nothing, and keeps updates HOT. The server locks a row before it calls a BEFORE trigger, in a record of its own: 56 bytes that
// whoever locks the row himself writes anyway. What costs is an index on the time since when a row is in its
// state, which takes HOT from every one of them.
func TestWhatTriggerAndIndexWrite(t *testing.T) {
	t.Parallel()
	pool := pgtest.Quiet(t)
	plain, hot := written(t, pool, "plain", "", false)
	if hot != 500 {
		t.Errorf("%d of 500 updates were HOT", hot)
	}
	guarded, hot := written(t, pool, "guarded", "", true)
	t.Logf("a move writes %d bytes of WAL, %d with the trigger", plain, guarded)
	if guarded != plain+56 || hot != 500 {
		t.Errorf("with the trigger: %d bytes of WAL, without %d; %d of 500 were HOT", guarded, plain, hot)
	}
	for what, index := range map[string]string{
		"btree": `CREATE INDEX ON btree (since);`, "partial": `CREATE INDEX ON partial (since) WHERE state IN ('a');`,
	} {
		wal, hot := written(t, pool, what, index, false)
		t.Logf("a move writes %d bytes of WAL with a %s index on since, %+d %%", wal, what, (wal-plain)*100/plain)
		if hot != 0 || wal <= plain {
			t.Errorf("%s: %d bytes of WAL, without %d; %d of 500 were HOT", what, wal, plain, hot)
		}
	}
}
