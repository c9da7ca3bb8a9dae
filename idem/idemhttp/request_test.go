package idemhttp

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/pgonce/pgonce/idem"
)

func requestOf(method, uri, path, query, body string) *request {
	u := &url.URL{Path: path, RawQuery: query}
	return &request{http: &http.Request{Method: method, RequestURI: uri, URL: u}, body: []byte(body)}
}

// The bytes that are hashed are frozen: a release that changes them refuses every repeat of a request that
// the one before has executed.
func TestFingerprintIsFrozen(t *testing.T) {
	t.Parallel()
	got := requestOf("POST", "/a?b=1", "/a", "b=1", "{}").fingerprint()
	want := idem.Bytes([]byte("\x00\x00\x00\x00\x00\x00\x00\x0fpgonce.idemhttp" + "\x00\x00\x00\x00\x00\x00\x00\x04POST" +
		"\x00\x00\x00\x00\x00\x00\x00\x06/a?b=1" + "\x00\x00\x00\x00\x00\x00\x00\x02/a" + "\x00\x00\x00\x00\x00\x00\x00\x03b=1" +
		"\x00\x00\x00\x00\x00\x00\x00\x02{}"))
	if !reflect.DeepEqual(got, want) {
		t.Error("the fingerprint has changed")
	}
}

// No two of these are the same request, though many run together to the same bytes.
func TestFingerprintSeparates(t *testing.T) {
	t.Parallel()
	requests := []*request{
		requestOf("POST", "/a", "/a", "", "body"),
		requestOf("PUT", "/a", "/a", "", "body"),
		requestOf("POST", "/b", "/b", "", "body"),
		requestOf("POST", "/x/a", "/a", "", "body"), // a prefix that was stripped
		requestOf("POST", "/a", "/x", "", "body"),   // a path that was rewritten
		requestOf("POST", "/a", "/a", "q=1", "body"),
		requestOf("POST", "/a?q=1", "/a", "q=1", "body"),
		requestOf("POST", "/a", "/a", "", "bod"),
		requestOf("POST", "/a", "/a", "bo", "dy"),
		requestOf("POST", "/a", "/ab", "", "body"),
		requestOf("POST", "/a", "/a", "b", "body"),
		requestOf("POST", "/a", "/ab", "", "ody"),
		requestOf("POST", "/a", "/a", "", ""),
		requestOf("POSTS", "/a", "/a", "", "body"),
	}
	for i, a := range requests {
		for _, b := range requests[i+1:] {
			if reflect.DeepEqual(a.fingerprint(), b.fingerprint()) {
				t.Errorf("%+v and %+v", a.http, b.http)
			}
		}
	}
	escaped := requestOf("POST", "", "/a/b/c", "", "")
	escaped.http.URL.RawPath = "/a%2Fb/c" // routes to other values
	if reflect.DeepEqual(escaped.fingerprint(), requestOf("POST", "", "/a/b/c", "", "").fingerprint()) {
		t.Error("an escaped slash counts as a slash")
	}
}

// Whoever reads how much of the body, and closes it: the fingerprint and the function get all of it.
func TestBodyIsKeptWhoeverReadsIt(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{0, 1, 4, 100} {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("body"))
		in := newBody(httptest.NewRecorder(), r, 4)
		if _, err := io.CopyN(io.Discard, in, n); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		_ = in.Close()
		if data, err := in.rest(r, 4); string(data) != "body" || err != nil {
			t.Errorf("after %d bytes: %q, %v", n, data, err)
		}
	}
}

func TestBodyOfNobody(t *testing.T) {
	t.Parallel()
	r := &http.Request{}
	if data, err := newBody(httptest.NewRecorder(), r, 4).rest(r, 4); len(data) != 0 || err != nil {
		t.Errorf("%q, %v", data, err)
	}
}

// Each run gets the body from its start, and a form as it is in the body.
func TestEachRunGetsAFreshRequest(t *testing.T) {
	t.Parallel()
	outer := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("ignored"))
	outer.Form = url.Values{"a": {"forged"}}
	outer.PostForm = outer.Form
	outer.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	q := &request{http: outer, body: []byte("a=1")}
	for range 2 {
		r := q.fresh(t.Context())
		if got := r.FormValue("a"); got != "1" {
			t.Errorf("form value %q", got)
		}
		r.Header.Set("X-Run", r.Header.Get("X-Run")+"!")
		if got := r.Header.Get("X-Run"); got != "!" {
			t.Errorf("a header of the run before: %q", got)
		}
		r = q.fresh(t.Context())
		if got, _ := io.ReadAll(r.Body); !bytes.Equal(got, q.body) || r.ContentLength != 3 {
			t.Errorf("%q of %d", got, r.ContentLength)
		}
	}
}
