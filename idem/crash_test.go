//go:build unix

package idem_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// TestMain lets the test binary play a process that holds a key and is killed.
func TestMain(m *testing.M) {
	if url := os.Getenv("IDEM_HOLDER"); url != "" {
		hold(url, os.Getenv("IDEM_HOLDER_SQL"))
	}
	if url := os.Getenv("IDEM_STEPS"); url != "" {
		playSteps(url, os.Getenv("IDEM_STEPS_POINT"))
	}
	os.Exit(m.Run())
}

// hold takes the key, writes its effect, says so, and never comes to an end: in Go, or in the
// statement that it is given.
func hold(url, sql string) {
	pool, err := pgxpool.New(context.Background(), url)
	if err != nil {
		panic(err)
	}
	keys, err := idem.New(pgxdriver.New(pool), nil)
	if err != nil {
		panic(err)
	}
	_, err = idem.Do(context.Background(), keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx pgx.Tx) (string, error) {
		receipt, err := insertEffect(ctx, tx)
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

// A process that is killed while it holds a key takes its work with it and frees the key.
func TestKilledHolderFreesItsKey(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{"between statements": "", "in a statement": "SELECT pg_sleep(600)"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			killedHolder(t, sql)
		})
	}
}

func killedHolder(t *testing.T, sql string) {
	t.Helper()
	db := pgtest.New(t)
	db.Exec(t, effects)
	keys := newStore(t, db.Pool(t), nil)
	do := func() (idem.Result[string], error) {
		return idem.Do(t.Context(), keys, refund.Key("m1", "r1"), idem.NoFingerprint(), insertEffect)
	}

	holder := exec.Command(os.Args[0])
	holder.Env = append(os.Environ(), "IDEM_HOLDER="+db.URL, "IDEM_HOLDER_SQL="+sql)
	stderr, err := holder.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
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

	var res idem.Result[string]
	pgtest.Eventually(t, "the key is free", func() bool {
		res, err = do()
		return !errors.Is(err, idem.ErrInFlight)
	})
	if err != nil || res.Replayed {
		t.Errorf("got %+v, %v", res, err)
	}
	if n := db.Int(t, `SELECT count(*) FROM effect`); n != 1 {
		t.Errorf("%d effects, want the one of the second caller", n)
	}
}
