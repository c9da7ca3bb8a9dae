package main

import (
	"bytes"
	"context"
	"database/sql"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/pgonce/pgonce/driver/sqlxdriver"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/internal/demotest"
	"github.com/pgonce/pgonce/examples/partialrefund/refunds"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/statemachine"
)

func newGround(t *testing.T) (*pgtest.DB, *demo.Ground) {
	t.Helper()
	db := pgtest.New(t)
	pool := db.Pool(t)
	if err := migrate(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	return db, &demo.Ground{Pool: pool, URL: db.URL}
}

// patient is a context for a storm: it ends long after a storm should have, and before the test binary
// is given up.
func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func small(t *testing.T, orders, perOrder int) options {
	t.Helper()
	opt := options{orders: orders, refunds: perOrder}
	opt.Duplicates, opt.Workers, opt.Faults, opt.Seed = 5, 16, true, rand.Uint64N(1_000_000)
	t.Logf("seed %d", opt.Seed)
	return opt
}

// The whole storm, smaller: with an order whose refunds are refused.
func TestStorm(t *testing.T) {
	t.Parallel()
	_, g := newGround(t)
	var out bytes.Buffer
	if err := storming(patient(t), small(t, 8, 8), g, &out); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	t.Logf("\n%s", &out)
	if !strings.HasSuffix(out.String(), " failed=0 verdict=ok\n") {
		t.Errorf("got\n%s", &out)
	}
}

// The committed files are what the machine says.
func TestMigrationAndDiagramAreTheMachines(t *testing.T) {
	t.Parallel()
	db := sqlx.NewDb(new(sql.DB), "pgx") // nothing is sent
	b, err := statemachine.Bind[string](refunds.Flow, sqlxdriver.New(db), refunds.Table)
	if err != nil {
		t.Fatal(err)
	}
	demotest.Migration(t, "migrations", func(dir string) ([]string, error) { return b.WriteMigration(dir, 2, nil) })
	demotest.Diagrams(t, "README.md", refunds.Flow.Mermaid())
}

// The original makes double effects in the storm in which the right way makes none. How many is a matter of luck, so it may
// try again.
func TestTheBugShows(t *testing.T) {
	t.Parallel()
	_, g := newGround(t)
	for range 10 {
		d, err := runOriginal(patient(t), small(t, 2, 4), g, &bytes.Buffer{})
		if err != nil {
			t.Fatal(err)
		}
		if d.payments > 0 {
			t.Logf("%+v", d)
			return
		}
	}
	t.Error("the original did nothing twice")
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--orders", "-1"}, {"--refunds=-1"}, {"--duplicates", "0"}, {"extra"}, {"--nope"}} {
		if err := run(t.Context(), args, &bytes.Buffer{}); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}
