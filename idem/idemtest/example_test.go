//go:build unix

package idemtest_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/idem/idemhttp"
	"github.com/pgonce/pgonce/idem/idemtest"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// printing is a testing.TB for an example, which has none.
type printing struct{ testing.TB }

func (printing) Helper()                           {}
func (printing) Context() context.Context          { return context.Background() }
func (printing) Errorf(format string, args ...any) { fmt.Printf(format+"\n", args...) }
func (printing) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func ExampleHTTP() {
	var t testing.TB = printing{} // the one of your test
	const table = `CREATE TABLE refund (cents text NOT NULL)`
	pgtest.Example(table, func(_ context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		merchant := func(*http.Request) (string, error) { return "m1", nil }
		service, err := idemhttp.Handle(keys, idem.Op{Name: "refund"}, merchant, func(ctx context.Context, tx pgx.Tx, r *http.Request) (idemhttp.Response, error) {
			_, err := tx.Exec(ctx, `INSERT INTO refund VALUES ($1)`, r.FormValue("cents"))
			return idemhttp.Response{Status: http.StatusCreated}, err
		}, nil)
		if err != nil {
			return err
		}
		request := func(n int) *http.Request {
			r, _ := http.NewRequest(http.MethodPost, "/refunds", strings.NewReader(fmt.Sprintf("cents=%d", n)))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			return r
		}
		refunds := func(ctx context.Context) (n int64, err error) {
			err = pool.QueryRow(ctx, `SELECT count(*) FROM refund`).Scan(&n)
			return n, err
		}
		idemtest.HTTP(t, service, request, refunds, nil)

		twice := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // pays each time it is asked
			_, err := pool.Exec(r.Context(), `INSERT INTO refund VALUES ($1)`, r.FormValue("cents"))
			if err != nil {
				w.WriteHeader(http.StatusInternalServerError)
			}
		})
		idemtest.HTTP(first{t}, twice, request, refunds, nil)
		return nil
	})
	// Output:
	// idemtest: http: replay: repeat does not say Idempotent-Replayed: true
}

// first shows the first line only.
type first struct{ testing.TB }

func (f first) Errorf(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); strings.Contains(text, ": replay:") {
		line, _, _ := strings.Cut(text, "\n")
		f.TB.Errorf("%s", line)
	}
}
