package main

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/internal/demotest"
	"github.com/pgonce/pgonce/examples/wechatpay/wallet"
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

func small(t *testing.T, orders int) options {
	t.Helper()
	opt := options{orders: orders}
	opt.Duplicates, opt.Workers, opt.Faults, opt.Seed = 5, 16, true, rand.Uint64N(1_000_000)
	t.Logf("seed %d", opt.Seed)
	return opt
}

// The whole storm, smaller.
func TestStorm(t *testing.T) {
	t.Parallel()
	_, g := newGround(t)
	var out bytes.Buffer
	if err := storming(patient(t), small(t, 100), g, &out); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	t.Logf("\n%s", &out)
	// 98 of 100 orders are paid: 5 callbacks and a late one each. The others are refused as often, and so are 12 lies in each gust.
	if want := "wechatpay requests=624 effects=98 replays=490 conflicts=36 failed=0 verdict=ok\n"; !strings.HasSuffix(out.String(), want) {
		t.Errorf("got\n%s\nwant it to end with %s", &out, want)
	}
}

// The committed files are what the machines say.
func TestMigrationsAndDiagramsAreTheMachines(t *testing.T) {
	t.Parallel()
	db := pgxdriver.New(new(pgxpool.Pool)) // nothing is sent
	payments, err1 := statemachine.Bind[string](wallet.PaymentFlow, db, wallet.PaymentTable)
	consumptions, err2 := statemachine.Bind[string](wallet.ConsumptionFlow, db, wallet.ConsumptionTable)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	demotest.Migration(t, "migrations", func(dir string) ([]string, error) { return payments.WriteMigration(dir, 2, nil) })
	demotest.Migration(t, "migrations", func(dir string) ([]string, error) { return consumptions.WriteMigration(dir, 4, nil) })
	demotest.Diagrams(t, "README.md", wallet.PaymentFlow.Mermaid(), wallet.ConsumptionFlow.Mermaid())
}

// The original makes double effects in the storm in which the right way makes none. How many is a matter of luck, so it may
// try again.
func TestTheBugShows(t *testing.T) {
	t.Parallel()
	_, g := newGround(t)
	for range 10 {
		d, err := runOriginal(patient(t), small(t, 40), g, &bytes.Buffer{})
		if err != nil {
			t.Fatal(err)
		}
		if d.messages > 0 && d.credits > 0 {
			t.Logf("%+v", d)
			return
		}
	}
	t.Error("the original did nothing twice")
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--orders", "-1"}, {"--duplicates", "0"}, {"extra"}, {"--nope"}} {
		if err := run(t.Context(), args, &bytes.Buffer{}); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}
