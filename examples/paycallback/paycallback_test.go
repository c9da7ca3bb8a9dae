//go:build unix

package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/internal/demotest"
	"github.com/pgonce/pgonce/examples/paycallback/callback"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/statemachine"
)

// TestMain lets the test binary play the services and the workers.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "serve" || os.Args[1] == "work") {
		main()
		return
	}
	os.Exit(m.Run())
}

func newGround(t *testing.T) (*pgtest.DB, *ground) {
	t.Helper()
	db := pgtest.New(t)
	pool := db.Pool(t)
	if err := migrate(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	return db, &ground{pool: pool, url: db.URL, program: os.Args[0]}
}

func small(t *testing.T, orders int) options {
	t.Helper()
	opt := options{orders: orders, crowd: 100, Options: demo.Options{Duplicates: 5, Workers: 8, Faults: true, Seed: rand.Uint64N(1_000_000)}}
	t.Logf("seed %d", opt.Seed)
	return opt
}

// The whole storm, smaller: crowds, kills, redelivery, other systems that misbehave.
func TestStorm(t *testing.T) {
	t.Parallel()
	_, g := newGround(t)
	var out bytes.Buffer
	if err := storming(demotest.Patient(t), small(t, 60), g, &out); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	t.Logf("\n%s", &out)
	// 63 orders, 3 of them closed; 111 callbacks in crowds, 300 in the storm and 12 with another amount, 13 of another payment.
	if !strings.HasSuffix(out.String(), "paycallback requests=436 effects=60 replays=336 conflicts=40 failed=0 verdict=ok\n") {
		t.Errorf("got\n%s", &out)
	}
	if n := strings.Count(out.String(), "killed with SIGKILL, back"); n != serviceProcesses+workerProcesses {
		t.Errorf("%d processes were killed, want each", n)
	}
}

// The original tells people twice in the storm in which the right way tells them once.
func TestTheBugShows(t *testing.T) {
	t.Parallel()
	_, g := newGround(t)
	var out bytes.Buffer
	if err := showTheBug(demotest.Patient(t), small(t, 40), g, &out); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	t.Logf("\n%s", &out)
}

// The database is held to the machine, and the page shows it.
func TestMachineIsWritten(t *testing.T) {
	t.Parallel()
	flow, err := statemachine.Bind[int64](callback.Flow, pgxdriver.New(pgtest.New(t).Pool(t)), callback.Table)
	if err != nil {
		t.Fatal(err)
	}
	demotest.Migration(t, "migrations", func(dir string) ([]string, error) { return flow.WriteMigration(dir, 2, nil) })
	demotest.Diagrams(t, "README.md", callback.Flow.Mermaid())
}
