//go:build unix

package idemhttp_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/idem/idemhttp"
)

// What a function does wrong is found before anything is committed.
func TestBadResponsesAreRolledBack(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	bad := map[string]idemhttp.Response{
		"status 42":  {Status: 42},
		"has a body": {Status: 204, Body: []byte("x")},
		"Set-Cookie": {Header: http.Header{"Set-Cookie": {"session=1"}}},
		"Location":   {Header: http.Header{"Location": {"/\r\nSet-Cookie: session=1"}}},
	}
	var resp idemhttp.Response
	b.fn = func(ctx context.Context, tx pgx.Tx, r *http.Request) (idemhttp.Response, error) {
		_, err := b.refundOnce(ctx, tx, r)
		return resp, err
	}
	b.start()
	for says, r := range bad {
		resp = r
		got := b.post("r1", "{}")
		b.want(got, 500, idemhttp.ProblemFailed)
		if len(got.header.Values("Set-Cookie")) > 0 || !strings.Contains(b.log.String(), says) {
			t.Errorf("%q: got %+v, logged %s", says, got, b.log.String())
		}
	}
	b.has(0, 0, 4)
}

func TestFunctionFails(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.fn = func(ctx context.Context, tx pgx.Tx, r *http.Request) (idemhttp.Response, error) {
		resp, err := b.refundOnce(ctx, tx, r)
		return resp, errors.Join(err, errors.New("password=hunter2"))
	}
	b.start()
	r := b.post("r1", "{}")
	b.want(r, 500, idemhttp.ProblemFailed)
	if strings.Contains(r.body, "hunter2") || !strings.Contains(b.log.String(), "hunter2") {
		t.Errorf("answered %s, logged %s", r.body, b.log.String())
	}
	b.has(0, 0, 1)
	b.fn = b.refundOnce
	b.want(b.post("r1", "{}"), 201, "")
	b.has(1, 1, 2)
}

// A panic goes on to the server, which closes the connection without a response.
func TestFunctionPanics(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	caught := make(chan any, 1)
	b.wrap = func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				if p := recover(); p != nil {
					caught <- p
					panic(p)
				}
			}()
			next.ServeHTTP(w, r)
		})
	}
	b.fn = func(ctx context.Context, tx pgx.Tx, r *http.Request) (idemhttp.Response, error) {
		if _, err := b.refundOnce(ctx, tx, r); err != nil {
			return idemhttp.Response{}, err
		}
		panic(http.ErrAbortHandler)
	}
	b.start()
	if got := b.raw(rawPost + "Idempotency-Key: r1\r\nContent-Length: 0\r\n\r\n"); got != "" {
		t.Errorf("got %s", got)
	}
	if p := received(t, "the panic", caught); p != http.ErrAbortHandler { //nolint:errorlint // the very value
		t.Errorf("got %v", p)
	}
	b.has(0, 0, 1)
	b.fn = b.refundOnce
	b.want(b.post("r1", ""), 201, "")
	b.has(1, 1, 2)
}
