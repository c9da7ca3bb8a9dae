package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/statemachine"
)

const (
	plainUpdate   = "a plain UPDATE without"
	guardedUpdate = "a plain UPDATE of a table with the trigger"
	manyByHand    = "lock, UPDATE and history by hand, without answers"
	rowsOfVariant = 1000
)

// sweepOf moves all rows of a table there, and back with the next call.
type sweepOf func(ctx context.Context, from, to orderState, ev statemachine.Event[orderState]) error

func (s sweepOf) run(rows int) func(context.Context, time.Duration) (sample, error) {
	turn := 0
	return func(ctx context.Context, d time.Duration) (sample, error) {
		got, err := hammer(ctx, 1, d, func(ctx context.Context, _ int) (time.Duration, error) {
			turn++
			if turn%2 == 0 {
				return 0, s(ctx, isClosed, isOpen, reopening)
			}
			return 0, s(ctx, isOpen, isClosed, closing)
		})
		got.served[0] *= int64(rows)
		return got, err
	}
}

// fireMany is the part of S8 about many rows at once.
func (g *ground) fireMany(ctx context.Context, pool *pgxpool.Pool) error {
	rows := 10_000
	if g.opt.smoke {
		rows = 1_000
	}
	b, err := newOrders(ctx, pool, "s8_many", rows, statemachine.Table{})
	_, err2 := newOrders(ctx, pool, "s8_plain", rows, statemachine.Table{})
	guarded, err3 := newOrders(ctx, pool, "s8_guarded", rows, statemachine.Table{})
	_, err4 := newOrders(ctx, pool, "s8_manyhand", rows, statemachine.Table{})
	if err = errors.Join(err, err2, err3, err4); err == nil {
		_, err = pool.Exec(ctx, guarded.TriggerSQL(nil), pgx.QueryExecModeSimpleProtocol)
	}
	if err != nil {
		return err
	}
	ids := make([]int64, rows)
	for i := range ids {
		ids[i] = int64(i)
	}
	row := fmt.Sprintf("rows=%d", rows)
	contenders := []contender{
		{name: us, run: firingMany(b, ids).run(rows)},
		{name: plainUpdate, run: updating(pool, "s8_plain", ids).run(rows)},
		{name: manyByHand, run: writing(pool, "s8_manyhand", ids).run(rows)},
		{name: guardedUpdate, run: updating(pool, "s8_guarded", ids).run(rows)},
	}
	found, err := g.alternate(ctx, "S8 "+row, contenders)
	if err != nil {
		return err
	}
	g.report.compare("FireMany of "+grouped(float64(rows)), "rows/s", contenders, found)
	g.report.atMost("FireMany "+row+" vs=plain", "time", found[plainUpdate].over(found[us], (*sample).rate), 3.5)
	g.report.floor(manyByHand, found[manyByHand], plainUpdate, found[plainUpdate])
	perRow := 1e6/found[guardedUpdate].of((*sample).rate) - 1e6/found[plainUpdate].of((*sample).rate)
	g.report.printf("The trigger adds %.1f us to a row of the plain UPDATE.\n\n", perRow)
	return nil
}

func firingMany(b *orders, ids []int64) sweepOf {
	return func(ctx context.Context, _, _ orderState, ev statemachine.Event[orderState]) error {
		results, err := b.FireMany(ctx, ids, ev)
		if err != nil {
			return err
		}
		for _, r := range results {
			if !r.Applied() {
				return fmt.Errorf("row %d: %v, %w", r.ID, r.Outcome, r.Err)
			}
		}
		if len(results) != len(ids) {
			return fmt.Errorf("%d of %d rows were answered", len(results), len(ids))
		}
		return nil
	}
}

func updating(pool *pgxpool.Pool, table string, ids []int64) sweepOf {
	sql := `UPDATE ` + table + ` SET state = $2 WHERE id = ANY ($1) AND state = $3`
	return func(ctx context.Context, from, to orderState, _ statemachine.Event[orderState]) error {
		tag, err := pool.Exec(ctx, sql, ids, string(to), string(from))
		if err == nil && tag.RowsAffected() != int64(len(ids)) {
			err = fmt.Errorf("%d of %d rows were moved", tag.RowsAffected(), len(ids))
		}
		return err
	}
}

