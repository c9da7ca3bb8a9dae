// Package demo is what the examples have in common around what they show: their flags, a database, processes that can
// be killed, and the line that each ends with. It is not to be copied; what is, does not import it.
package demo

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"syscall"
)

// Options are the flags that every example has.
type Options struct {
	DatabaseURL         string
	Duplicates, Workers int
	Faults              bool
	Seed                uint64
	ShowTheBug, Serve   bool
	Verbose             bool
}

// Flags registers the options with what they are now as defaults, except for the database, which is DATABASE_URL, and the seed,
// which is drawn. The caller adds its own.
func Flags(name, usage string, o *Options, out io.Writer) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Usage = func() {
		fmt.Fprint(out, usage)
		flags.PrintDefaults()
	}
	flags.StringVar(&o.DatabaseURL, "database-url", os.Getenv("DATABASE_URL"), "the `URL` of a Postgres to use")
	flags.IntVar(&o.Duplicates, "duplicates", o.Duplicates, "how often everything is asked for")
	flags.IntVar(&o.Workers, "workers", o.Workers, "how many are at work at a time")
	flags.BoolVar(&o.Faults, "faults", true, "kill processes, deliver again, and let the foreign system misbehave")
	flags.Uint64Var(&o.Seed, "seed", rand.Uint64N(1_000_000), "what the random choices are made from")
	flags.BoolVar(&o.ShowTheBug, "show-the-bug", false, "run the original algorithm under the same storm, and count its double effects")
	flags.BoolVar(&o.Serve, "serve", false, "no storm: leave the service up, and print what to try")
	flags.BoolVar(&o.Verbose, "verbose", false, "let the parts log to standard error")
	return flags
}

// Parse reads a command line.
func (o *Options) Parse(flags *flag.FlagSet, args []string) error {
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("there is no argument %q; see --help", flags.Arg(0))
	}
	return AtLeastOne(o.Duplicates, o.Workers)
}

// AtLeastOne checks counts that were given as flags.
func AtLeastOne(counts ...int) error {
	for _, n := range counts {
		if n < 1 {
			return errors.New("duplicates, workers and all other counts must be at least 1; see --help")
		}
	}
	return nil
}

// Main runs an example: ctx ends with Ctrl-C, an error is exit status 1.
func Main(name string, run func(ctx context.Context, args []string, out io.Writer) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}
