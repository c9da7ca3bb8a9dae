//go:build unix

package pgbouncer_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/migrations"
)

func pooled(t *testing.T, db *pgtest.DB, b *pooler, mode pgx.QueryExecMode, conns int32) *pgxpool.Pool {
	t.Helper()
	cfg := db.Via(b.url).Config(t)
	cfg.MaxConns = conns
	cfg.ConnConfig.DefaultQueryExecMode = mode
	return db.Open(t, cfg)
}

// pgx prepares statements unless told otherwise, and PgBouncer below 1.21 loses them, as newer ones do without
// max_prepared_statements. The first process gets away with it; the next one, and everybody under load, is told what to do. Nothing is
// executed but what was asked for: names are made of the text.
func TestPreparedStatementsAreExplained(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, p program) {
		t.Helper()
		db := pgtest.New(t)
		db.Exec(t, effects)
		settings := map[string]string{"default_pool_size": "1"}
		if p.prepares {
			settings["max_prepared_statements"] = "0"
		}
		b := start(t, p, db.URL, settings)
		first, second := pooled(t, db, b, pgx.QueryExecModeCacheStatement, 1), pooled(t, db, b, pgx.QueryExecModeCacheStatement, 1)
		verbs := map[string]func(*pgxpool.Pool) error{
			"Store.Validate": func(pool *pgxpool.Pool) error { return storeOn(t, pool).Validate(t.Context()) },
			"migrations.Validate": func(pool *pgxpool.Pool) error {
				std := stdlib.OpenDBFromPool(pool)
				defer func() { _ = std.Close() }()
				return migrations.Validate(t.Context(), std, nil)
			},
			"Do": func(pool *pgxpool.Pool) error {
				_, err := idem.Do(t.Context(), storeOn(t, pool), refund.Key("m1", "r1"), idem.NoFingerprint(), insertEffect("r1"))
				return err
			},
		}
		for name, verb := range verbs {
			_ = verb(first) // prepares on the only server connection
			if err := verb(second); err == nil || !strings.Contains(err.Error(), "PgBouncer 1.21") || !strings.Contains(err.Error(), "default_query_exec_mode=exec") {
				t.Errorf("%s: got %v", name, err)
			}
		}
		if n := db.Int(t, `SELECT count(*) FROM effect`); n > 1 {
			t.Errorf("%d effects", n)
		}
	})
}

// In the mode "describe exec" pgx by itself executes an unnamed statement a trip after it has prepared it, on whatever server
// connection it gets then. Through the driver each statement is the one that was asked for.
func TestDescribeExecRunsWhatWasAsked(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, p program) {
		t.Helper()
		db := pgtest.New(t)
		b := start(t, p, db.URL, map[string]string{"default_pool_size": "3"})
		q := pgxdriver.New(pooled(t, db, b, pgx.QueryExecModeDescribeExec, 8)).Pool()
		var wg sync.WaitGroup
		for caller := range 8 {
			wg.Go(func() {
				for n := range 200 {
					if err := askFor(t.Context(), q, fmt.Sprintf("%d, %d", caller, n), caller); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

func askFor(ctx context.Context, q pg.Querier, want string, caller int) error {
	sql := fmt.Sprintf(`SELECT 'caller %d: ' || $1::text`, caller)
	var got string
	if err := q.Run(ctx, pg.Stmt{SQL: sql, Args: []any{want}, Dest: []any{&got}}); err != nil {
		return err
	}
	if got != fmt.Sprintf("caller %d: %s", caller, want) {
		return fmt.Errorf("asked for %q, got %q", want, got)
	}
	for scan, err := range q.Query(ctx, sql, want) {
		if err != nil {
			return err
		}
		if err := scan(&got); err != nil {
			return err
		}
	}
	return nil
}

// A migration that changes what a statement returns makes PgBouncer's own prepared statements stale, and preparing anew does not help,
// since it knows the text already. Nothing is executed, the error says what to do, and then it works.
func TestStalePlanUntilReconnect(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, p program) {
		t.Helper()
		if !p.prepares {
			return // it has none
		}
		db := pgtest.New(t)
		db.Exec(t, effects)
		b := start(t, p, db.URL, map[string]string{"default_pool_size": "1", "admin_users": "postgres"})
		keys := storeOn(t, pooled(t, db, b, pgx.QueryExecModeCacheStatement, 1))
		do := func(id string) error {
			_, err := idem.Do(t.Context(), keys, refund.Key("m1", id), idem.NoFingerprint(), insertEffect(id))
			return err
		}
		for _, id := range []string{"r1", "r1"} {
			if err := do(id); err != nil {
				t.Fatal(err)
			}
		}
		db.Exec(t, `ALTER TABLE pgonce.idem_record ALTER COLUMN state TYPE int`)
		if err := do("r2"); err == nil || !strings.Contains(err.Error(), "RECONNECT") {
			t.Errorf("got %v", err)
		}
		b.admin(t, "RECONNECT")
		pgtest.Eventually(t, "it works again", func() bool { return do("r2") == nil })
		if n := db.Int(t, `SELECT count(*) FROM effect`); n != 2 {
			t.Errorf("%d effects, want 2", n)
		}
	})
}
