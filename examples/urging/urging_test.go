package main

import (
	"bytes"
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/internal/demotest"
	"github.com/pgonce/pgonce/examples/urging/urges"
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

func small(t *testing.T, users, tickets int) options {
	t.Helper()
	opt := options{users: users, tickets: tickets, windows: 2}
	opt.Duplicates, opt.Workers, opt.Faults, opt.Seed = 5, 16, true, rand.Uint64N(1_000_000)
	t.Logf("seed %d", opt.Seed)
	return opt
}

// The whole storm, smaller.
func TestStorm(t *testing.T) {
	t.Parallel()
	_, g := newGround(t)
	var out bytes.Buffer
	if err := storming(patient(t), small(t, 24, 6), g, &out); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	t.Logf("\n%s", &out)
	// 24 users and 6 tickets: 5 times in the first window, twice in the second; each user asks for an unknown ticket in each.
	if want := "urging requests=1056 effects=288 replays=720 conflicts=48 failed=0 verdict=ok\n"; !strings.HasSuffix(out.String(), want) {
		t.Errorf("got\n%s\nwant it to end with %s", &out, want)
	}
}

// The committed files are what the machine says.
func TestMigrationAndDiagramAreTheMachines(t *testing.T) {
	t.Parallel()
	b, err := statemachine.Bind[int64](urges.Flow, pgxdriver.New(new(pgxpool.Pool)), urges.Table) // nothing is sent
	if err != nil {
		t.Fatal(err)
	}
	demotest.Migration(t, "migrations", func(dir string) ([]string, error) { return b.WriteMigration(dir, 2, nil) })
	demotest.Diagrams(t, "README.md", urges.Flow.Mermaid())
}

// The original makes double effects in the storm in which the right way makes none. How many is a matter of luck, so it may
// try again.
func TestTheBugShows(t *testing.T) {
	t.Parallel()
	_, g := newGround(t)
	for range 10 {
		opt := small(t, 8, 4)
		opt.Workers = 32
		d, err := runOriginal(patient(t), opt, g, &bytes.Buffer{})
		if err != nil {
			t.Fatal(err)
		}
		if d.urges+d.subRecords > 0 {
			t.Logf("%+v", d)
			return
		}
	}
	t.Error("the original did nothing twice")
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--users", "-1"}, {"--tickets=-1"}, {"--duplicates", "0"}, {"extra"}, {"--nope"}} {
		if err := run(t.Context(), args, &bytes.Buffer{}); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}
