//go:build unix

package idemhttp_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/idem/idemhttp"
)

// A refusal that is final is stored without the function's writes, and is the answer for good.
func TestFinalRefusals(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	reason := errors.New("account 4711 is closed")
	responses := map[string]idemhttp.Response{
		"/400": {Status: 400, Body: []byte(`{"error":"cents"}`), Header: http.Header{"Content-Type": {"application/json"}}},
		"/404": {Status: 404},
		"/422": {}, // has one of ours
	}
	b.fn = func(ctx context.Context, tx pgx.Tx, r *http.Request) (idemhttp.Response, error) {
		_, err := b.refundOnce(ctx, tx, r)
		return responses[r.URL.Path], errors.Join(err, idem.Final(reason))
	}
	b.start()
	for path, want := range responses {
		first, again := b.send("POST", path, path[1:], "{}"), b.send("POST", path, path[1:], "{}")
		if fmt.Sprint("/", first.status) != path || first.replayed() || !again.replayed() || again.status != first.status || again.body != first.body ||
			again.header.Get("Content-Type") != first.header.Get("Content-Type") || want.Status != 0 && first.body != string(want.Body) {
			t.Errorf("%s: %+v, then %+v", path, first, again)
		}
		if want.Status == 0 {
			b.want(first, 422, idemhttp.ProblemRefused)
		}
		b.want(b.send("POST", path, path[1:], "{ }"), 422, idemhttp.ProblemMismatch)
		if strings.Contains(first.body, "4711") {
			t.Errorf("%s shows the reason: %s", path, first.body)
		}
	}
	b.has(0, 3, 3)
}

// What is never stored cannot be declared final, nor can a success: that is the function's mistake.
func TestWhatCannotBeFinal(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var resp idemhttp.Response
	b.fn = func(ctx context.Context, tx pgx.Tx, r *http.Request) (idemhttp.Response, error) {
		_, err := b.refundOnce(ctx, tx, r)
		return resp, errors.Join(err, idem.Final(errors.New("sold out")))
	}
	b.start()
	runs := int64(0)
	for _, status := range []int{200, 201, 303, 401, 403, 408, 409, 425, 429, 500, 503} {
		resp = idemhttp.Response{Status: status}
		b.want(b.post("r1", "{}"), 500, idemhttp.ProblemFailed)
		runs++
	}
	resp = idemhttp.Response{Status: 422, Header: http.Header{"Set-Cookie": {"a=b"}}}
	b.want(b.post("r1", "{}"), 500, idemhttp.ProblemFailed)
	b.has(0, 0, runs+1)
	if !strings.Contains(b.log.String(), "status 409 cannot be final: sold out") {
		t.Errorf("logged %s", b.log.String())
	}
}

// A refusal of another key that the function passes on is no answer of this one.
func TestRefusalOfAnotherKey(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	keys, err := idem.New(pgxdriver.New(b.pool), nil)
	if err != nil {
		t.Fatal(err)
	}
	b.fn = func(ctx context.Context, tx pgx.Tx, _ *http.Request) (idemhttp.Response, error) {
		res, err := idem.DoTx(ctx, keys, tx, idem.Op{Name: "inner"}.Key("m1", "i1"), idem.NoFingerprint(),
			func(context.Context, pgx.Tx) (idemhttp.Response, error) {
				return idemhttp.Response{Status: 404}, idem.Final(errors.New("inner"))
			})
		if !errors.Is(err, idem.ErrRefused) {
			t.Errorf("got %v", err)
		}
		return res.Value, err
	}
	b.start()
	b.want(b.post("r1", "{}"), 500, idemhttp.ProblemFailed)
	b.has(0, 0, 1)
	if !strings.Contains(b.log.String(), "refused: inner") || strings.Contains(b.log.String(), "HTTP response") {
		t.Errorf("logged %s", b.log.String())
	}
}