// writing is the least that makes the same rows safely: the floor.
func writing(pool *pgxpool.Pool, table string, ids []int64) sweepOf {
	sql := `WITH cur AS MATERIALIZED (SELECT id, state FROM ` + table + ` WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE),
		moved AS (UPDATE ` + table + ` t SET state = $2 FROM cur WHERE t.id = cur.id AND cur.state = $3 RETURNING t.id)
		INSERT INTO pgonce.transition (machine, entity, event, from_state, to_state) SELECT 'by hand', id::text, $4, $3, $2 FROM moved`
	return func(ctx context.Context, from, to orderState, ev statemachine.Event[orderState]) error {
		tag, err := pool.Exec(ctx, sql, ids, string(to), string(from), ev.Name())
		if err == nil && tag.RowsAffected() != int64(len(ids)) {
			err = fmt.Errorf("%d of %d rows were moved", tag.RowsAffected(), len(ids))
		}
		return err
	}
}

// variant is a table on which a move costs more than on another.
type variant struct {
	table, what string
	since       string // Table.Since
	trigger     bool
	index       string
}

var variants = []variant{
	{table: "s8_bare", what: us},
	{table: "s8_trigger", what: "with the trigger", trigger: true},
	{table: "s8_since", what: "with a Since column", since: "since"},
	{table: "s8_partial", what: "and an index on it, of one state", since: "since", index: `CREATE INDEX ON s8_partial (since, id) WHERE state IN ('open')`},
	{table: "s8_btree", what: "and an index on it, of all states", since: "since", index: `CREATE INDEX ON s8_btree (since, id)`},
}

// whatMovesCost compares moves on tables with a trigger, a Since column and indexes on that. There is no target: it is what the advice in
// the documentation rests on.
func (g *ground) whatMovesCost(ctx context.Context, pool *pgxpool.Pool) error {
	var contenders []contender
	var bound []*orders
	for _, v := range variants {
		b, err := newOrders(ctx, pool, v.table, rowsOfVariant, statemachine.Table{Since: v.since})
		if err == nil && v.trigger {
			_, err = pool.Exec(ctx, b.TriggerSQL(nil), pgx.QueryExecModeSimpleProtocol)
		}
		if err == nil && v.index != "" {
			_, err = pool.Exec(ctx, v.index)
		}
		if err != nil {
			return err
		}
		s := &stepper{step: firing(b), turns: make([]int, 1)}
		contenders = append(contenders, contender{name: v.what, run: s.run(1)})
		bound = append(bound, b)
	}
	found, err := g.alternate(ctx, "S8 costs", contenders)
	if err != nil {
		return err
	}
	g.report.compare("what a move costs", "moves/s", contenders, found)
	g.report.printf("| what a move writes, with its history | bytes of WAL | HOT |\n|---|---:|---:|\n")
	for i, v := range variants {
		wal, hot, err := writtenBy(ctx, pool, bound[i], v.table)
		if err != nil {
			return err
		}
		g.report.printf("| %s | %d | %.0f %% |\n", v.what, wal, hot)
	}
	g.report.printf("\n")
	return nil
}

// writtenBy moves every row in one transaction, which has no WAL of commits, and again, since the first
// change of a page after a checkpoint writes all of it.
func writtenBy(ctx context.Context, pool *pgxpool.Pool, b *orders, table string) (wal int64, hot float64, err error) {
	position := `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint, pg_stat_get_xact_tuples_hot_updated('` + table + `'::regclass)`
	if _, err := pool.Exec(ctx, `UPDATE `+table+` SET state = 'open'`); err != nil {
		return 0, 0, err
	}
	for _, ev := range []statemachine.Event[orderState]{closing, reopening} {
		if _, err = pool.Exec(ctx, `VACUUM `+table); err != nil {
			return 0, 0, err
		}
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			var before, after, hotBefore, hotAfter int64
			err := tx.QueryRow(ctx, position).Scan(&before, &hotBefore)
			for id := int64(0); err == nil && id < rowsOfVariant; id++ {
				_, err = b.FireTx(ctx, tx, id, ev)
			}
			if err == nil {
				err = tx.QueryRow(ctx, position).Scan(&after, &hotAfter)
			}
			wal, hot = (after-before)/rowsOfVariant, float64(hotAfter-hotBefore)*100/rowsOfVariant
			return err
		})
		if err != nil {
			return 0, 0, err
		}
	}
	return wal, hot, nil
}
