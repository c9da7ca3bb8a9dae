// Package idemtest proves a service of its user's: that it executes requests once, as those who ask it can see.
package idemtest

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const (
	defaultCallers  = 8
	defaultPatience = 30 * time.Second
	keyHeader       = "Idempotency-Key"
	replayedHeader  = "Idempotent-Replayed"
	problemType     = "application/problem+json"
)

// HTTPConfig tunes [HTTP]. A nil *HTTPConfig is ready to use.
type HTTPConfig struct {
	// Callers is how many send the same request at once. Defaults to 8, at least 2.
	Callers int

	// Patience is how long a request may take, with all that it waits for. Defaults to 30 seconds.
	Patience time.Duration

	// KeyOptional says that a request without a key is let through, so that its 400 is not asked for.
	KeyOptional bool

	// Volatile names headers of responses that are not the same for a repeat, beside Date, Idempotent-Replayed,
	// Connection and Set-Cookie: a request id, for one.
	Volatile []string

	// Client sends the requests; it should not follow redirects. Defaults to one of our own.
	Client *http.Client
}

// HTTP holds a handler, whoever made it, to what the clients of draft-ietf-httpapi-idempotency-key-header-07 rely on. It
// serves it on a loopback socket, and fails tb where
//
//   - a repeat is executed again, or does not get the first response: status, headers and body, and
//     "Idempotent-Replayed: true", which the first response does not have, whatever the request claims;
//   - the quoted and the bare form of a key are two keys, or two keys are one;
//   - duplicates at once have more or less than one effect, or get anything but the one response or 409 with Retry-After;
//   - another request under a used key gets anything but 422, or has an effect;
//   - a request without a key, or with two or an empty one, gets anything but 400, or has an effect;
//   - a client that goes away in the middle leaves a request that a repeat executes a second time.
//
// Answers 400, 409 and 422 have to be problem+json (RFC 9457). It is no proof against a crash: for that there
// is [CrashEverywhere].
//
// request makes a new request each time, complete but for the key: equal ones for equal n, and for
// two n two different requests of the same caller. It must be one that succeeds (2xx) and has an effect. Its host is replaced. effects counts
// the effects that there are now; nobody else may make any meanwhile. Both are called on goroutines of HTTP's.
//
// Keys are random, so a service that is kept can be asked again. It makes some ten effects.
func HTTP(tb testing.TB, h http.Handler, request func(n int) *http.Request, effects func(ctx context.Context) (int64, error), cfg *HTTPConfig) {
	tb.Helper()
	if h == nil {
		tb.Fatal("idemtest: http: nil handler")
	}
	s := &httpSuite{tb: tb, request: request, effects: effects, leaves: &atomic.Pointer[context.CancelFunc]{}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if leave := s.leaves.Swap(nil); leave != nil {
			(*leave)()
		}
		h.ServeHTTP(w, r)
	}))
	defer srv.Close()
	s.all(srv.URL, cfg)
}

// HTTPAt is [HTTP] for a service that is running somewhere, at a base URL such as "http://localhost:8080".
func HTTPAt(tb testing.TB, baseURL string, request func(n int) *http.Request, effects func(ctx context.Context) (int64, error), cfg *HTTPConfig) {
	tb.Helper()
	s := &httpSuite{tb: tb, request: request, effects: effects}
	s.all(baseURL, cfg)
}

// all runs all checks.
func (s *httpSuite) all(baseURL string, cfg *HTTPConfig) {
	s.tb.Helper()
	var err error
	if s.base, err = url.Parse(baseURL); err != nil || s.base.Host == "" || s.request == nil || s.effects == nil {
		s.tb.Fatalf("idemtest: http: base URL %q has no host, or request or effects is nil (%v)", baseURL, err)
	}
	s.run = rand.Text()
	if cfg != nil {
		s.cfg = *cfg
	}
	s.cfg.Callers = max(2, cmp.Or(s.cfg.Callers, defaultCallers))
	s.cfg.Patience = cmp.Or(s.cfg.Patience, defaultPatience)
	if s.cfg.Client == nil {
		own := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: s.cfg.Callers}
		defer own.CloseIdleConnections()
		s.cfg.Client = &http.Client{Transport: own, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	for _, check := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"replay", s.replay},
		{"forms of the key", s.forms},
		{"another request", s.mismatch},
		{"bad keys", s.badKeys},
		{"duplicates at once", s.duplicates},
		{"client goes away", s.goneClient},
	} {
		if err := s.check(check.run); err != nil {
			s.tb.Errorf("idemtest: http: %s: %v", check.name, err)
		}
	}
}

