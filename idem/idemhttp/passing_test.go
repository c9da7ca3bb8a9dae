//go:build unix

package idemhttp_test

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/idem/idemhttp"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// What has no effect passes through untouched, with a key or without, whoever asks, and without a database. It
// has no transaction. Every other method is executed once.
func TestSafeMethodsPass(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.next = func(w http.ResponseWriter, r *http.Request) {
		_, err := idemhttp.Tx[pgx.Tx](r.Context())
		if _, ok := w.(http.Hijacker); !ok || !errors.Is(err, idemhttp.ErrNoTx) {
			t.Errorf("%s: got %T, %v", r.Method, w, err)
		}
		idemhttp.Final(w)
		w.WriteHeader(http.StatusTeapot)
	}
	b.start()
	b.pool.Close()
	for _, method := range []string{"GET", "HEAD", "OPTIONS", "TRACE"} {
		for _, key := range []string{"", "r1", "a,b"} {
			if r := b.send(method, "/refunds", key, "", as("")); r.status != 418 || r.replayed() {
				t.Errorf("%s: got %+v", method, r)
			}
		}
	}
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "QUERY", "post", "LOCK"} {
		b.want(b.send(method, "/refunds", "", ""), 400, idemhttp.ProblemMissingKey)
	}
}

// Without a key, where that is declared: scope is asked, the handler gets the whole body and no transaction.
func TestKeyIsOptional(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.cfg = idemhttp.Config{KeyOptional: true, MaxBody: 10}
	b.next = func(w http.ResponseWriter, r *http.Request) {
		_, err := idemhttp.Tx[pgx.Tx](r.Context())
		body, errBody := io.ReadAll(r.Body)
		if tooLong := new(http.MaxBytesError); errors.As(errBody, &tooLong) {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		if keyed := r.Header.Get("Idempotency-Key") != ""; keyed != (err == nil) || !keyed && !errors.Is(err, idemhttp.ErrNoTx) || errBody != nil {
			t.Errorf("got %v, %v", err, errBody)
		}
		_, _ = w.Write(body)
	}
	b.start()
	for range 2 {
		if r := b.post("", "0123456789"); r.status != 200 || r.replayed() || r.body != "0123456789" {
			t.Errorf("got %+v", r)
		}
	}
	b.want(b.post("", "{}", as("")), 401, idemhttp.ProblemUnauthenticated)
	b.want(b.post("", "01234567890"), 413, "")
	b.want(b.post("a,b", "{}"), 400, idemhttp.ProblemInvalidKey)
	for i := range 2 {
		if r := b.post("r1", "{}"); r.replayed() != (i > 0) || r.body != "{}" {
			t.Errorf("got %+v", r)
		}
	}
}

// A scope that reads the body leaves all of it to a handler without a key.
func TestKeyIsOptionalAndScopeReads(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	keys, err := idem.New(pgxdriver.New(db.Pool(t)), nil)
	if err != nil {
		t.Fatal(err)
	}
	scope := func(r *http.Request) (string, error) {
		first := make([]byte, 3)
		_, err := io.ReadFull(r.Body, first)
		return string(first), errors.Join(err, r.Body.Close())
	}
	once, err := idemhttp.Middleware(keys, refund, scope, &idemhttp.Config{KeyOptional: true})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, db: db}
	b.url, b.client = serve(t, once(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })))
	if r := b.post("", "signed"); r.body != "signed" {
		t.Errorf("got %+v", r)
	}
}

// Asking for the transaction with another type than the store's is a mistake that has its own words: it must not
// look like a request without one.
func TestTxOfAnotherType(t *testing.T) {
	t.Parallel()
	b := newMiddleware(t, func(w http.ResponseWriter, r *http.Request) {
		_, err := idemhttp.Tx[*sql.Tx](r.Context())
		if err == nil || errors.Is(err, idemhttp.ErrNoTx) || !strings.Contains(err.Error(), "the type that the store's driver has") {
			t.Errorf("got %v", err)
		}
		w.WriteHeader(http.StatusNoContent)
	})
	b.start()
	b.want(b.post("r1", "{}"), 204, "")
}

