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
	"time"

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
	if role := os.Getenv("IDEM_STORM"); role != "" {
		stormClient(role)
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
	longest, err := time.ParseDuration(os.Getenv("IDEM_HOLDER_MAX"))
	if err != nil {
		panic(err)
	}
	op := idem.Op{Name: refund.Name, MaxHandler: longest}
	_, err = idem.Do(context.Background(), keys, op.Key("m1", "r1"), idem.NoFingerprint(), func(ctx context.Context, tx pgx.Tx) (string, error) {
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

// R3: a process that is killed while it holds a key takes its work with it and frees the key.
func TestKilledHolderFreesItsKey(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{"between statements": "", "in a statement": "SELECT pg_sleep(600)"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var longest time.Duration
			times := scale(2, 50)
			for range times {
				longest = max(longest, keyIsFree(t, sql, idem.Op{Name: refund.Name}, func(holder *exec.Cmd) {
					if err := holder.Process.Kill(); err != nil {
						t.Fatal(err)
					}
				}))
			}
			within(t, longest, time.Second, "R3 holders_killed=%d where=%q", times, name)
		})
	}
}

// R3: a process that does not answer any more, as one whose host has vanished, frees its key when the server has waited for MaxHandler and its grace, from the end of the statement
// that was running.
func TestVanishedHolderFreesItsKey(t *testing.T) {
	t.Parallel()
	op := idem.Op{Name: refund.Name, MaxHandler: time.Second}
	for name, sql := range map[string]string{"between statements": "", "in a statement": "SELECT pg_advisory_xact_lock(42)"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			free := keyIsFree(t, sql, op, func(holder *exec.Cmd) { freeze(t, holder) })
			within(t, free, op.MaxHandler+1500*time.Millisecond, "R3 hosts_vanished=1 where=%q MaxHandler=%v", name, op.MaxHandler)
		})
	}
}

// within prints a measurement. On a machine under load it may be missed, but not by far.
func within(t *testing.T, took, most time.Duration, format string, args ...any) {
	t.Helper()
	verdict := "ok"
	if took > most {
		verdict = "short"
	}
	t.Logf(format+" key_free_within=%v target=%v %s", append(args, took.Round(time.Millisecond), most, verdict)...)
	if took > most+30*time.Second {
		t.Errorf("the key was free after %v", took)
	}
}

// keyIsFree says how long after the end of a process that held a key another one had it.
func keyIsFree(t *testing.T, sql string, op idem.Op, end func(*exec.Cmd)) time.Duration {
	t.Helper()
	db := pgtest.New(t)
	db.Exec(t, effects)
	keys := newStore(t, db.Pool(t), nil)
	patient := idem.Op{Name: op.Name} // the same key, with time enough on a slow machine
	do := func() (idem.Result[string], error) {
		return idem.Do(t.Context(), keys, patient.Key("m1", "r1"), idem.NoFingerprint(), insertEffect)
	}

	statement, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = statement.Close(context.WithoutCancel(t.Context())) }()
	if _, err := statement.Exec(t.Context(), `SELECT pg_advisory_lock(42)`); err != nil { // the holder's statement may wait for it
		t.Fatal(err)
	}
	holder := exec.Command(os.Args[0])
	holder.Env = append(os.Environ(), "IDEM_HOLDER="+db.URL, "IDEM_HOLDER_SQL="+sql, "IDEM_HOLDER_MAX="+op.MaxHandler.String())
	stderr, err := holder.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = holder.Process.Kill()
		_ = holder.Wait() // "signal: killed"
	}()
	line, err := bufio.NewReader(stderr).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "holding" {
		t.Fatalf("the holder said %q, %v", line, err)
	}
	if op.MaxHandler == 0 { // it has time
		if _, err := do(); !errors.Is(err, idem.ErrInFlight) {
			t.Errorf("while it is held: got %v, want ErrInFlight", err)
		}
	}
	if sql != "" {
		pgtest.Eventually(t, "the holder is in its statement", func() bool {
			return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = $1 AND state = 'active'`, sql) == 1
		})
	}
	end(holder)
	if op.MaxHandler > 0 {
		_ = statement.Close(t.Context()) // which ends the holder's statement, too
	}
	ended := time.Now()

	var res idem.Result[string]
	pgtest.Eventually(t, "the key is free", func() bool {
		res, err = do()
		return !errors.Is(err, idem.ErrInFlight)
	})
	took := time.Since(ended)
	if err != nil || res.Replayed {
		t.Errorf("got %+v, %v", res, err)
	}
	if n := db.Int(t, `SELECT count(*) FROM effect`); n != 1 {
		t.Errorf("%d effects, want the one of the second caller", n)
	}
	return took
}
