//go:build unix

package idemhttp_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/idem/idemhttp"
	"github.com/pgonce/pgonce/internal/pgtest"
)

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestBodyLimit(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.cfg.MaxBody = 1000
	b.start()
	chunked := func(r *http.Request) { r.ContentLength = -1 }
	for i, change := range []func(*http.Request){func(*http.Request) {}, chunked} {
		b.want(b.post(fmt.Sprint(i), strings.Repeat("x", 1000), change), 201, "")
		b.want(b.post(fmt.Sprint(i), strings.Repeat("x", 1001), change), 413, idemhttp.ProblemTooLarge)
		b.want(b.post(fmt.Sprint("large", i), strings.Repeat("x", 100_000), change), 413, idemhttp.ProblemTooLarge)
	}
	b.has(2, 2, 2)
}

// A body that breaks off is not a shorter body.
func TestBodyBreaksOff(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.start()
	for _, request := range []string{
		"Content-Length: 100\r\n\r\n{}", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nzz\r\n",
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = conn.Write([]byte(rawPost + "Idempotency-Key: r1\r\n" + request))
		if err == nil {
			err = conn.(*net.TCPConn).CloseWrite()
		}
		got, _ := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 400 ") {
			t.Errorf("%q: got %s, %v", request, got, err)
		}
		_ = conn.Close()
	}
	b.has(0, 0, 0)
}

// A scope that checks a signature over the body leaves it to the fingerprint and the function.
func TestScopeMayReadTheBody(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	keys, err := idem.New(pgxdriver.New(db.Pool(t)), nil)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(r *http.Request) (string, error) {
		body, err := io.ReadAll(r.Body)
		if err == nil && !strings.HasPrefix(string(body), "signed") {
			err = idemhttp.ErrUnauthenticated
		}
		r.Header = nil // and whatever else it does to its copy
		return "m1", errors.Join(err, r.Body.Close())
	}
	h, err := idemhttp.Handle(keys, refund, signed, func(_ context.Context, _ pgx.Tx, r *http.Request) (idemhttp.Response, error) {
		body, err := io.ReadAll(r.Body)
		return idemhttp.Response{Body: body}, err
	}, &idemhttp.Config{MaxBody: 10})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, db: db}
	b.url, b.client = serve(t, h)
	if r := b.post("r1", "signed 1"); r.body != "signed 1" {
		t.Errorf("got %+v", r)
	}
	b.want(b.post("r1", "signed 2"), 422, idemhttp.ProblemMismatch)
	b.want(b.post("r1", "forged"), 401, idemhttp.ProblemUnauthenticated)
	b.want(b.post("r1", "signed, and too long"), 413, idemhttp.ProblemTooLarge)
	b.want(b.post("r1", "signed, and too long", func(r *http.Request) { r.ContentLength = -1 }), 413, idemhttp.ProblemTooLarge)
}

// A middleware that swallows the body would make all bodies the same request.
func TestBodyThatIsGone(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.wrap = func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = r.ParseForm()
			next.ServeHTTP(w, r)
		})
	}
	b.start()
	form := func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") }
	b.want(b.post("r1", "cents=1", form), 500, idemhttp.ProblemFailed)
	if !strings.Contains(b.log.String(), "middleware has read the body") {
		t.Errorf("logged %s", b.log.String())
	}
	b.want(b.post("r1", `{"cents":1}`), 201, "")
	b.has(1, 1, 1)
}
