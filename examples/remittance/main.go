// Command remittance pays money out at a bank, for messages that come several times, with workers that are killed in mid-call.
//
//	go run ./remittance                    the storm, on a throw-away Postgres
//	go run ./remittance --show-the-bug     the original consumer under the same storm
//	go run ./remittance --serve            workers and a bank, for a person to try
package main

import (
	"context"
	"embed"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/remittance/original"
	"github.com/pgonce/pgonce/examples/remittance/remit"
)

const usage = `remittance: messages that each pay money out once, at a bank that pays as often as it is called

Each message is delivered several times to worker processes, which are killed with SIGKILL while the bank is
at it. The bank takes longer than every lease, pays and is silent, pays and says 500, refuses, returns payments later, and cannot always
say what it has done. An enquiry finds that out; what it cannot find out is listed for a person, whom the storm plays. At the end the
bank's ledger is compared with the database. Exit status 1 means that money left twice, or that a remittance is not where it should be.

usage: remittance [flags]            run the storm
       remittance migrate [flags]    create the tables in DATABASE_URL
       remittance work [flags]       be a worker; the storm starts them itself

Without DATABASE_URL (or --database-url) a throw-away Postgres is started.

`

// How patient everybody is in the storm: the bank's slow calls take longer than a lease, and shorter than its clients wait.
const (
	lease    = time.Second
	slowness = 1500 * time.Millisecond
	patience = 2500 * time.Millisecond
)

var hasty = remit.Config{
	Patience: patience, Lease: lease, ComeBack: 300 * time.Millisecond, Attempts: 3, Retry: 500 * time.Millisecond, Returns: 500 * time.Millisecond,
	Overdue: 5 * time.Second,
}

// The ways to consume messages.
const (
	right = "right"
	wrong = "original"
)

// options are the command line.
type options struct {
	demo.Options
	messages     int
	bankURL, way string
}

func main() { demo.Main("remittance", run) }

func run(ctx context.Context, args []string, out io.Writer) error {
	command := ""
	if len(args) > 0 && (args[0] == "work" || args[0] == "migrate") {
		command, args = args[0], args[1:]
	}
	opt := options{Options: demo.Options{Duplicates: 3, Workers: 8}}
	flags := demo.Flags("remittance", usage, &opt.Options, out)
	flags.IntVar(&opt.messages, "messages", 1000, "how many remittances")
	flags.StringVar(&opt.bankURL, "bank-url", "", "work: the `URL` of the bank")
	flags.StringVar(&opt.way, "way", right, "work: right or original")
	if err := opt.Parse(flags, args); err != nil {
		return err
	}
	if err := demo.AtLeastOne(opt.messages); err != nil {
		return err
	}
	if command == "work" {
		return work(ctx, opt)
	}
	g, err := demo.Open(ctx, opt.DatabaseURL)
	if err != nil {
		return err
	}
	defer g.Close()
	if err := migrate(ctx, g.Pool); err != nil || command == "migrate" {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	base := &ground{pool: g.Pool, url: g.URL, program: program}
	switch {
	case opt.Serve:
		return leaveUp(ctx, opt, base, out)
	case opt.ShowTheBug:
		return showTheBug(ctx, opt, base, out)
	}
	return storming(ctx, opt, base, out)
}

//go:embed migrations/*.sql
var ownMigrations embed.FS

// migrate creates the library's tables, those of the remittances with their machine, and the queue's.
func migrate(ctx context.Context, pool *pgxpool.Pool) error {
	files, err := fs.Sub(ownMigrations, "migrations")
	if err != nil {
		return err
	}
	return demo.Migrate(ctx, pool, "remittance", files, remit.QueueSchema)
}

// work is a worker. It runs until standard input closes, so that it cannot outlive whoever started it.
func work(ctx context.Context, opt options) error {
	cfg, err := pgxpool.ParseConfig(opt.DatabaseURL)
	if err != nil {
		return err
	}
	cfg.MaxConns = 10
	cfg.ConnConfig.RuntimeParams["application_name"] = applicationName
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer pool.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if opt.way == wrong {
		queue, err := original.NewQueue(pool, opt.bankURL, patience, demo.Logger(opt.Verbose))
		if err != nil {
			return err
		}
		if err := queue.Start(ctx); err != nil {
			return err
		}
		demo.Ready("working")
		demo.UntilStopped()
		return queue.StopAndCancel(context.WithoutCancel(ctx))
	}
	service, err := remit.NewService(ctx, pool, opt.bankURL, hasty)
	if err != nil {
		return err
	}
	go func() {
		demo.UntilStopped()
		stop()
	}()
	demo.Ready("working")
	return service.Work(ctx, demo.Logger(opt.Verbose))
}
