//go:build unix

package pgbouncer_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

const effects = `CREATE TABLE effect (name text NOT NULL)`

var refund = idem.Op{Name: "refund.create"}

func insertEffect(name string) func(context.Context, pgx.Tx) (string, error) {
	return func(ctx context.Context, tx pgx.Tx) (string, error) {
		_, err := tx.Exec(ctx, `INSERT INTO effect VALUES ($1)`, name)
		return "receipt " + name, err
	}
}

// poolOf is a pool by way of a pooler, in a mode that every PgBouncer knows.
func poolOf(t *testing.T, db *pgtest.DB, b *pooler, conns int32) *pgxpool.Pool {
	t.Helper()
	cfg := db.Via(b.url).Config(t)
	cfg.MaxConns = conns
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	return db.Open(t, cfg)
}

func storeOn(t *testing.T, pool *pgxpool.Pool) *idem.Store[pgx.Tx] {
	t.Helper()
	keys, err := idem.New(pgxdriver.New(pool), nil)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// hold is the life of a process that takes a key, says so, and never comes to an end: in Go, or in the
// statement that it is given.
func hold(url, sql string) {
	ctx := context.Background()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		panic(err)
	}
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		panic(err)
	}
	keys, err := idem.New(pgxdriver.New(pool), nil)
	if err != nil {
		panic(err)
	}
	_, err = idem.Do(ctx, keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx pgx.Tx) (string, error) {
		receipt, err := insertEffect("r1")(ctx, tx)
		println("holding")
		if err == nil && sql == "" {
			select {}
		}
		if err == nil {
			_, err = tx.Exec(context.WithoutCancel(ctx), sql)
		}
		return receipt, err
	})
	panic(err)
}

// A process that is killed while it holds a key frees it, in mid-statement too, with a pooler in between: that closes
// the server connection of a client that left in a transaction, and the server, which was told to look, ends the statement.
func TestKilledHolderFreesItsKey(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, p program) {
		t.Helper()
		t.Helper()
		for name, sql := range map[string]string{"between statements": "", "in a statement": "SELECT pg_sleep(600)"} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				killedHolder(t, p, sql)
			})
		}
	})
}

func killedHolder(t *testing.T, p program, sql string) {
	t.Helper()
	db := pgtest.New(t)
	db.Exec(t, effects)
	b := start(t, p, db.URL, nil)
	keys := storeOn(t, poolOf(t, db, b, 4))
	do := func() (idem.Result[string], error) {
		return idem.Do(t.Context(), keys, refund.Key("m1", "r1"), idem.NoFingerprint(), insertEffect("r1"))
	}
	holder := exec.Command(os.Args[0])
	holder.Env = append(os.Environ(), "BOUNCER_HOLDER="+b.url, "BOUNCER_HOLDER_SQL="+sql)
	stderr, err := holder.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Process.Kill() }) // should the test end before its time
	line, err := bufio.NewReader(stderr).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "holding" {
		t.Fatalf("the holder said %q, %v", line, err)
	}
	if _, err := do(); !errors.Is(err, idem.ErrInFlight) {
		t.Errorf("while it is held: got %v, want ErrInFlight", err)
	}
	if sql != "" {
		pgtest.Eventually(t, "the holder is in its statement", func() bool {
			return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = $1 AND state = 'active'`, sql) == 1
		})
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait() // "signal: killed"
	killed := time.Now()

	var res idem.Result[string]
	pgtest.Eventually(t, "the key is free", func() bool {
		res, err = do()
		return !errors.Is(err, idem.ErrInFlight)
	})
	t.Logf("PgBouncer %s: free %v after the kill", p.version, time.Since(killed).Round(time.Millisecond))
	if err != nil || res.Replayed {
		t.Errorf("got %+v, %v", res, err)
	}
	if n := db.Int(t, `SELECT count(*) FROM effect`); n != 1 {
		t.Errorf("%d effects, want the one of the second caller", n)
	}
}
