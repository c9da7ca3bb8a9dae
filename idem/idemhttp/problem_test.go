package idemhttp

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"strings"
	"testing"

	"github.com/pgonce/pgonce/idem"
)

// Each error has one answer, which shows nothing of it.
func TestProblemOfEachError(t *testing.T) {
	t.Parallel()
	const secret = "password=hunter2"
	wrap := func(errs ...error) error {
		return fmt.Errorf("idem: do m1/op#abc: %w", errors.Join(append(errs, errors.New(secret))...))
	}
	own := func(err error) error { return &functionError{wrap(err)} }
	for _, tc := range []struct {
		err    error
		status int
		typ    string
		retry  string
	}{
		{wrap(idem.ErrInFlight), 409, ProblemInFlight, "1"},
		{wrap(idem.ErrExpired), 410, ProblemExpired, ""},
		{wrap(&idem.MismatchError{}), 422, ProblemMismatch, ""},
		{wrap(idem.ErrUnknownOutcome), 503, ProblemUnknownOutcome, "5"},
		{wrap(idem.ErrTxEnded), 503, ProblemUnknownOutcome, "5"},
		{wrap(idem.ErrTxEnded, own(errors.New(secret))), 503, ProblemUnknownOutcome, "5"},
		{wrap(idem.ErrTxEnded, &unstored{Response{Status: 404}}), 503, ProblemUnknownOutcome, "5"},
		{wrap(idem.ErrHandlerTimeout), 503, ProblemUnavailable, "5"},
		{wrap(idem.ErrHandlerTimeout, own(errors.New(secret))), 503, ProblemUnavailable, "5"},
		{wrap(idem.ErrUnavailable), 503, ProblemUnavailable, "5"},
		{wrap(idem.ErrReadOnly), 503, ProblemUnavailable, "5"},
		{wrap(idem.ErrSchema), 503, ProblemUnavailable, "5"},
		{errWaited, 503, ProblemUnavailable, "5"},
		{wrap(idem.ErrTxUnusable), 500, ProblemFailed, ""},
		{wrap(&idem.KeyError{Part: "scope", Reason: "is empty"}), 500, ProblemFailed, ""},
		{wrap(context.Canceled), 500, ProblemFailed, ""},
		{errNotResponse, 500, ProblemFailed, ""},
		{own(idem.ErrInFlight), 500, ProblemFailed, ""}, // of a key of the function's own
		{own(idem.ErrMismatch), 500, ProblemFailed, ""},
		{own(idem.ErrUnavailable), 500, ProblemFailed, ""},
		{own(errors.New(secret)), 500, ProblemFailed, ""},
	} {
		p := problemOf(tc.err)
		resp := p.response()
		if p.Status != tc.status || p.Type != tc.typ || resp.Header.Get("Retry-After") != tc.retry || resp.Status != tc.status {
			t.Errorf("%v: got %+v %v", tc.err, p, resp.Header)
		}
		if strings.Contains(string(resp.Body), "hunter2") || resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%v: answered by %s", tc.err, resp.Body)
		}
	}
}

// A problem's type leads to the documentation of the constant with its name, so each has to be of that name.
func TestProblemTypesLeadToTheirConstants(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "problem.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(spec.Names[0].Name, "Problem") {
			return true
		}
		found++
		sum := spec.Values[0].(*ast.BinaryExpr)
		if name := spec.Names[0].Name; sum.X.(*ast.Ident).Name != "types" || sum.Y.(*ast.BasicLit).Value != `"`+name+`"` {
			t.Errorf("%s has another type", name)
		}
		return true
	})
	if found < 10 {
		t.Errorf("found only %d", found)
	}
}

func TestResponsesThatCannotBe(t *testing.T) {
	t.Parallel()
	cfg, err := (*Config)(nil).resolved()
	if err != nil {
		t.Fatal(err)
	}
	storable := func(r Response) (Response, error) {
		r, err := cfg.checked(r)
		return r, errors.Join(err, cfg.storable(r))
	}
	for want, r := range map[string]Response{
		"status 103":    {Status: 103},
		"status 600":    {Status: 600},
		"status -1":     {Status: -1},
		"204 has a":     {Status: 204, Body: []byte("x")},
		"304 has a":     {Status: 304, Body: []byte("x")},
		"header Etag":   {Header: http.Header{"etag": {"a\r\nSet-Cookie: b=c"}}},
		"Location has":  {Header: http.Header{"Location": {"\xff"}}},
		"Set-Cookie,":   {Header: http.Header{"set-cookie": {"a=b"}}},
		"X-Request-Id":  {Header: http.Header{"X-Request-Id": {"1"}}},
		"1048576 byt":   {Body: make([]byte, 1<<20+1)},
		"which is none": {Header: http.Header{"X\r\nSet-Cookie: a": {"1"}}},
		"header Date":   {Header: http.Header{"Date": {"1"}}},
	} {
		if _, err := storable(r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %v, want %q", r, err, want)
		}
	}
	r, err := storable(Response{Header: http.Header{"etag": {`"1"`}}, Body: []byte("<script>")})
	if err != nil || r.Status != 200 || r.Header.Get("ETag") != `"1"` || r.Header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("got %+v, %v", r, err)
	}
	if _, err := JSON(200, func() {}); err == nil {
		t.Error("a function is not JSON")
	}
}
