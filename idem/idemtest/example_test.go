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

// ending shows how CrashEverywhere ends, and one thing that it found.
type ending struct {
	testing.TB
	found *bool
}

func (v ending) Errorf(string, ...any) { *v.found = true }
func (v ending) Logf(string, ...any) {
	fmt.Println(map[bool]string{false: "one effect, one answer, wherever it dies", true: "found out"}[*v.found])
}

func ExampleCrashEverywhere() {
	const tables = `
CREATE TABLE refund (id bigint GENERATED ALWAYS AS IDENTITY, number text NOT NULL);
CREATE TABLE mail (number text NOT NULL)`
	pgtest.Example(tables, func(_ context.Context, db *pgxpool.Pool) error {
		var mail func(number string) error // to the customer

		// A process that is asked for one refund.
		refund := func(ctx context.Context, p *idemtest.Process, number string) (int64, error) {
			pool, err := pgxpool.New(ctx, p.DatabaseURL())
			if err != nil {
				return 0, err
			}
			defer pool.Close()
			keys, err := idem.New(pgxdriver.New(pool), nil)
			if err != nil {
				return 0, err
			}
			res, err := idem.Do(ctx, keys, idem.Op{Name: "refund"}.Key("m1", number), idem.NoFingerprint(), func(ctx context.Context, tx pgx.Tx) (id int64, err error) {
				err = tx.QueryRow(ctx, `INSERT INTO refund (number) VALUES ($1) RETURNING id`, number).Scan(&id)
				if err == nil && mail != nil {
					err = p.Call(func() error { return mail(number) })
				}
				return id, err
			})
			return res.Value, err
		}
		rows := func(table string) func(context.Context, string) (int64, error) {
			return func(ctx context.Context, number string) (n int64, err error) {
				err = db.QueryRow(ctx, `SELECT count(*) FROM `+table+` WHERE number = $1`, number).Scan(&n)
				return n, err
			}
		}
		t := ending{printing{}, new(bool)} // yours is the *testing.T
		idemtest.CrashEverywhere(t, db.Config().ConnString(), refund, rows("refund"), nil)

		// A handler that writes to its customer itself, instead of enqueueing that in its transaction, does so again when it is run again.
		mail = func(number string) error {
			_, err := db.Exec(context.Background(), `INSERT INTO mail VALUES ($1)`, number)
			return err
		}
		idemtest.CrashEverywhere(t, db.Config().ConnString(), refund, rows("mail"), nil)
		return nil
	})
	// Output:
	// one effect, one answer, wherever it dies
	// found out
}