// The transaction is dead when the handler has returned.
func TestTxIsDeadAfterwards(t *testing.T) {
	t.Parallel()
	var leaked pgx.Tx
	b := newMiddleware(t, func(_ http.ResponseWriter, r *http.Request) { leaked, _ = idemhttp.Tx[pgx.Tx](r.Context()) })
	b.start()
	b.want(b.post("r1", "{}"), 200, "")
	if _, err := leaked.Exec(t.Context(), `INSERT INTO effect VALUES ('late')`); err == nil {
		t.Error("the transaction lives")
	}
	b.has(1, 1, 1)
}

// By what they say as JSON, where that is declared: the same request however it is marshalled, another one
// however it tries to look like it.
func TestCanonicalJSON(t *testing.T) {
	t.Parallel()
	b := newRefunds(t)
	b.cfg.CanonicalJSON = true
	b.start()
	b.want(b.post("r1", `{"cents": 100, "to": "a"}`), 201, "")
	for _, same := range []string{`{"to":"a","cents":100}`, "{\"to\":\"\\u0061\",\n\"cents\":1e2}"} {
		if r := b.post("r1", same); !r.replayed() {
			t.Errorf("%s: got %+v", same, r)
		}
	}
	for _, other := range []string{`{"to":"a","cents":101}`, `{"to":"a","cents":"100"}`, `[{"to":"a","cents":100}]`, `null`, ``} {
		b.want(b.post("r1", other), 422, idemhttp.ProblemMismatch)
	}
	b.want(b.send("PUT", "/refunds", "r1", `{"cents": 100, "to": "a"}`), 422, idemhttp.ProblemMismatch)
	for _, bad := range []string{
		`{"to":"a","to":"a","cents":100}`, `{"cents":100`, `1,2`, `{"cents":100}],["x"`, `cents=100`, "{\"to\":\"\xff\"}", `{"cents":9007199254740993}`, ` `,
	} {
		b.want(b.post("r1", bad), 400, idemhttp.ProblemUnreadableBody)
		b.want(b.post("r2", bad), 400, idemhttp.ProblemUnreadableBody)
	}
	b.has(1, 1, 1)
	b.want(b.send("DELETE", "/refunds", "r3", ""), 201, "")
	b.want(b.send("DELETE", "/refunds", "r3", "null"), 422, idemhttp.ProblemMismatch)
}

// Final reaches the recorder through writers that say what they wrap.
func TestFinalThroughWrappers(t *testing.T) {
	t.Parallel()
	b := newMiddleware(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		idemhttp.Final(wrapped{w})
	})
	b.start()
	b.want(b.post("r1", "{}"), 404, "")
	if r := b.post("r1", "{}"); r.status != 404 || !r.replayed() {
		t.Errorf("got %+v", r)
	}
	idemhttp.Final(nil)
	idemhttp.Final(httptest.NewRecorder())
}

type wrapped struct{ http.ResponseWriter }

func (w wrapped) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func TestMiddlewareRefuses(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	keys, err := idem.New(pgxdriver.New(db.Pool(t)), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, errStore := idemhttp.Middleware[pgx.Tx](nil, refund, caller, nil)
	_, errScope := idemhttp.Middleware(keys, refund, nil, nil)
	_, errName := idemhttp.Middleware(keys, idem.Op{}, caller, nil)
	_, errLimit := idemhttp.Middleware(keys, refund, caller, &idemhttp.Config{MaxResponse: -1})
	fn := func(context.Context, pgx.Tx, *http.Request) (r idemhttp.Response, err error) { return r, err }
	_, errOptional := idemhttp.Handle(keys, refund, caller, fn, &idemhttp.Config{KeyOptional: true})
	for says, err := range map[string]error{
		"nil store": errStore, "nil scope": errScope, "operation is empty": errName, "negative": errLimit, "is for Middleware": errOptional,
	} {
		if err == nil || !strings.Contains(err.Error(), says) || !strings.HasPrefix(err.Error(), "idemhttp: ") {
			t.Errorf("got %v, want %q", err, says)
		}
	}
	for _, name := range []string{
		"set-cookie", "Date", "Connection", "transfer-encoding", "Proxy-Authenticate", "WWW-Authenticate", "Trailer:X", "", "a b", "a:b", "Retry-After",
		"Idempotent-Replayed", "Content-Length", "é",
	} {
		if _, err := idemhttp.Middleware(keys, refund, caller, &idemhttp.Config{Headers: []string{"X-Fine", name}}); err == nil {
			t.Errorf("%q can be replayed", name)
		}
	}
	once, err := idemhttp.Middleware(keys, refund, caller, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a nil handler is wrapped")
		}
	}()
	once(nil)
}
