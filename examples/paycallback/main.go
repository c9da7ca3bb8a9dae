// Command paycallback takes a payment provider's callbacks: one transition and three jobs for each order, without a lock.
//
//	go run ./paycallback                    the storm, on a throw-away Postgres
//	go run ./paycallback --show-the-bug     the original under the same storm
//	go run ./paycallback --serve            the service, for a person to try
package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/paycallback/callback"
	"github.com/pgonce/pgonce/examples/paycallback/original"
)

const usage = `paycallback: a payment provider's callbacks, each of which comes many times at once

First 10, 100 and 1,000 callbacks come at once, for an order each. Then many orders get theirs several times from concurrent callers, while
two services and two workers are killed with SIGKILL, the queue delivers again what was delivered, and the mailer, the push service and the
dispatcher are slow, silent or wrong. Some callbacks are about another amount, another payment, or an order that was closed. At the end what
the others were told is compared with the orders. Exit status 1 means that a customer was told twice, or not at all.

usage: paycallback [flags]              run the storm
       paycallback migrate [flags]      create the tables in DATABASE_URL
       paycallback serve|work [flags]   be a service or a worker; the storm starts them itself

Without DATABASE_URL (or --database-url) a throw-away Postgres is started.

`

// patience is how long the other systems are waited for.
const patience = 400 * time.Millisecond

// The ways to take callbacks.
const (
	right = "right"
	wrong = "original"
)

// options are the command line.
type options struct {
	demo.Options
	orders, crowd          int
	listen, othersURL, way string
}

func main() { demo.Main("paycallback", run) }

func run(ctx context.Context, args []string, out io.Writer) error {
	command := ""
	if len(args) > 0 && (args[0] == "serve" || args[0] == "work" || args[0] == "migrate") {
		command, args = args[0], args[1:]
	}
	opt := options{Options: demo.Options{Duplicates: 5, Workers: 32}}
	flags := demo.Flags("paycallback", usage, &opt.Options, out)
	flags.IntVar(&opt.orders, "orders", 400, "how many orders, beside those of the crowds")
	flags.IntVar(&opt.crowd, "crowd", 1000, "the largest crowd for one order; the others are a tenth and a hundredth of it")
	flags.StringVar(&opt.listen, "listen", "127.0.0.1:0", "serve: the `address` to listen on")
	flags.StringVar(&opt.othersURL, "others-url", "", "serve, work: the `URL` of the other systems")
	flags.StringVar(&opt.way, "way", right, "serve, work: right or original")
	if err := opt.Parse(flags, args); err != nil {
		return err
	}
	if err := demo.AtLeastOne(opt.orders, opt.crowd/100); err != nil {
		return fmt.Errorf("%w; the crowd at least 100", err)
	}
	switch command {
	case "serve":
		return serve(ctx, opt)
	case "work":
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

// migrate creates the library's tables, those of the orders with their machine, and the queue's.
func migrate(ctx context.Context, pool *pgxpool.Pool) error {
	files, err := fs.Sub(ownMigrations, "migrations")
	if err != nil {
		return err
	}
	return demo.Migrate(ctx, pool, "paycallback", files, callback.QueueSchema)
}

// serve is a service. It runs until standard input closes, so that it cannot outlive whoever started it, and prints its address as its first
// line.
func serve(ctx context.Context, opt options) error {
	pool, err := connect(ctx, opt)
	if err != nil {
		return err
	}
	defer pool.Close()
	log := demo.Logger(opt.Verbose)
	mux := http.NewServeMux()
	if opt.way == right {
		service, err := callback.NewService(ctx, pool, log)
		if err != nil {
			return err
		}
		mux.Handle("POST /callbacks", service)
	} else {
		service := original.NewService(pool, callback.NewOthers(opt.othersURL, patience))
		mux.HandleFunc("POST /callbacks", func(w http.ResponseWriter, r *http.Request) { callback.Answer(w, r, service.Paid, log) })
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", opt.listen)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		demo.UntilStopped()
		_ = srv.Close()
	}()
	demo.Ready("http://" + l.Addr().String())
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// work is a worker: it does the jobs until standard input closes.
func work(ctx context.Context, opt options) error {
	pool, err := connect(ctx, opt)
	if err != nil {
		return err
	}
	defer pool.Close()
	queue, err := callback.NewQueue(pool, callback.NewOthers(opt.othersURL, patience), demo.Logger(opt.Verbose))
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

func connect(ctx context.Context, opt options) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(opt.DatabaseURL)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = 15
	return pgxpool.NewWithConfig(ctx, cfg)
}
