package idemtest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgonce/pgonce/idem/idemtest"
)

// recording is a testing.TB that remembers what it is told, and does not fail.
type recording struct {
	testing.TB
	mu   sync.Mutex
	said []string
}

func (r *recording) Helper() {}

func (r *recording) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, fmt.Sprintf(format, args...))
}

func (r *recording) Fatal(args ...any) {
	r.Errorf("%s", fmt.Sprint(args...))
	runtime.Goexit()
}

func (r *recording) Fatalf(format string, args ...any) { r.Fatal(fmt.Sprintf(format, args...)) }

// judged is what a suite says.
func judged(t *testing.T, suite func(testing.TB)) string {
	t.Helper()
	r := &recording{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		suite(r)
	}()
	<-done
	return strings.Join(r.said, "\n")
}

// service is one that does right, in memory, but for its faults.
type service struct {
	mu      sync.Mutex
	records map[string]*record
	effects int64
	broken  map[string]bool
}

type record struct {
	request  string
	done     bool
	response answer
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) send(w http.ResponseWriter) {
	for name, values := range a.header {
		w.Header()[name] = values
	}
	w.WriteHeader(a.status)
	_, _ = io.WriteString(w, a.body)
}

func (s *service) problem(w http.ResponseWriter, status int, header ...string) {
	if s.broken["plain errors"] {
		w.WriteHeader(status)
		return
	}
	w.Header().Set("Content-Type", "application/problem+json")
	for i := 0; i < len(header); i += 2 {
		w.Header().Set(header[i], header[i+1])
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]int{"status": status})
}

func (s *service) key(r *http.Request) (key string, ok bool) {
	values := r.Header.Values("Idempotency-Key")
	switch {
	case s.broken["no key needed"] && len(values) == 0:
		return time.Now().String(), true
	case len(values) == 0, len(values) > 1 && !s.broken["first of two keys"]:
		return "", false
	}
	key = values[0]
	if !s.broken["quotes are part of the key"] {
		key = strings.Trim(key, `"`)
	}
	if s.broken["one key for all"] && key != "" {
		key = "k"
	}
	return key, s.broken["empty keys"] || key != "" && !strings.Contains(key, ",")
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key, ok := s.key(r)
	if !ok {
		s.problem(w, http.StatusBadRequest)
		return
	}
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	rec := s.records[key]
	switch {
	case rec == nil, s.broken["never remembers"], s.broken["check, then act"] && !rec.done:
		if rec == nil {
			rec = &record{request: string(body)}
			s.records[key] = rec
		}
		s.mu.Unlock()
		s.execute(w, r, rec, key)
		return
	case rec.request != string(body) && !s.broken["any body"]:
		s.problem(w, http.StatusUnprocessableEntity)
	case !rec.done && s.broken["409 without Retry-After"]:
		s.problem(w, http.StatusConflict)
	case !rec.done && s.broken["503 for duplicates"]:
		s.problem(w, http.StatusServiceUnavailable)
	case !rec.done:
		s.problem(w, http.StatusConflict, "Retry-After", "1")
	default:
		s.replay(w, rec)
	}
	s.mu.Unlock()
}

// execute takes a moment, and the lock for each of its steps alone.
func (s *service) execute(w http.ResponseWriter, r *http.Request, rec *record, key string) {
	hold := 10 * time.Millisecond
	if s.broken["check, then act"] || s.broken["409 without Retry-After"] || s.broken["503 for duplicates"] || s.broken["forgets when the client leaves"] {
		hold = 300 * time.Millisecond // long enough for it to be seen on a machine that has other things to do
	}
	timer := time.NewTimer(hold)
	defer timer.Stop()
	s.mu.Lock()
	s.effects++
	if s.broken["two effects"] {
		s.effects++
	}
	n := s.effects
	s.mu.Unlock()
	if s.broken["forgets when the client leaves"] {
		select {
		case <-timer.C:
		case <-r.Context().Done():
			s.mu.Lock()
			delete(s.records, key)
			s.mu.Unlock()
			return
		}
	} else {
		<-timer.C
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rec.response = answer{201, http.Header{"Location": {fmt.Sprint("/", n)}, "X-Request-Id": {fmt.Sprint(n)}}, fmt.Sprint("effect ", n)}
	rec.done = true
	h := rec.response
	if s.broken["marks the first"] || s.broken["believes the client"] && r.Header.Get("Idempotent-Replayed") != "" {
		h.header = h.header.Clone()
		h.header.Set("Idempotent-Replayed", "true")
	}
	h.send(w)
}

func (s *service) replay(w http.ResponseWriter, rec *record) {
	a := rec.response
	a.header = a.header.Clone()
	a.header.Set("X-Request-Id", "another")
	a.header.Set("Idempotent-Replayed", "true")
	switch {
	case s.broken["no marker"]:
		a.header.Del("Idempotent-Replayed")
	case s.broken["another status"]:
		a.status = 200
	case s.broken["another body"]:
		a.body = "done already"
	case s.broken["no headers"]:
		a.header.Del("Location")
	}
	a.send(w)
}

func (s *service) count(context.Context) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.effects, nil
}

