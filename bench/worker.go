package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/dblock"
)

// workerCommand makes this program one of the processes of S3. It reads jobs and answers each with a result, as
// JSON, until its input ends: when it is told to stop, or when the program that started it dies.
const workerCommand = "worker"

const (
	urlVariable     = "PGONCE_BENCH_URL"
	witnessVariable = "PGONCE_BENCH_WITNESS"
)

type job struct {
	Contender  string
	Hold, Time time.Duration
	Profile    string // a file, or none
}

type result struct {
	Served int64
	Waits  histogram
	Took   time.Duration
	Err    string
}

// workers are processes of ours.
type workers []*worker

type worker struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	enc *json.Encoder
	dec *json.Decoder
}

func startWorkers(url, witness string, n int) (all workers, err error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	for range n {
		cmd := exec.Command(program, workerCommand)
		cmd.Env = append(os.Environ(), urlVariable+"="+url, witnessVariable+"="+witness)
		cmd.Stderr = os.Stderr
		in, err1 := cmd.StdinPipe()
		out, err2 := cmd.StdoutPipe()
		if err := errors.Join(err1, err2); err != nil {
			return all, err
		}
		if err := cmd.Start(); err != nil {
			return all, fmt.Errorf("start a process: %w", err)
		}
		all = append(all, &worker{cmd, in, json.NewEncoder(in), json.NewDecoder(out)})
	}
	return all, nil
}

// run has all of them do a job at the same time. In the sample, who is served is a process.
func (all workers) run(ctx context.Context, j job) (sample, error) {
	s := sample{served: make([]int64, len(all))}
	results, errs := make([]result, len(all)), make([]error, len(all))
	var wg sync.WaitGroup
	for i, w := range all {
		mine := j
		if i > 0 {
			mine.Profile = "" // one is enough
		}
		wg.Go(func() {
			if errs[i] = errors.Join(w.enc.Encode(mine), w.dec.Decode(&results[i])); errs[i] == nil && results[i].Err != "" {
				errs[i] = errors.New(results[i].Err)
			}
		})
	}
	wg.Wait()
	for i := range results {
		s.served[i] = results[i].Served
		s.waits.add(&results[i].Waits)
		s.took = max(s.took, results[i].Took)
	}
	return s, errors.Join(append(errs, context.Cause(ctx))...)
}

func (all workers) stop() error {
	var errs []error
	for _, w := range all {
		_ = w.in.Close()
	}
	for _, w := range all {
		errs = append(errs, w.cmd.Wait())
	}
	return errors.Join(errs...)
}

// work is what such a process does.
func work(ctx context.Context, in io.Reader, out io.Writer) error {
	w, err := openWitness(os.Getenv(witnessVariable))
	if err != nil {
		return err
	}
	ours, err := newLocks(ctx, os.Getenv(urlVariable), nil)
	if err != nil {
		return err
	}
	queue, err := newQueue(ctx, os.Getenv(urlVariable), workersOfEach)
	if err != nil {
		return err
	}
	enc, dec := json.NewEncoder(out), json.NewDecoder(in)
	for {
		var j job
		if err := dec.Decode(&j); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return errors.Join(err, ours.close(ctx), queue.close(ctx), w.close())
		}
		take := queue.grab
		if j.Contender == us {
			hot := ours.grab("hot")
			take = func(int) grab { return hot }
		}
		if err := enc.Encode(w.do(ctx, j, take)); err != nil {
			return err
		}
	}
}

func (w *witness) do(ctx context.Context, j job, take func(worker int) grab) *result {
	me := int64(os.Getpid()) * workersOfEach
	grabs := make([]grab, workersOfEach)
	for i := range grabs {
		grabs[i] = take(i)
	}
	stop, err := profile(j.Profile)
	if err != nil {
		return &result{Err: err.Error()}
	}
	defer stop()
	s, err := hammer(ctx, workersOfEach, j.Time, func(ctx context.Context, worker int) (time.Duration, error) {
		return w.turn(ctx, me+int64(worker), grabs[worker], j.Hold)
	})
	r := &result{Served: s.total(), Waits: s.waits, Took: s.took}
	r.Waits.pack()
	if err != nil {
		r.Err = err.Error()
	}
	return r
}

// queue is the server's own, with a connection for each goroutine.
type queue []*pgx.Conn

const queueKey = 7

func newQueue(ctx context.Context, url string, n int) (q queue, err error) {
	for range n {
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			return q, err
		}
		q = append(q, conn)
	}
	return q, nil
}

func (q queue) grab(worker int) grab {
	conn := q[worker]
	release := func(ctx context.Context) error {
		var held bool
		err := conn.QueryRow(ctx, `select pg_advisory_unlock($1)`, queueKey).Scan(&held)
		if err == nil && !held {
			err = errors.New("the lock was not held")
		}
		return err
	}
	return func(ctx context.Context) (dblock.Token, func(context.Context) error, error) {
		_, err := conn.Exec(ctx, `select pg_advisory_lock($1)`, queueKey)
		return 0, release, err
	}
}

func (q queue) close(ctx context.Context) error {
	var errs []error
	for _, conn := range q {
		errs = append(errs, conn.Close(ctx))
	}
	return errors.Join(errs...)
}