type httpSuite struct {
	tb      testing.TB
	base    *url.URL
	request func(n int) *http.Request
	effects func(ctx context.Context) (int64, error)
	cfg     HTTPConfig
	run     string
	keys    int
	leaves  *atomic.Pointer[context.CancelFunc] // called by the next request that arrives, where we see that
}

func (s *httpSuite) check(run func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(s.tb.Context(), 10*s.cfg.Patience)
	defer cancel()
	return run(ctx)
}

// key is one that nobody has used.
func (s *httpSuite) key() string {
	s.keys++
	return fmt.Sprintf("%s-%d", s.run, s.keys)
}

// httpAnswer is a response that has been read.
type httpAnswer struct {
	status int
	header http.Header
	body   string
}

func (a httpAnswer) String() string { return fmt.Sprintf("%d %.200q", a.status, a.body) }

func (a httpAnswer) succeeded() bool { return a.status >= 200 && a.status < 300 }

func (a httpAnswer) replayed() bool { return a.header.Get(replayedHeader) == "true" }

// is says why an answer is not the problem that it should be.
func (a httpAnswer) is(status int) error {
	var p struct{ Status int }
	typ, _, _ := strings.Cut(a.header.Get("Content-Type"), ";")
	switch {
	case a.status != status:
		return fmt.Errorf("answered %v, want %d", a, status)
	case a.replayed():
		return fmt.Errorf("answered %v, marked as a replay", a)
	case typ != problemType || json.Unmarshal([]byte(a.body), &p) != nil || p.Status != 0 && p.Status != status:
		return fmt.Errorf("answered %v of type %q, want %s that says %d", a, a.header.Get("Content-Type"), problemType, status)
	case status == http.StatusConflict && a.header.Get("Retry-After") == "":
		return fmt.Errorf("answered %v without Retry-After", a)
	}
	return nil
}

// send sends request n with these values of the key's header.
func (s *httpSuite) send(ctx context.Context, n int, keys ...string) (httpAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Patience)
	defer cancel()
	r := s.request(n).WithContext(ctx)
	r.RequestURI = "" // as httptest.NewRequest sets it
	r.URL.Scheme, r.URL.Host, r.Host = s.base.Scheme, s.base.Host, ""
	r.URL.Path = strings.TrimSuffix(s.base.Path, "/") + r.URL.Path
	r.Header[keyHeader] = keys
	resp, err := s.cfg.Client.Do(r)
	if err != nil {
		return httpAnswer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return httpAnswer{resp.StatusCode, resp.Header, string(body)}, err
}

// first sends request 1 under a key for the first time, and sees that it has one effect.
func (s *httpSuite) first(ctx context.Context, key string) (httpAnswer, error) {
	before, err := s.effects(ctx)
	if err != nil {
		return httpAnswer{}, err
	}
	a, err := s.send(ctx, 1, key)
	switch {
	case err != nil:
		return a, err
	case !a.succeeded():
		return a, fmt.Errorf("first request answered %v, want 2xx", a)
	case a.header.Get(replayedHeader) != "":
		return a, fmt.Errorf("first response has %s: %s", replayedHeader, a.header.Get(replayedHeader))
	}
	return a, s.has(ctx, before+1)
}

// has compares the number of effects.
func (s *httpSuite) has(ctx context.Context, want int64) error {
	n, err := s.effects(ctx)
	if err == nil && n != want {
		err = fmt.Errorf("%d effects, want %d", n, want)
	}
	return err
}

// repeat sends request 1 again, and sees that it gets the first answer and has no effect.
func (s *httpSuite) repeat(ctx context.Context, key string, first httpAnswer) error {
	before, err := s.effects(ctx)
	if err != nil {
		return err
	}
	a, err := s.send(ctx, 1, key)
	if err != nil {
		return err
	}
	if !a.replayed() {
		err = fmt.Errorf("repeat does not say %s: true", replayedHeader)
	}
	return errors.Join(err, s.same(first, a), s.has(ctx, before))
}

// same says how a repeat differs from the first answer.
func (s *httpSuite) same(first, again httpAnswer) error {
	if first.status != again.status || first.body != again.body {
		return fmt.Errorf("repeat got %v after %v", again, first)
	}
	a, b := s.lasting(first.header), s.lasting(again.header)
	if !maps.EqualFunc(a, b, slices.Equal) {
		return fmt.Errorf("repeat got the headers %v after %v", b, a)
	}
	return nil
}

// lasting are the headers that every repeat has to get.
func (s *httpSuite) lasting(h http.Header) http.Header {
	h = h.Clone()
	for _, name := range append([]string{"Date", replayedHeader, "Connection", "Set-Cookie"}, s.cfg.Volatile...) {
		h.Del(name)
	}
	return h
}
