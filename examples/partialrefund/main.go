// Command partialrefund gives back parts of what was paid for orders, under a storm of customers, staff and agreements that ask for more
// than there is, again and again.
//
//	go run ./partialrefund                    the storm, on a throw-away Postgres
//	go run ./partialrefund --show-the-bug     the original with its Redis lock, under the same storm
//	go run ./partialrefund --serve            the service, to try by hand
package main

import (
	"cmp"
	"context"
	"embed"
	"io"
	"io/fs"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/partialrefund/refunds"
)

const usage = `partialrefund: many partial refunds of one order, and never more than was paid

Of each order more is asked back than was paid: by customers, by staff, and by the seller's agreements, which do not say which refund
they are about. Everything is asked for several times at once, at three instances of the service, and agreements come by
message too. Meanwhile server processes are terminated, the queue delivers again what was delivered, and the refund service
misbehaves and refuses. Then every row is made 30 days older, and everything is asked for once more. At the end the refund service's
ledger, the orders and the answers are compared. Exit status 1 means that they do not agree.

usage: partialrefund [flags]

Without DATABASE_URL (or --database-url) a throw-away Postgres is started.

`

//go:embed migrations/*.sql
var files embed.FS

type options struct {
	demo.Options
	orders, refunds int
}

func main() { demo.Main("partialrefund", run) }

func run(ctx context.Context, args []string, out io.Writer) error {
	opt, err := parse(args, out)
	if err != nil {
		return err
	}
	g, err := demo.Open(ctx, opt.DatabaseURL)
	if err != nil {
		return err
	}
	defer g.Close()
	if err := migrate(ctx, g.Pool); err != nil {
		return err
	}
	switch {
	case opt.Serve:
		return serve(ctx, opt, g, out)
	case opt.ShowTheBug:
		return showTheBug(ctx, opt, g, out)
	}
	return storming(ctx, opt, g, out)
}

func parse(args []string, out io.Writer) (options, error) {
	o := options{Options: demo.Options{Duplicates: 5, Workers: 64}}
	flags := demo.Flags("partialrefund", usage, &o.Options, out)
	flags.IntVar(&o.orders, "orders", 0, "how many orders there are (default 60, or 8 to show the bug)")
	flags.IntVar(&o.refunds, "refunds", 0, "how many refunds of each are asked for (default 12, or 6 to show the bug)")
	if err := o.Parse(flags, args); err != nil {
		return o, err
	}
	orders, refunds := 60, 12
	if o.ShowTheBug {
		orders, refunds = 8, 6
	}
	o.orders, o.refunds = cmp.Or(o.orders, orders), cmp.Or(o.refunds, refunds)
	return o, demo.AtLeastOne(o.orders, o.refunds)
}

func migrate(ctx context.Context, pool *pgxpool.Pool) error {
	own, err := fs.Sub(files, "migrations")
	if err != nil {
		return err
	}
	return demo.Migrate(ctx, pool, "partialrefund", own, refunds.QueueSchema)
}
