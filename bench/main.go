// Command bench measures pgonce beside its peers, alternately in one run on servers of its own, and says for each of
// the project's targets whether it is reached.
//
//	go run . --quick            all rows, in a few minutes
//	go run . --only S1 --help   one row; the flags
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"
)

const usage = `bench: pgonce beside its peers

Every speed is a ratio of two things that are measured alternately in one run, on the same server, with
a warm-up before and the order turned round in every second round. The ratio is the median over the
rounds. Postgres runs with fsync and synchronous_commit on, on a disk; it and Redis are started by this
program on 127.0.0.1, and ended with it.

Each target ends in a line for scripts:

  S1 c=32 vs=redislock ratio=2.61 target=1.60 ok      at least the target, or "short"
  S2 c=32 vs=redislock p99=0.02 limit=0.10 ok         at most the limit, or "short"

Exit status 1 means that a measurement failed, or that two held one lock. A target that is short does not change it.

usage: bench [flags]

`

// options are the command line.
type options struct {
	quick, smoke, noRedis    bool
	only, dir, page, profile string
	rounds                   int
	time                     time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 1 {
		if process := commands()[args[0]]; process != nil {
			return process(ctx, os.Stdin, out)
		}
	}
	opt, err := parse(args, out)
	if err != nil {
		return err
	}
	g, err := open(ctx, opt)
	if err != nil {
		return err
	}
	for _, t := range targets() {
		if opt.only != "" && !slices.Contains(strings.Split(opt.only, ","), t.name) {
			continue
		}
		g.report.section(t)
		if err := t.measure(ctx, g); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", t.name, err), g.close())
		}
		g.report.flush(out)
	}
	g.report.verdicts(out)
	if opt.page != "" {
		err = g.report.writePage(opt.page)
	}
	return errors.Join(err, g.close())
}

// commands make this program one of the processes that it starts.
func commands() map[string]func(context.Context, io.Reader, io.Writer) error {
	return map[string]func(context.Context, io.Reader, io.Writer) error{workerCommand: work, waiterCommand: await}
}

func parse(args []string, out io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Usage = func() {
		fmt.Fprint(out, usage)
		flags.PrintDefaults()
	}
	flags.BoolVar(&o.quick, "quick", false, "5 rounds of half a second, not 7 of two seconds")
	flags.BoolVar(&o.smoke, "smoke", false, "see that it works: 2 rounds of 50 ms, without Redis, and no verdicts")
	flags.BoolVar(&o.noRedis, "no-redis", false, "leave out the rows that need Redis")
	flags.StringVar(&o.only, "only", "", "measure only these `targets`: S1,S3")
	flags.IntVar(&o.rounds, "rounds", 0, "rounds of each row (at least 5 for a result to publish)")
	flags.DurationVar(&o.time, "time", 0, "how long each measurement of a round takes")
	flags.StringVar(&o.dir, "dir", "", "where Postgres keeps its data: a `folder` on a disk with a short name (default /tmp)")
	flags.StringVar(&o.page, "markdown", "", "write the results to this `file`, too")
	flags.StringVar(&o.profile, "profile", "", "write to this `folder` what pgonce uses the CPU for, one file a row")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 || o.rounds < 0 || o.time < 0 {
		return o, errors.New("rounds and time must be positive, and there are no other arguments; see --help")
	}
	known := names()
	for name := range strings.SplitSeq(o.only, ",") {
		if name != "" && !slices.Contains(known, name) {
			return o, fmt.Errorf("no target %q; there are %s", name, strings.Join(known, ", "))
		}
	}
	o.complete()
	return o, nil
}

func (o *options) complete() {
	rounds, each := 7, 2*time.Second
	switch {
	case o.smoke:
		rounds, each, o.noRedis = 2, 50*time.Millisecond, true
	case o.quick:
		rounds, each = 5, 500*time.Millisecond
	}
	if o.rounds == 0 {
		o.rounds = rounds
	}
	if o.time == 0 {
		o.time = each
	}
}
