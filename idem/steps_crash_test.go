//go:build unix

package idem_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

var remit = idem.Op{Name: "remittance.send", RetryAfter: time.Millisecond}

// A bank in the database, but outside of every transaction of ours: what it has paid stays paid.
const bankTable = `CREATE TABLE bank (reference text NOT NULL)`

func pay(pool *pgxpool.Pool) func(context.Context, string) (string, error) {
	return func(ctx context.Context, reference string) (string, error) {
		_, err := pool.Exec(ctx, `INSERT INTO bank VALUES ($1)`, reference)
		return reference, err
	}
}

func enquire(pool *pgxpool.Pool) func(context.Context, string) (string, idem.Outcome, error) {
	return func(ctx context.Context, reference string) (string, idem.Outcome, error) {
		var n int
		err := pool.QueryRow(ctx, `SELECT count(*) FROM bank WHERE reference = $1`, reference).Scan(&n)
		if n == 0 {
			return "", idem.NeverHappened, err
		}
		return reference, idem.Happened, err
	}
}

// remitting is the usual function: it writes, pays at most once, writes. at is told where it is.
func remitting(bank *pgxpool.Pool, at func(string)) func(context.Context, *idem.Run[pgx.Tx], string) (string, error) {
	return func(ctx context.Context, run *idem.Run[pgx.Tx], in string) (string, error) {
		at("before the first step")
		_, err := idem.StepTx(ctx, run, "decide", func(ctx context.Context, tx pgx.Tx) (string, error) {
			at("in the first transaction")
			return insertEffect(ctx, tx)
		})
		if err != nil {
			return "", err
		}
		at("before the payment")
		serial, err := idem.Step(ctx, run, "pay", func(ctx context.Context, reference string) (string, error) {
			at("before it has left")
			serial, err := pay(bank)(ctx, reference)
			at("after it has left")
			return serial, err
		}, idem.AtMostOnce(enquire(bank)))
		if err != nil {
			return "", err
		}
		at("after the payment")
		_, err = idem.StepTx(ctx, run, "book", func(ctx context.Context, tx pgx.Tx) (string, error) {
			s, err := insertEffect(ctx, tx)
			at("in the last transaction")
			return s, err
		})
		at("after the last step")
		return in + serial, err
	}
}

var stepPoints = []string{
	"before the first step", "in the first transaction", "before the payment", "before it has left", "after it has left",
	"after the payment", "in the last transaction", "after the last step",
}

// playSteps is a process that executes a key, says so when it has come to a point, and waits there for a line.
func playSteps(url, point string) {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		panic(err)
	}
	keys, err := idem.New(pgxdriver.New(pool), &idem.Config{Lease: 2 * time.Second})
	if err != nil {
		panic(err)
	}
	in := bufio.NewReader(os.Stdin)
	_, err = idem.RunSteps(ctx, keys, remit.Key("m1", "r1"), idem.NoFingerprint(), "in ", func(ctx context.Context, run *idem.Run[pgx.Tx], in2 string) (string, error) {
		return remitting(pool, func(at string) {
			if at == point {
				fmt.Println("there")
				_, _ = in.ReadString('\n')
				if point == "before the payment" || point == "after the payment" {
					<-ctx.Done()
					fmt.Println(errors.Is(context.Cause(ctx), idem.ErrLeaseLost))
				}
			}
		})(ctx, run, in2)
	})
	fmt.Println(errors.Is(err, idem.ErrLeaseLost), err)
	os.Exit(0)
}

// stepsChild starts such a process, and waits until it is there.
func stepsChild(t *testing.T, url, point string) (child *exec.Cmd, said *bufio.Reader, goOn func()) {
	t.Helper()
	child = exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "IDEM_STEPS="+url, "IDEM_STEPS_POINT="+point)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	})
	said = bufio.NewReader(out)
	if line, err := said.ReadString('\n'); err != nil || line != "there\n" {
		t.Fatalf("the child said %q, %v", line, err)
	}
	return child, said, func() { _, _ = in.Write([]byte("\n")) }
}

// finished runs a completer until the key is finished, and checks what there is: one payment, one write of each
// transaction, one record.
func finished(t *testing.T, db *pgtest.DB, pool *pgxpool.Pool) {
	t.Helper()
	keys := newStore(t, pool, nil)
	idem.LookEvery(keys, 20*time.Millisecond)
	if err := idem.Handle(keys, remit, remitting(pool, func(string) {})); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- keys.RunCompleter(ctx) }()
	pgtest.Eventually(t, "the key is finished", func() bool { return db.Int(t, `SELECT count(*) FROM pgonce.idem_record`) == 1 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for what, want := range map[string]int64{"bank": 1, "effect": 2, "pgonce.idem_lease": 0, "pgonce.idem_step": 0} {
		if n := db.Int(t, `SELECT count(*) FROM `+what); n != want {
			t.Errorf("%d rows in %s, want %d", n, what, want)
		}
	}
}

// A process is killed at any point of a key. A completer elsewhere finishes it: one payment, each write once.
func TestKilledOwnerOfSteps(t *testing.T) {
	t.Parallel()
	for _, point := range stepPoints {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			db.Exec(t, effects+";"+bankTable)
			child, _, _ := stepsChild(t, db.URL, point)
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = child.Wait()
			finished(t, db, db.Pool(t))
		})
	}
}

// freeze stops a process, and waits until all of its threads have been told: the signal goes to one of them, and on a slow machine
// the others may still run for a while.
func freeze(t *testing.T, child *exec.Cmd) {
	t.Helper()
	if err := child.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(child.Process.Pid, &status, syscall.WUNTRACED, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || !status.Stopped() {
			t.Fatalf("it did not stop: %v, %v", status, err)
		}
		return
	}
}

// A process is frozen for longer than its lease, and wakes up when another one has finished its key. It is told so, and
// nothing that it does lands.
func TestFrozenOwnerOfSteps(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"before the payment", "after the payment", "in the last transaction", "after it has left"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			db.Exec(t, effects+";"+bankTable)
			child, said, goOn := stepsChild(t, db.URL, point)
			freeze(t, child)
			goOn() // it will read that when it wakes up
			if point == "in the last transaction" {
				// The frozen transaction has the row; it is over when the server ends it. That takes MaxHandler, so it is helped.
				pgtest.Eventually(t, "the lease is over", func() bool {
					return db.Int(t, `SELECT count(*) FROM pgonce.idem_worker WHERE alive_until < clock_timestamp()`) == 1
				})
				db.Exec(t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'`)
			}
			finished(t, db, db.Pool(t))
			if err := child.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			if point == "before the payment" || point == "after the payment" {
				if line, err := said.ReadString('\n'); err != nil || line != "true\n" {
					t.Errorf("the cause of its ctx was ErrLeaseLost: %q, %v", line, err)
				}
			}
			if line, err := said.ReadString('\n'); err != nil || !strings.HasPrefix(line, "true ") {
				t.Errorf("RunSteps returned ErrLeaseLost: %q, %v", line, err)
			}
			_ = child.Wait()
			for what, want := range map[string]int64{"bank": 1, "effect": 2, "pgonce.idem_record": 1, "pgonce.idem_lease": 0, "pgonce.idem_step": 0} {
				if n := db.Int(t, `SELECT count(*) FROM `+what); n != want {
					t.Errorf("%d rows in %s after it woke up, want %d", n, what, want)
				}
			}
		})
	}
}
