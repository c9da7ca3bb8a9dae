//go:build unix

package statemachine

import (
	"context"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// fireWhole is fireTx without sqlMove.
func (b *Binding[K, S, TX]) fireWhole(ctx context.Context, tx TX, id K, ev Event[S], opts []Option) (Result[S], error) {
	f, err := b.newFiring(id, ev, opts)
	if err != nil {
		return Result[S]{}, err
	}
	q := b.db.Tx(tx)
	if err := f.prepare(ctx, q, false); err != nil {
		return Result[S]{}, err
	}
	var a answer
	err = f.run(ctx, q, &a, 0, false, false)
	if err == nil && !f.settled(&a) {
		err = f.confirm(ctx, q, &a)
	}
	if err != nil {
		return Result[S]{}, f.explain(err)
	}
	return f.result(a)
}

// troubles are what a trigger does when a row is moved.
var troubles = []string{
	``, `BEFORE RETURN NULL;`, `BEFORE NEW.state := 'a'; RETURN NEW;`, `BEFORE NEW.state := NULL; RETURN NEW;`, `BEFORE NEW.n := NEW.n + 100; RETURN NEW;`,
	`BEFORE RAISE 'no' USING ERRCODE = '23514';`, `AFTER RAISE 'no' USING ERRCODE = '21000';`,
}

// twins are two tables with equal rows and the bindings of equal machines: one is fired with sqlMove, one without.
func twins(t *testing.T, db *pgtest.DB, pool *pgxpool.Pool, name, trouble string, table Table) (b [2]*Binding[int64, string, pgx.Tx]) {
	t.Helper()
	rules := []Rule[string]{
		Initial("a", "x"), Final("z"), From("a").On(NewEvent[string]("go")).To("b"), From("b").On(NewEvent[string]("end")).To("c"), From("c", "x").On(NewEvent[string]("odd")).To("z"),
		From("b").Ignore(NewEvent[string]("back")), From("z").Ignore(NewEvent[string]("go")),
	}
	if table.NoHistory {
		rules = append(rules, From("a").On(NewEvent[string]("void")).To("y"), From("c").On(NewEvent[string]("back")).To("w"), Final("y", "w"))
	} else {
		rules = append(rules, From("a").On(NewEvent[string]("void")).To("c"), From("c").On(NewEvent[string]("back")).To("a"))
	}
	for i, how := range []string{"first", "whole"} {
		table.Name = how + name
		db.Exec(t, fmt.Sprintf(`CREATE TABLE %[1]s (id bigint PRIMARY KEY, state text, v int, n bigint NOT NULL DEFAULT 0);
			INSERT INTO %[1]s SELECT g, (ARRAY['a', 'b', 'c', 'z', 'x', '?', NULL])[1 + g %% 7], CASE WHEN g %% 2 = 0 THEN 1 END, 20 * (g %% 5) FROM generate_series(1, 28) g`, table.Name))
		if trouble != "" {
			when, body := trouble[:6], trouble[6:]
			db.Exec(t, fmt.Sprintf(`CREATE FUNCTION %[1]s_f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN %[2]s END $$;
				CREATE TRIGGER t %[3]s UPDATE ON %[1]s FOR EACH ROW EXECUTE FUNCTION %[1]s_f()`, table.Name, body, when))
		}
		m, err := New(table.Name, rules...)
		if err == nil {
			b[i], err = Bind[int64](m, pgxdriver.New(pool), table)
		}
		if err != nil {
			t.Fatal(err)
		}
		if table.Scope != "" {
			b[i] = b[i].In(int64(60))
		}
	}
	return b
}

// randomOptions are those of one call, most often none.
func randomOptions(r *mrand.Rand, history bool) (opts []Option) {
	for _, o := range []struct {
		oneIn   int
		history bool
		opt     Option
	}{
		{4, false, SetExpr("n", "n + $1", int64(r.IntN(60)))},
		{8, false, Where("n < $1", 50)},
		{8, false, Match("n < $1", 70)},
		{8, false, Lock()},
		{8, true, Dedup(fmt.Sprint(r.IntN(5)))},
		{5, true, Actor("me")},
		{5, true, Meta(1)},
	} {
		if r.IntN(o.oneIn) == 0 && (history || !o.history) {
			opts = append(opts, o.opt)
		}
	}
	return opts
}

// The same random calls at twins: the answers, the errors, the rows and the histories are the same, and so is what becomes of the transaction.
func TestMoveFirstIsTheWholeStatement(t *testing.T) {
	t.Parallel()
	seed := mrand.Uint64()
	if given := os.Getenv("PGONCE_SEED"); given != "" {
		var err error
		if seed, err = strconv.ParseUint(given, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("again: PGONCE_SEED=%d", seed)
	r := mrand.New(mrand.NewPCG(seed, 0))
	db := pgtest.New(t)
	pool := db.Pool(t)
	answers := map[string]int{}
	for n, trouble := range troubles {
		for k := range 4 {
			if trouble != "" && (k == 1 || k == 2) {
				continue
			}
			table := Table{NoHistory: k&1 == 1}
			if k&2 == 2 {
				table.Version, table.Scope = "v", "n < $1"
			}
			b := twins(t, db, pool, fmt.Sprintf("_%d_%d", n, k), trouble, table)
			for range 50 {
				id, ev := r.Int64N(30), NewEvent[string]([]string{"go", "end", "back", "void", "odd"}[r.IntN(5)])
				opts := randomOptions(r, !table.NoHistory)
				level := []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable}[r.IntN(3)]
				first, whole := said(t, pool, level, func(tx pgx.Tx) (Result[string], error) { return b[0].fireTx(t.Context(), tx, id, ev, opts) }),
					said(t, pool, level, func(tx pgx.Tx) (Result[string], error) { return b[1].fireWhole(t.Context(), tx, id, ev, opts) })
				if first != whole {
					t.Errorf("trigger %q, %+v, row %d, %s with %d options, %s: %s; without sqlMove %s", trouble, table, id, ev.name, len(opts), level, first, whole)
				}
				answers[first]++
			}
			for what, sql := range map[string]string{
				"rows":            `SELECT id, state, v, n FROM %s`,
				"rows of history": `SELECT version, outcome, entity, event, from_state, to_state, dedup, actor, meta, row_number() OVER (PARTITION BY entity ORDER BY seq) FROM pgonce.transition WHERE machine = '%s'`,
			} {
				x, y := fmt.Sprintf(sql, b[0].m.name), fmt.Sprintf(sql, b[1].m.name)
				if n := db.Int(t, fmt.Sprintf(`SELECT count(*) FROM ((%[1]s EXCEPT ALL %[2]s) UNION ALL (%[2]s EXCEPT ALL %[1]s)) d`, x, y)); n != 0 {
					t.Errorf("trigger %q, %+v: %d %s differ", trouble, table, n, what)
				}
			}
		}
	}
	if len(answers) < 15 {
		t.Errorf("only these answers came up: %v", answers)
	}
}

// said is what a call in a transaction of its own was told, and whether that is alive.
func said(t *testing.T, pool *pgxpool.Pool, level pgx.TxIsoLevel, fire func(pgx.Tx) (Result[string], error)) string {
	t.Helper()
	tx, err := pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: level})
	if err != nil {
		t.Fatal(err)
	}
	res, err := fire(tx)
	alive := tx.Conn().PgConn().TxStatus() == 'T'
	_ = tx.Commit(t.Context())
	name := pg.Code(err)
	for _, known := range []error{ErrInvalid, ErrConflict, ErrNotFound, ErrGuard, ErrUnknownState, ErrDedupReused, ErrBusy, ErrRetryTx, ErrDiverted, ErrTriggerRefused, ErrReadOnly, ErrSchema} {
		if errors.Is(err, known) {
			name = known.Error()
		}
	}
	if conflict, ok := errors.AsType[*ConflictError](err); ok {
		name += fmt.Sprintf(" %v in %q", conflict.Reason, conflict.State)
	}
	return fmt.Sprintf("%v %q>%q version %d, history %t, error %q, alive %t", res.Outcome, res.From, res.To, res.Version, res.Seq > 0 && !res.At.IsZero(), name, alive)
}

// A trigger of the history's swallows its row: the move is not made without it.
func TestMoveFirstNeedsItsHistory(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool := db.Pool(t)
	b := twins(t, db, pool, "_h", "", Table{})
	db.Exec(t, `CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
		CREATE TRIGGER swallow BEFORE INSERT ON pgonce.transition FOR EACH ROW EXECUTE FUNCTION swallow()`)
	if res, err := b[0].Fire(t.Context(), 7, NewEvent[string]("go")); !errors.Is(err, ErrDiverted) {
		t.Errorf("got %+v, %v", res, err)
	}
	if n := db.Int(t, `SELECT count(*) FROM first_h WHERE id = 7 AND state = 'a'`); n != 1 {
		t.Error("it was moved")
	}
}
