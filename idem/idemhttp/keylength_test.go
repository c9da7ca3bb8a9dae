//go:build unix

package idemhttp_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/idem/idemhttp"
)

// A service can ask for keys that are not made by counting. A shorter one is refused, in whatever form it comes, before anything is
// looked up; what counts is the key, and not its quotes.
func TestShortKeysAreRefused(t *testing.T) {
	t.Parallel()
	handle := newBench(t)
	handle.cfg = idemhttp.Config{MinKey: 20}
	wrapped := newMiddleware(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) })
	wrapped.cfg = idemhttp.Config{MinKey: 20, KeyOptional: true}
	enough, short := strings.Repeat("k", 20), strings.Repeat("k", 19)
	for _, b := range []*bench{handle, wrapped} {
		b.start()
		for _, key := range []string{"1", `"1"`, short, `"` + short + `"`, `"` + strings.Repeat(`\"`, 10) + `"`} {
			r := b.post(key, "{}")
			b.want(r, http.StatusBadRequest, idemhttp.ProblemInvalidKey)
			if !strings.Contains(r.body, "at least 20") || strings.Contains(r.body, short) {
				t.Errorf("%s: got %s, which should say what to do, and not show the key", key, r.body)
			}
		}
		b.has(0, 0, 0)
		for i, key := range []string{enough, `"` + enough + `"`} {
			if r := b.post(key, "{}"); r.status != http.StatusCreated || r.replayed() != (i > 0) {
				t.Errorf("%s: got %+v", key, r)
			}
		}
		b.has(1, 1, 1)
	}
}

// A least length that no key can have is found out at start.
func TestMinKeyThatCannotBe(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	keys, err := idem.New(pgxdriver.New(b.pool), nil)
	if err != nil {
		t.Fatal(err)
	}
	for n, fault := range map[int]bool{-1: true, 0: false, 1: false, idem.MaxID: false, idem.MaxID + 1: true} {
		_, err := idemhttp.Handle(keys, refund, caller, func(context.Context, pgx.Tx, *http.Request) (idemhttp.Response, error) {
			return idemhttp.Response{}, nil
		}, &idemhttp.Config{MinKey: n})
		if fault != (err != nil && strings.Contains(err.Error(), "MinKey")) || !fault && err != nil {
			t.Errorf("%d: got %v", n, err)
		}
	}
}