func request(n int) *http.Request {
	return httptest.NewRequest(http.MethodPost, "/refunds", bytes.NewReader(fmt.Appendf(nil, "%d", n)))
}

func verdict(t *testing.T, faults ...string) string {
	t.Helper()
	s := &service{records: map[string]*record{}, broken: map[string]bool{}}
	for _, f := range faults {
		s.broken[f] = true
	}
	return judged(t, func(tb testing.TB) {
		tb.Helper()
		idemtest.HTTP(tb, s, request, s.count, &idemtest.HTTPConfig{Volatile: []string{"x-request-id"}})
	})
}

// A service that does right passes, and one that does one thing wrong is told so.
func TestHTTPFindsWhatIsBroken(t *testing.T) {
	t.Parallel()
	if said := verdict(t); said != "" {
		t.Fatalf("of one that does right:\n%s", said)
	}
	for fault, says := range map[string]string{
		"never remembers":                "replay: repeat does not say",
		"two effects":                    "replay: 2 effects, want 1",
		"no marker":                      "replay: repeat does not say Idempotent-Replayed",
		"marks the first":                "first response has Idempotent-Replayed",
		"believes the client":            "replay: first response has Idempotent-Replayed",
		"another status":                 "replay: repeat got 200",
		"another body":                   `repeat got 201 "done already"`,
		"no headers":                     "repeat got the headers",
		"quotes are part of the key":     "forms of the key: repeat does not say",
		"one key for all":                "replay: first response has",
		"any body":                       "another request: answered 201",
		"plain errors":                   "want application/problem+json that says 422",
		"no key needed":                  "bad keys: 0 keys []: answered 201",
		"first of two keys":              "bad keys: 2 keys",
		"empty keys":                     `bad keys: 1 keys [""]: answered 201`,
		"check, then act":                "of 8 got an answer that is no replay",
		"409 without Retry-After":        "without Retry-After",
		"503 for duplicates":             "duplicates at once: answered 503",
		"forgets when the client leaves": "client goes away: ",
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			if said := verdict(t, fault); !strings.Contains(said, says) {
				t.Errorf("said %q, want %q", said, says)
			}
		})
	}
}

// What cannot be asked, is slow, or cannot be counted is no pass.
func TestHTTPFailsWhereItCannotAsk(t *testing.T) {
	t.Parallel()
	s := &service{records: map[string]*record{}}
	uncounted := func(context.Context) (int64, error) { return 0, errors.New("no table") }
	hang := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	refuses := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	for says, suite := range map[string]struct {
		h       http.Handler
		base    string
		effects func(context.Context) (int64, error)
	}{
		"nil handler":            {effects: s.count},
		`base URL "x" has no`:    {base: "x", effects: s.count},
		"effects is nil":         {h: s},
		"no table":               {h: s, effects: uncounted},
		"connection refused":     {base: "http://127.0.0.1:1", effects: s.count},
		"deadline exceeded":      {h: hang, effects: s.count},
		"first request answered": {h: refuses, effects: s.count},
	} {
		t.Run(says, func(t *testing.T) {
			t.Parallel()
			said := judged(t, func(tb testing.TB) {
				tb.Helper()
				cfg := &idemtest.HTTPConfig{}
				if says == "deadline exceeded" {
					cfg.Patience = 20 * time.Millisecond
				}
				if suite.base != "" {
					idemtest.HTTPAt(tb, suite.base, request, suite.effects, cfg)
				} else {
					idemtest.HTTP(tb, suite.h, request, suite.effects, cfg)
				}
			})
			if !strings.Contains(said, says) {
				t.Errorf("said %q", said)
			}
		})
	}
}

// A service that is running somewhere, below a path, and lets requests without a key through.
func TestHTTPAt(t *testing.T) {
	t.Parallel()
	s := &service{records: map[string]*record{}, broken: map[string]bool{"no key needed": true}}
	mux := http.NewServeMux()
	mux.Handle("POST /v1/refunds", s)
	srv := httptest.NewServer(mux)
	defer srv.Close()
	cfg := &idemtest.HTTPConfig{Volatile: []string{"X-Request-Id"}, KeyOptional: true, Callers: 1, Client: srv.Client()}
	for range 2 {
		idemtest.HTTPAt(t, srv.URL+"/v1/", request, s.count, cfg)
	}
}
