// Command refund runs a payment service that is asked for the same refunds again and again
// while it is being killed, and pays each of them once.
//
//	go run ./refund                    the storm, on a throw-away Postgres
//	go run ./refund --show-the-bug     three ways that pay twice, beside the right one
//	go run ./refund --serve            the service, for a person to try
package main

import (
	"context"
	"embed"
	"io"
	"io/fs"
	"os"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/refund/payment"
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
	demo.Options
	refunds              int
	bankURL, listen, way string
}

func main() { demo.Main("refund", run) }

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
	base, err := demo.Open(ctx, opt.DatabaseURL)
	if err != nil {
		return err
	}
	defer base.Close()
	if err := migrate(ctx, base.Pool); err != nil || command == "migrate" {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	g := &ground{pool: base.Pool, url: base.URL, program: program}
	switch {
	case opt.Serve:
		return leaveUp(ctx, opt, g, out)
	case opt.ShowTheBug:
		return showTheBug(ctx, opt, g, out)
	}
	return storming(ctx, opt, g, out)
}

func parse(args []string, out io.Writer) (options, error) {
	o := options{Options: demo.Options{Duplicates: 5, Workers: 32}}
	flags := demo.Flags("refund", usage, &o.Options, out)
	flags.IntVar(&o.refunds, "refunds", 0, "how many refunds (default 1000, or 200 to show the bug)")
	flags.StringVar(&o.listen, "listen", "127.0.0.1:0", "serve: the `address` to listen on")
	flags.StringVar(&o.bankURL, "bank-url", "", "serve, work: the `URL` of the bank")
	flags.StringVar(&o.way, "way", right, "serve, work: how refunds are made: right, unique, select or lock")
	if err := o.Parse(flags, args); err != nil {
		return o, err
	}
	if o.refunds == 0 {
		o.refunds = 1000
		if o.ShowTheBug {
			o.refunds = 200
		}
	}
	return o, demo.AtLeastOne(o.refunds)
}

//go:embed migrations/*.sql
var shopMigrations embed.FS

// migrate creates the library's tables, the shop's and the queue's.
func migrate(ctx context.Context, pool *pgxpool.Pool) error {
	files, err := fs.Sub(shopMigrations, "migrations")
	if err != nil {
		return err
	}
	return demo.Migrate(ctx, pool, "refund", files, payment.QueueSchema)
}
