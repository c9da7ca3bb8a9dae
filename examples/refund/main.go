// Command refund runs a payment service that is asked for the same refunds again and again
// while it is being killed, and pays each of them once.
//
//	go run ./refund                    the storm, on a throw-away Postgres
//	go run ./refund --show-the-bug     three ways that pay twice, beside the right one
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/internal/localpg"
)

const usage = `refund: a payment service under a storm of repeated requests

Each refund is asked for several times, over HTTP and by messages, from many workers at
once. Meanwhile three services and two workers are killed with SIGKILL, their server processes are
terminated, the queue delivers again what was delivered, and the bank is slow, silent or wrong. Then
every row is made older by 30 minutes, and by 30 days, and everything is asked for once more
each time. At the end the bank's ledger is compared with the database and with what the
clients were told. Exit status 1 means that money left twice, or not at all.

usage: refund [flags]              run the storm
       refund migrate [flags]      create the tables in DATABASE_URL
       refund serve|work [flags]   be a service or a worker; the storm starts them itself

Without DATABASE_URL (or --database-url) a throw-away Postgres is started.

`

// options are the command line.
type options struct {
	databaseURL, bankURL, listen, way string
	refunds, duplicates, workers      int
	faults, showTheBug, verbose       bool
	seed                              uint64
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "refund:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	command := ""
	if len(args) > 0 && (args[0] == "serve" || args[0] == "work" || args[0] == "migrate") {
		command, args = args[0], args[1:]
	}
	opt, err := parse(args, out)
	if err != nil {
		return err
	}
	switch command {
	case "serve":
		return serve(ctx, opt)
	case "work":
		return work(ctx, opt)
	}
	if opt.databaseURL == "" {
		server, err := localpg.Start(&localpg.Config{Durable: true})
		if err != nil {
			return fmt.Errorf("%w; or set DATABASE_URL", err)
		}
		defer func() { _ = server.Stop() }()
		opt.databaseURL = server.URL("postgres")
	}
	pool, err := pgxpool.New(ctx, opt.databaseURL)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := migrate(ctx, pool); err != nil || command == "migrate" {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	g := &ground{pool: pool, url: opt.databaseURL, program: program}
	if opt.showTheBug {
		return showTheBug(ctx, opt, g, out)
	}
	return storming(ctx, opt, g, out)
}

func parse(args []string, out io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("refund", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Usage = func() {
		fmt.Fprint(out, usage)
		flags.PrintDefaults()
	}
	flags.StringVar(&o.databaseURL, "database-url", os.Getenv("DATABASE_URL"), "the `URL` of a Postgres to use")
	flags.IntVar(&o.refunds, "refunds", 0, "how many refunds (default 1000, or 200 to show the bug)")
	flags.IntVar(&o.duplicates, "duplicates", 5, "how often each is asked for before the rows are aged")
	flags.IntVar(&o.workers, "workers", 32, "how many ask at a time")
	flags.BoolVar(&o.faults, "faults", true, "kill processes, terminate backends, deliver again, and let the bank misbehave")
	flags.Uint64Var(&o.seed, "seed", rand.Uint64N(1_000_000), "what the random choices are made from")
	flags.BoolVar(&o.showTheBug, "show-the-bug", false, "run three ways that pay twice beside the right one")
	flags.BoolVar(&o.verbose, "verbose", false, "let services and workers log to standard error")
	flags.StringVar(&o.listen, "listen", "127.0.0.1:0", "serve: the `address` to listen on")
	flags.StringVar(&o.bankURL, "bank-url", "", "serve, work: the `URL` of the bank")
	flags.StringVar(&o.way, "way", right, "serve, work: how refunds are made: right, unique, select or lock")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if o.refunds == 0 {
		o.refunds = 1000
		if o.showTheBug {
			o.refunds = 200
		}
	}
	if o.refunds < 1 || o.duplicates < 1 || o.workers < 1 || flags.NArg() > 0 {
		return o, errors.New("refunds, duplicates and workers must be at least 1, and there are no other arguments; see --help")
	}
	return o, nil
}
