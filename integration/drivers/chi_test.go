//go:build unix

package drivers_test

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/idem/idemhttp"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// The middleware under a router and between middleware that many use: the router's values, the recoverer's 500, the
// request id and the compressor are all there, and one effect.
func TestMiddlewareUnderChi(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE effect (name text NOT NULL)`)
	keys, err := idem.New(pgxdriver.New(db.Pool(t)), nil)
	if err != nil {
		t.Fatal(err)
	}
	merchant := func(r *http.Request) (string, error) { return chi.URLParam(r, "merchant"), nil }
	once, err := idemhttp.Middleware(keys, idem.Op{Name: "refund.create"}, merchant, nil)
	if err != nil {
		t.Fatal(err)
	}
	runs := 0
	quiet := &middleware.DefaultLogFormatter{Logger: log.New(io.Discard, "", 0)}
	router := chi.NewRouter()
	router.Use(middleware.RequestID, middleware.Recoverer, middleware.Compress(5))
	router.Route("/merchants/{merchant}", func(r chi.Router) {
		// A second recoverer and a wrapping writer inside: their 500 rolls back.
		r.With(once, middleware.RequestLogger(quiet), middleware.Recoverer).Post("/refunds/{id}", func(w http.ResponseWriter, r *http.Request) {
			runs++
			tx, err := idemhttp.Tx[pgx.Tx](r.Context())
			if err == nil {
				_, err = tx.Exec(r.Context(), `INSERT INTO effect VALUES ($1)`, chi.URLParam(r, "merchant")+"/"+chi.URLParam(r, "id"))
			}
			switch {
			case err != nil:
				t.Error(err)
			case chi.URLParam(r, "id") == "panics" && runs == 1:
				panic("a bug")
			case chi.URLParam(r, "id") == "closed":
				idemhttp.Final(w) // through the logger's writer
				http.Error(w, "closed", http.StatusUnprocessableEntity)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusCreated)
			_, _ = fmt.Fprintf(w, `{"run":%d,"text":%q}`, runs, strings.Repeat("long ", 500))
		})
	})
	send := func(path, encoding string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, "/merchants/m1"+path, strings.NewReader("{}"))
		r.Header.Set("Idempotency-Key", `"`+path+`"`)
		r.Header.Set("Accept-Encoding", encoding)
		w := httptest.NewRecorder()
		router.ServeHTTP(w, r)
		return w
	}
	if w := send("/refunds/panics", ""); w.Code != http.StatusInternalServerError || db.Int(t, `SELECT count(*) FROM effect`) != 0 {
		t.Errorf("a panic: %d", w.Code)
	}
	first, again, packed := send("/refunds/panics", ""), send("/refunds/panics", ""), send("/refunds/panics", "gzip")
	if first.Code != 201 || again.Body.String() != first.Body.String() || again.Header().Get("Idempotent-Replayed") != "true" {
		t.Errorf("got %v, then %v", first, again)
	}
	if packed.Header().Get("Content-Encoding") != "gzip" || packed.Body.Len() >= first.Body.Len() || packed.Header().Get("Idempotent-Replayed") != "true" {
		t.Errorf("around the middleware, a replay is compressed for who wants it: %v", packed.Header())
	}
	for i := range 2 {
		if w := send("/refunds/closed", ""); w.Code != 422 || (w.Header().Get("Idempotent-Replayed") == "true") != (i > 0) {
			t.Errorf("final: %d %v", w.Code, w.Header())
		}
	}
	if n := db.Int(t, `SELECT count(*) FROM effect WHERE name = 'm1/panics'`); n != 1 || runs != 3 {
		t.Errorf("%d effects, %d runs", n, runs)
	}
}
