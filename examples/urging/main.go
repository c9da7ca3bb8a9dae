// Command urging is a service by which users urge tickets, under a storm of users who all urge at once and again.
//
//	go run ./urging                    the storm, on a throw-away Postgres
//	go run ./urging --show-the-bug     the original with its Redis lock, under the same storm
//	go run ./urging --serve            the service, to try by hand
package main

import (
	"cmp"
	"context"
	"embed"
	"io"
	"io/fs"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/urging/urges"
)

const usage = `urging: tickets are urged, once in fifteen minutes by each user

The first urge of a ticket opens a window of fifteen minutes. Who urges within it joins the urge, once; after that he is told
"already urged, next at 14:32". All users urge all tickets at once, several times each, at three instances of the service,
while server processes are terminated, the queue delivers again what was delivered, and the push service misbehaves. Then every
row is made fifteen minutes older, and all urge again, twice each. At the end there must be one urge for each ticket and window with
one sub-record for each user, and one push. Exit status 1 means that there is not.

usage: urging [flags]

Without DATABASE_URL (or --database-url) a throw-away Postgres is started.

`

//go:embed migrations/*.sql
var files embed.FS

type options struct {
	demo.Options
	users, tickets, windows int
}

func main() { demo.Main("urging", run) }

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
	flags := demo.Flags("urging", usage, &o.Options, out)
	flags.IntVar(&o.users, "users", 0, "how many users urge each ticket (default 200, or 24 to show the bug)")
	flags.IntVar(&o.tickets, "tickets", 0, "how many tickets there are (default 20, or 4 to show the bug)")
	flags.IntVar(&o.windows, "windows", 0, "how many windows of fifteen minutes go by (default 2, or 6 to show the bug)")
	if err := o.Parse(flags, args); err != nil {
		return o, err
	}
	users, tickets, windows := 200, 20, 2
	if o.ShowTheBug {
		users, tickets, windows = 24, 4, 6
	}
	o.users, o.tickets, o.windows = cmp.Or(o.users, users), cmp.Or(o.tickets, tickets), cmp.Or(o.windows, windows)
	return o, demo.AtLeastOne(o.users, o.tickets, o.windows)
}

func migrate(ctx context.Context, pool *pgxpool.Pool) error {
	own, err := fs.Sub(files, "migrations")
	if err != nil {
		return err
	}
	return demo.Migrate(ctx, pool, "urging", own, urges.QueueSchema)
}
