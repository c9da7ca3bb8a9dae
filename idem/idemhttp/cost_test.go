//go:build unix

package idemhttp_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/idem/idemhttp"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// The round trips of a request, counted on the wire: those of Do, and none for what is refused.
func TestRoundTripsOfARequest(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(b *bench){
		"Handle": func(*bench) {},
		"Middleware": func(b *bench) {
			b.next = func(w http.ResponseWriter, r *http.Request) { b.effect(w, r); b.created(w, r) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			wire := pgtest.NewWire()
			cfg := b.db.Config(t)
			cfg.MaxConns = 1 // so the ROLLBACK of a repeat is awaited before the next request
			cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
			cfg.ConnConfig.DialFunc = wire.Dial(cfg.ConnConfig.DialFunc)
			cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
			b.pool = b.db.Open(t, cfg)
			prepare(b)
			b.start()
			b.want(b.post("warm-up", "{}"), 201, "")
			trips := func(want int64, what string, do func()) {
				t.Helper()
				before := wire.Trips()
				do()
				if err := b.pool.Ping(t.Context()); err != nil { // one trip, when the connection is back
					t.Fatal(err)
				}
				if got := wire.Trips() - before - 1; got != want {
					t.Errorf("%s: %d trips, want %d", what, got, want)
				}
			}
			trips(3, "a new key", func() { b.want(b.post("r1", "{}"), 201, "") })
			trips(2, "a repeat, with its ROLLBACK", func() { b.want(b.post("r1", "{}"), 201, "") })
			trips(2, "another request", func() { b.want(b.post("r1", "{ }"), 422, idemhttp.ProblemMismatch) })
			trips(0, "what is refused", func() {
				b.want(b.post("", "{}"), 400, idemhttp.ProblemMissingKey)
				b.want(b.post("a,b", "{}"), 400, idemhttp.ProblemInvalidKey)
				b.want(b.post("r1", "{}", as("revoked")), 403, idemhttp.ProblemForbidden)
				b.want(b.post("r1", strings.Repeat("x", 1<<20+1)), 413, idemhttp.ProblemTooLarge)
			})
		})
	}
}

// A middleware inside of another would need a second connection while it holds the first: it is refused, and everything is
// rolled back.
func TestMiddlewareInsideOfAnother(t *testing.T) {
	t.Parallel()
	b := newRefunds(t)
	keys, err := idem.New(pgxdriver.New(b.pool), nil)
	if err != nil {
		t.Fatal(err)
	}
	inner, err := idemhttp.Middleware(keys, idem.Op{Name: "inner"}, caller, &b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.next = func(w http.ResponseWriter, r *http.Request) {
		b.effect(w, r)
		inner(http.HandlerFunc(b.created)).ServeHTTP(w, r)
	}
	b.start()
	b.want(b.post("r1", "{}"), 500, idemhttp.ProblemFailed)
	b.has(0, 0, 1)
}
