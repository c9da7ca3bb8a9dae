// Command wechatpay takes the callbacks of a payment platform and puts the money into wallets, under a storm of callbacks that come
// again and again.
//
//	go run ./wechatpay                    the storm, on a throw-away Postgres
//	go run ./wechatpay --show-the-bug     the original with its Redis lock, under the same storm
//	go run ./wechatpay --serve            the service, to try by hand
package main

import (
	"cmp"
	"context"
	"embed"
	"io"
	"io/fs"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/wechatpay/wallet"
)

const usage = `wechatpay: callbacks of a payment platform put money into wallets, once

Each order is called back several times at once, at three instances of the service. An instance locks the order's number, asks the
platform whether it is true, which may take longer than expected, and commits the state "enqueued" with a message; a
consumer puts the money into the wallet. Meanwhile server processes are terminated, those that hold locks too, the
queue delivers again what was delivered, and the platform misbehaves. Then every row is made 30 minutes older, every callback comes once
more, and every message too. At the end each wallet must have its money once. Exit status 1 means that it has not.

usage: wechatpay [flags]

Without DATABASE_URL (or --database-url) a throw-away Postgres is started.

`

//go:embed migrations/*.sql
var files embed.FS

type options struct {
	demo.Options
	orders int
}

func main() { demo.Main("wechatpay", run) }

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
	flags := demo.Flags("wechatpay", usage, &o.Options, out)
	flags.IntVar(&o.orders, "orders", 0, "how many orders are called back (default 1000, or 200 to show the bug)")
	if err := o.Parse(flags, args); err != nil {
		return o, err
	}
	orders := 1000
	if o.ShowTheBug {
		orders = 200
	}
	o.orders = cmp.Or(o.orders, orders)
	return o, demo.AtLeastOne(o.orders)
}

func migrate(ctx context.Context, pool *pgxpool.Pool) error {
	own, err := fs.Sub(files, "migrations")
	if err != nil {
		return err
	}
	return demo.Migrate(ctx, pool, "wechatpay", own, wallet.QueueSchema)
}
