//go:build unix

package idemhttp_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/idem/idemhttp"
)

// newMiddleware is a bench whose handler writes an effect, and then does what the test wants.
func newMiddleware(t *testing.T, then http.HandlerFunc) *bench {
	t.Helper()
	b := newBench(t)
	b.next = func(w http.ResponseWriter, r *http.Request) {
		b.effect(w, r)
		then(w, r)
	}
	return b
}

// effect writes one, in the request's transaction.
func (b *bench) effect(w http.ResponseWriter, r *http.Request) {
	tx, err := idemhttp.Tx[pgx.Tx](r.Context())
	if err == nil {
		_, err = tx.Exec(r.Context(), `INSERT INTO effect VALUES ($1)`, r.URL.Path)
	}
	if err != nil {
		b.t.Error(err)
		w.WriteHeader(http.StatusInternalServerError)
	}
}

// created answers differently in each run.
func (b *bench) created(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Location", "/refunds/1")
	w.WriteHeader(http.StatusCreated)
	_, _ = fmt.Fprintf(w, `{"run":%d}`, b.runs.Load())
}

// newRefunds is a bench whose handler answers as refundOnce does.
func newRefunds(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	b.next = func(w http.ResponseWriter, r *http.Request) {
		b.effect(w, r)
		b.created(w, r)
	}
	return b
}

// A handler as net/http has it: the replay is its first response, byte by byte on the wire.
func TestMiddlewareReplaysByteByByte(t *testing.T) {
	t.Parallel()
	b := newRefunds(t).start()
	const request = rawPost + "Idempotency-Key: \"r1\"\r\nContent-Length: 2\r\n\r\n{}"
	first, again := b.raw(request), b.raw(request)
	want := strings.Join([]string{
		"HTTP/1.1 201 Created", "Content-Length: 9", "Content-Type: application/json", "Location: /refunds/1", "Connection: close", "", `{"run":1}`,
	}, "\r\n")
	if first != want {
		t.Errorf("got\n%s\nwant\n%s", first, want)
	}
	if marker := "Idempotent-Replayed: true\r\n"; strings.Count(again, marker) != 1 || strings.Replace(again, marker, "", 1) != first {
		t.Errorf("got\n%s\nafter\n%s", again, first)
	}
	b.want(b.post("r1", "{ }"), 422, idemhttp.ProblemMismatch)
	b.want(b.post("", "{}"), 400, idemhttp.ProblemMissingKey)
	b.want(b.post("r1", "{}", as("revoked")), 403, idemhttp.ProblemForbidden)
	b.has(1, 1, 1)
}

// However the handler writes, and however much it wants to be rid of it: at the first byte on the wire, the
// effect and its record are there for everybody to see.
func TestMiddlewareCommitsBeforeTheFirstByte(t *testing.T) {
	t.Parallel()
	b := newMiddleware(t, func(w http.ResponseWriter, _ *http.Request) {
		c := http.NewResponseController(w)
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusAccepted)
		for range 3 {
			_, errWrite := io.WriteString(w, strings.Repeat("x", 5000))
			w.(http.Flusher).Flush()
			if err := errors.Join(errWrite, c.Flush()); err != nil {
				t.Error(err)
			}
		}
	})
	b.wrap = func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&firstByte{ResponseWriter: w, then: func() { b.has(1, 1, 1) }}, r)
		})
	}
	b.start()
	for i := range 2 {
		if r := b.post("r1", "{}"); r.status != 202 || len(r.body) != 15000 || r.replayed() != (i > 0) {
			t.Errorf("got %d with %d bytes, replayed: %t", r.status, len(r.body), r.replayed())
		}
	}
	b.has(1, 1, 1)
}

// The status decides about the transaction.
func TestMiddlewareFates(t *testing.T) {
	t.Parallel()
	var status int
	var final bool
	b := newMiddleware(t, func(w http.ResponseWriter, _ *http.Request) {
		if final {
			idemhttp.Final(w)
		}
		w.Header().Set("Retry-After", "120")
		http.Error(w, "said", status)
	})
	b.start()
	effects, runs := int64(0), int64(0)
	for _, tc := range []struct {
		status       int
		final        bool
		want         int
		kept, effect bool
	}{
		{200, false, 200, true, true},
		{202, false, 202, true, true},
		{303, false, 303, true, true},
		{400, false, 400, false, false},
		{404, false, 404, false, false},
		{422, true, 422, true, false},
		{404, true, 404, true, false},
		{401, false, 401, false, false},
		{409, false, 409, false, false},
		{429, false, 429, false, false},
		{409, true, 500, false, false}, // what cannot be final is a mistake
		{502, true, 500, false, false},
		{201, true, 500, false, false},
		{500, false, 500, false, false},
		{503, false, 503, false, false},
	} {
		status, final = tc.status, tc.final
		key := fmt.Sprintf("%d-%t", tc.status, tc.final)
		first, again := b.post(key, "{}"), b.post(key, "{}")
		if first.status != tc.want || again.status != tc.want || first.replayed() || again.replayed() != tc.kept || again.body != first.body ||
			again.header.Get("Content-Type") != first.header.Get("Content-Type") {
			t.Errorf("%+v: %+v, then %+v", tc, first, again)
		}
		if tc.want == tc.status && (first.body != "said\n" || first.header.Get("Retry-After") != "120") {
			t.Errorf("%+v: %+v", tc, first)
		}
		runs += 2
		if tc.effect {
			effects++
		}
		if tc.kept {
			runs--
		}
	}
	b.has(effects, effects+2, runs)
	if !strings.Contains(b.log.String(), "status 409 cannot be final") {
		t.Errorf("logged %s", b.log.String())
	}
}

// The user decides what is stored. A success that was rolled back is not among what can be decided.
func TestFateIsTheUsers(t *testing.T) {
	t.Parallel()
	var status int
	b := newMiddleware(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
	b.cfg.Fate = func(status int, final bool) idemhttp.Fate {
		switch status {
		case 402: // the attempt is on record
			return idemhttp.Commit
		case 404, 200:
			return idemhttp.Refuse
		case 302, 204:
			return idemhttp.Forget
		case 410:
			return 0
		}
		return idemhttp.DefaultFate(status, final)
	}
	b.start()
	for _, tc := range []struct {
		status, want int
		replayed     bool
	}{{402, 402, true}, {404, 404, true}, {302, 302, false}, {201, 201, true}, {500, 500, false}, {200, 500, false}, {204, 500, false}, {410, 500, false}} {
		status = tc.status
		key := fmt.Sprint(status)
		if first, again := b.post(key, "{}"), b.post(key, "{}"); first.status != tc.want || again.status != tc.want || first.replayed() || again.replayed() != tc.replayed {
			t.Errorf("%+v: %+v, then %+v", tc, first, again)
		}
	}
	b.has(2, 3, 3+2*5)
	if !strings.Contains(b.log.String(), "a success that was rolled back") || !strings.Contains(b.log.String(), "has the fate 0") {
		t.Errorf("logged %s", b.log.String())
	}
}
