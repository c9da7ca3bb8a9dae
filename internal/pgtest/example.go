//go:build unix

package pgtest

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Example runs fn with a pool on a migrated database in which setup has been executed, for
// functions named Example, which have no testing.T. It panics on any error.
func Example(setup string, fn func(ctx context.Context, pool *pgxpool.Pool) error) {
	ctx := context.Background()
	url, drop, err := exampleDatabase(ctx)
	if err != nil {
		panic(err)
	}
	defer drop()
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, setup); err != nil {
		panic(err)
	}
	if err := fn(ctx, pool); err != nil {
		panic(err)
	}
}

func exampleDatabase(ctx context.Context) (url string, drop func(), err error) {
	srv, err := server()
	if err != nil {
		return "", nil, err
	}
	admin := srv.url
	name := name("example")
	template, err := templateFor(ctx, admin)
	if err != nil {
		return "", nil, err
	}
	if err := createDatabase(ctx, admin, name, template); err != nil {
		return "", nil, err
	}
	url, err = replaceDatabase(admin, name)
	return url, func() {
		conn, err := pgx.Connect(ctx, admin)
		if err == nil {
			_, err = conn.Exec(ctx, `DROP DATABASE "`+name+`" WITH (FORCE)`)
			_ = conn.Close(ctx)
		}
		if err != nil {
			panic(err)
		}
	}, err
}
