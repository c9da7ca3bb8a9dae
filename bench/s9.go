package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/idem"
)

// waiterElsewhere is S9.
func waiterElsewhere() target {
	return target{"S9", "a caller in another process waits for a key, and gets the answer of whoever executes it", measureWaiter}
}

// waiterCommand makes this program the process that waits. It reads ids as JSON, asks for each of them, and
// says when it had the answer.
const waiterCommand = "waiter"

// answered is when the answer of a key was there. Both processes are on one machine, and read one clock.
type answered struct {
	At  time.Time
	Err string
}

func measureWaiter(ctx context.Context, g *ground) error {
	count := 1000
	switch {
	case g.opt.smoke:
		count = 5
	case g.opt.quick:
		count = 300
	}
	k, err := newKeys(ctx, g.postgres.url, 4, nil)
	if err != nil {
		return err
	}
	defer k.pool.Close()
	w, err := startWaiter(g.postgres.url)
	if err != nil {
		return err
	}
	return errors.Join(g.waiter(ctx, k, w, count), w.stop())
}

func (g *ground) waiter(ctx context.Context, k *keys, w *waiter, count int) error {
	var ids requests
	var fromCommit, fromHandler histogram
	for i := range count + 2 { // the first ones dial and prepare
		handled, committed, answered, err := k.handOver(ctx, w, "waiter-"+ids.next())
		if err != nil {
			return err
		}
		if i >= 2 {
			fromCommit.record(answered.Sub(committed))
			fromHandler.record(answered.Sub(handled))
		}
	}
	g.report.printf("| %d keys | p50 | p99 |\n|---|---:|---:|\n", count)
	for _, row := range []struct {
		name string
		h    *histogram
	}{{"from the winner's commit, as the winner hears of it, to the waiter's answer", &fromCommit}, {"from the end of the winner's handler: its commit included", &fromHandler}} {
		g.report.printf("| %s | %v | %v |\n", row.name, row.h.quantile(0.5).Round(time.Microsecond), row.h.quantile(0.99).Round(time.Microsecond))
	}
	g.report.printf("\n")
	g.report.atMost("processes=2", "p99-ms", float64(fromCommit.quantile(0.99))/float64(time.Millisecond), 2)
	return nil
}

// handOver executes a key for which the other process waits on the server.
func (k *keys) handOver(ctx context.Context, w *waiter, id string) (handled, committed, answer time.Time, err error) {
	res, err := idem.Do(ctx, k.Store, refunds.Key("merchant-1", id), idem.NoFingerprint(), func(ctx context.Context, tx pgx.Tx) (receipt, error) {
		var r receipt
		if err := errors.Join(w.enc.Encode(id), k.awaitWaiter(ctx), tx.QueryRow(ctx, sqlRefund, id, 100).Scan(&r.RefundID)); err != nil {
			return r, err
		}
		handled = time.Now()
		return r, nil
	})
	committed = time.Now()
	var other answered
	if err = errors.Join(err, w.dec.Decode(&other)); err == nil && other.Err != "" {
		err = errors.New(other.Err)
	}
	if err == nil && res.Replayed {
		err = fmt.Errorf("%s was not new", id)
	}
	return handled, committed, other.At, err
}

// awaitWaiter returns when somebody waits for a key's lock.
func (k *keys) awaitWaiter(ctx context.Context) error {
	for {
		var waits bool
		if err := k.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)`).Scan(&waits); err != nil || waits {
			return err
		}
		<-time.After(time.Millisecond)
	}
}

// waiter is the other process.
type waiter struct {
	cmd *exec.Cmd
	in  io.Closer
	enc *json.Encoder
	dec *json.Decoder
}

func startWaiter(url string) (*waiter, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, waiterCommand)
	cmd.Env = append(os.Environ(), urlVariable+"="+url)
	cmd.Stderr = os.Stderr
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a process: %w", err)
	}
	return &waiter{cmd, in, json.NewEncoder(in), json.NewDecoder(out)}, nil
}

func (w *waiter) stop() error {
	_ = w.in.Close()
	return w.cmd.Wait()
}

// await is what that process does, until its input ends.
func await(ctx context.Context, in io.Reader, out io.Writer) error {
	k, err := newKeys(ctx, os.Getenv(urlVariable), 4, nil)
	if err != nil {
		return err
	}
	defer k.pool.Close()
	enc, dec := json.NewEncoder(out), json.NewDecoder(in)
	for {
		var id string
		if err := dec.Decode(&id); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
		var a answered
		res, err := idem.Do(ctx, k.Store, refunds.Key("merchant-1", id), idem.NoFingerprint(), func(context.Context, pgx.Tx) (receipt, error) {
			return receipt{}, fmt.Errorf("%s was executed by who should wait", id)
		})
		a.At = time.Now()
		if err == nil && !res.Replayed {
			err = fmt.Errorf("%s is no replay", id)
		}
		if err != nil {
			a.Err = err.Error()
		}
		if err := enc.Encode(a); err != nil {
			return err
		}
	}
}
