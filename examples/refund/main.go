// Command refund is a payment service that is asked for the same refunds again and again
// while it is being killed, and pays each of them once.
//
//	go run ./refund                the storm, on a throw-away Postgres
//	go run ./refund serve          the service alone
package main

import (
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/signal"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgonce/pgonce/internal/localpg"
	"github.com/pgonce/pgonce/migrations"
	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var shopMigrations embed.FS

const usage = `refund: a payment service under a storm of repeated requests

A storm client asks for each refund several times from many workers, and repeats every
request until it is answered. Meanwhile the service is killed with SIGKILL and
restarted twice, and its server processes are terminated at random. At the end the books
are compared with what the clients were told. Exit status 1 means that money left
twice, or that an acknowledged refund is missing.

usage: refund [flags]          run the storm
       refund serve [flags]    run the service; stop it with Ctrl-D

Without DATABASE_URL (or --database-url) a throw-away Postgres is started.

`

// options are the command line.
type options struct {
	databaseURL, listen          string
	refunds, duplicates, workers int
	faults                       bool
	seed                         uint64
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
	serving := len(args) > 0 && args[0] == "serve"
	if serving {
		args = args[1:]
	}
	opt, err := parse(args, out)
	if err != nil {
		return err
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
	if err := migrate(ctx, pool); err != nil {
		return err
	}
	if serving {
		return serve(ctx, opt.databaseURL, opt.listen)
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	service := &process{
		command: []string{program, "serve"},
		env:     []string{"DATABASE_URL=" + opt.databaseURL},
	}
	return storming(ctx, opt, pool, service, out)
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
	flags.StringVar(&o.listen, "listen", "127.0.0.1:0", "the `address` the service listens on")
	flags.IntVar(&o.refunds, "refunds", 1000, "how many refunds")
	flags.IntVar(&o.duplicates, "duplicates", 5, "how often each is asked for")
	flags.IntVar(&o.workers, "workers", 32, "how many ask at a time")
	flags.BoolVar(&o.faults, "faults", true, "kill the service and its server processes")
	flags.Uint64Var(&o.seed, "seed", rand.Uint64N(1_000_000), "what the random choices are made from")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if o.refunds < 1 || o.duplicates < 1 || o.workers < 1 || flags.NArg() > 0 {
		return o, errors.New("refunds, duplicates and workers must be at least 1, and there are no other arguments; see --help")
	}
	return o, nil
}

// migrate creates the library's tables and the shop's, each with a goose timeline of its own.
func migrate(ctx context.Context, pool *pgxpool.Pool) error {
	if _, err := migrations.UpPool(ctx, pool, nil); err != nil {
		return err
	}
	db := stdlib.OpenDBFromPool(pool)
	defer func() { _ = db.Close() }()
	files, err := fs.Sub(shopMigrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithTableName("refund_goose"), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return err
	}
	_, err = p.Up(ctx)
	return err
}

// storming runs the storm against a service and prints the report.
func storming(ctx context.Context, opt options, pool *pgxpool.Pool, service *process, out io.Writer) error {
	s := &storm{
		refunds: opt.refunds, duplicates: opt.duplicates, workers: opt.workers, seed: opt.seed,
		merchant: fmt.Sprintf("merchant-%d-%d", opt.seed, time.Now().UnixMilli()), service: service,
	}
	fmt.Fprintf(out, "%d requests for %d refunds, seed %d\n", s.total(), s.refunds, s.seed)
	if err := stock(ctx, pool, s); err != nil {
		return err
	}
	if err := service.start(ctx); err != nil {
		return err
	}
	defer service.stop()

	f := &faults{
		service: service, pool: pool, rng: rand.New(rand.NewPCG(opt.seed, 2)),
		say: func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) },
	}
	start := time.Now()
	broken := make(chan error, 1)
	sctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	go func() {
		if !opt.faults {
			broken <- nil
			return
		}
		err := f.run(sctx, s.answered.Load, s.total())
		if err != nil {
			cancel() // the service is gone, nobody will be answered
		}
		broken <- err
	}()
	answers := s.run(sctx)
	took := time.Since(start)
	if err := <-broken; err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	b, err := readBooks(ctx, pool, s.merchant)
	if err != nil {
		return err
	}
	r := s.judge(answers, b)
	r.print(out, s, f, took)
	if r.verdict() != "ok" {
		return errors.New("the books do not agree with what was asked for")
	}
	return nil
}

// stock creates what the merchant has sold, so that there is something to give back.
func stock(ctx context.Context, pool *pgxpool.Pool, s *storm) error {
	for n := range purchases {
		_, err := pool.Exec(ctx, `INSERT INTO shop.purchase (merchant, id, paid_cents) VALUES ($1, $2, $3)`,
			s.merchant, s.purchase(n), 2*s.expectedCents())
		if err != nil {
			return err
		}
	}
	return nil
}
