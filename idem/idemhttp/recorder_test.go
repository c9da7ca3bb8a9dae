//go:build unix

package idemhttp_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/idem/idemhttp"
	"github.com/pgonce/pgonce/internal/fault"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// The first caller gets all headers, the others those that are the same for everybody. Those of middleware are its
// own each time, but for what the handler has made of them.
func TestHeadersThatAreReplayed(t *testing.T) {
	t.Parallel()
	b := newMiddleware(t, func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		for name, value := range map[string]string{
			"Set-Cookie": "session=1", "Date": "Thu, 01 Jan 1970 00:00:00 GMT", "X-Total": "7", "X-Other": "8", "ETag": `"1"`,
			"Idempotent-Replayed": "true", "Trailer": "X-Sum", "Content-Length": "6", "Www-Authenticate": "Bearer",
		} {
			h.Set(name, value)
		}
		h.Add("Vary", "Accept")
		h.Del("Content-Language")
		w.WriteHeader(http.StatusOK)
		h.Set("X-Sum", "late")
		h.Set(http.TrailerPrefix+"X-Late", "late")
		h.Set("ETag", `"late"`)
		_, _ = io.WriteString(w, "<html>")
	})
	b.cfg.Headers = []string{"x-total"}
	n := 0
	b.wrap = func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n++
			w.Header().Set("X-Request-Id", fmt.Sprint(n))
			w.Header().Set("Vary", "Origin")
			w.Header().Set("Content-Language", "de")
			next.ServeHTTP(w, r)
		})
	}
	b.start()
	first, again := b.raw(rawPost+"Idempotency-Key: r1\r\nContent-Length: 0\r\n\r\n"), b.post("r1", "")
	for _, want := range []string{
		"Set-Cookie: session=1\r\n", "X-Total: 7\r\n", "X-Other: 8\r\n", "Etag: \"1\"\r\n", "X-Request-Id: 1\r\n", "Vary: Origin\r\nVary: Accept\r\n",
		"Content-Type: text/html; charset=utf-8\r\n", "Content-Length: 6\r\n",
	} {
		if !strings.Contains(first, want) {
			t.Errorf("no %q in %s", want, first)
		}
	}
	for _, not := range []string{"late", "Trailer", "Idempotent-Replayed", "Content-Language", "chunked"} {
		if strings.Contains(first, not) {
			t.Errorf("%q in %s", not, first)
		}
	}
	again.header.Del("Date")
	want := http.Header{
		"X-Total": {"7"}, "Etag": {`"1"`}, "X-Request-Id": {"2"}, "Vary": {"Origin", "Accept"}, "Content-Type": {"text/html; charset=utf-8"},
		"Content-Length": {"6"}, "Idempotent-Replayed": {"true"},
	}
	if fmt.Sprint(again.header) != fmt.Sprint(want) || again.body != "<html>" {
		t.Errorf("got %+v, want %v", again, want)
	}
}

// What the handler has compressed is stored as it is, with its Content-Encoding.
func TestCompressedResponse(t *testing.T) {
	t.Parallel()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write([]byte(`{"refund":1}`)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	b := newMiddleware(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(packed.Bytes())
	})
	b.start()
	b.client.Transport.(*http.Transport).DisableCompression = true
	for i := range 2 {
		r := b.post("r1", "{}")
		if r.body != packed.String() || r.header.Get("Content-Encoding") != "gzip" || r.header.Get("Content-Type") != "" && i == 0 && strings.HasPrefix(r.header.Get("Content-Type"), "text") || r.replayed() != (i > 0) {
			t.Errorf("got %+v", r)
		}
	}
}

// What a handler does wrong with its ResponseWriter is found before anything is committed.
func TestHandlersMistakes(t *testing.T) {
	t.Parallel()
	var do http.HandlerFunc
	b := newMiddleware(t, func(w http.ResponseWriter, r *http.Request) { do(w, r) })
	b.cfg.MaxResponse = 1000
	b.start()
	write := func(status, n int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			for i := range n {
				if _, err := w.Write([]byte("0123456789")); (err != nil) != (i >= 100) { // and is not kept, however long it goes on
					t.Errorf("write %d: %v", i, err)
				}
			}
		}
	}
	length := func(declared string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", declared)
			_, _ = io.WriteString(w, "12345")
		}
	}
	for says, h := range map[string]http.HandlerFunc{
		"more than 1000 bytes":    write(201, 103),
		"status 42":               write(42, 0),
		"status 101":              write(101, 0),
		"status 600":              write(600, 1),
		`Content-Length is \"6\"`: length("6"),
		`Content-Length is \"4\"`: length("4"),
		`Content-Length is \"x\"`: length("x"),
		"control character":       func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Location", "/\r\nSet-Cookie: a=b") },
	} {
		do = h
		r := b.post("r1", "{}")
		b.want(r, 500, idemhttp.ProblemFailed)
		if !strings.Contains(b.log.String(), says) || len(r.header.Values("Set-Cookie")) > 0 {
			t.Errorf("%s: got %+v, logged %s", says, r, b.log.String())
		}
	}
	b.has(0, 0, 8)
	do = write(201, 100)
	if r := b.post("r1", "{}"); r.status != 201 || len(r.body) != 1000 {
		t.Errorf("got %+v", r)
	}
}

// What net/http forgives is forgiven here: two WriteHeaders, none, a body where none can be, one that is too large to
// be written at once.
func TestHandlersHabits(t *testing.T) {
	t.Parallel()
	b := newMiddleware(t, func(w http.ResponseWriter, r *http.Request) {
		var err error
		switch r.URL.Path {
		case "/twice":
			w.WriteHeader(http.StatusCreated)
			w.WriteHeader(http.StatusInternalServerError)
		case "/nobody":
			w.WriteHeader(http.StatusNoContent)
			if _, err = io.WriteString(w, "x"); errors.Is(err, http.ErrBodyNotAllowed) {
				err = http.NewResponseController(w).Flush()
			}
		case "/deadline":
			err = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Hour))
			err = errors.Join(err, http.NewResponseController(w).SetReadDeadline(time.Time{}), http.NewResponseController(w).EnableFullDuplex())
		case "/hijack":
			if _, ok := w.(http.Hijacker); ok {
				t.Error("a Hijacker")
			}
			if _, _, hijacked := http.NewResponseController(w).Hijack(); !errors.Is(hijacked, http.ErrNotSupported) {
				t.Errorf("got %v", hijacked)
			}
		}
		if err != nil {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
	})
	b.start()
	for path, status := range map[string]int{"/nothing": 200, "/twice": 201, "/nobody": 204, "/deadline": 200, "/hijack": 200} {
		for i := range 2 {
			if r := b.send("POST", path, path[1:], "{}"); r.status != status || r.body != "" || r.replayed() != (i > 0) {
				t.Errorf("%s: got %+v", path, r)
			}
		}
	}
	b.has(5, 5, 5)
	if !strings.Contains(b.log.String(), "superfluous WriteHeader") {
		t.Errorf("logged %s", b.log.String())
	}
}

// A goroutine that the handler has left writes into nothing, whether the run was kept or not.
func TestLeakedWriter(t *testing.T) {
	t.Parallel()
	release, wrote := make(chan struct{}), make(chan error, 1)
	b := newMiddleware(t, func(w http.ResponseWriter, _ *http.Request) {
		go func() {
			<-release
			_, err := io.WriteString(w, "late")
			w.WriteHeader(500)
			idemhttp.Final(w)
			wrote <- err
		}()
	})
	b.start()
	b.want(b.post("r1", "{}"), 200, "")
	close(release)
	if err := received(t, "the late write", wrote); err == nil || !strings.Contains(err.Error(), "has returned") {
		t.Errorf("got %v", err)
	}
	if r := b.post("r1", "{}"); r.status != 200 || r.body != "" {
		t.Errorf("got %+v", r)
	}
}

// A panic is rolled back and goes on to the server; a repeat runs the handler.
func TestHandlerPanics(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]any{"abort": http.ErrAbortHandler, "bug": "a bug"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.next = func(w http.ResponseWriter, r *http.Request) {
				b.effect(w, r)
				b.created(w, r)
				if b.runs.Load() == 1 {
					panic(value)
				}
			}
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
			b.start()
			if got := b.raw(rawPost + "Idempotency-Key: r1\r\nContent-Length: 0\r\n\r\n"); got != "" {
				t.Errorf("got %s", got)
			}
			if p := received(t, "the panic", caught); p != value {
				t.Errorf("got %v", p)
			}
			b.has(0, 0, 1)
			b.want(b.post("r1", ""), 201, "")
			b.has(1, 1, 2)
		})
	}
}

// The client goes away while the handler runs, which is not told: a repeat gets the response.
func TestHandlersClientGoesAway(t *testing.T) {
	t.Parallel()
	inside, release, gone := make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	b := newBench(t)
	b.next = func(w http.ResponseWriter, r *http.Request) {
		inside <- struct{}{}
		<-release
		b.effect(w, r) // on the request's ctx, which has not ended
		b.created(w, r)
	}
	b.wrap = func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer context.AfterFunc(r.Context(), func() { close(gone) })()
			next.ServeHTTP(w, r)
		})
	}
	b.start()
	ctx, leave := context.WithCancel(t.Context())
	reply := b.background(ctx, "r1")
	received(t, "the handler runs", inside)
	b.want(b.post("r1", "{}"), 409, idemhttp.ProblemInFlight)
	leave()
	received(t, "the client's error", reply)
	received(t, "the server knows", gone)
	close(release)
	pgtest.Eventually(t, "the record", func() bool { return b.db.Int(t, `SELECT count(*) FROM pgonce.idem_record`) == 1 })
	if again := b.post("r1", "{}"); !again.replayed() || again.body != `{"run":1}` {
		t.Errorf("got %+v", again)
	}
	b.has(1, 1, 1)
}

// The connection to the database is cut at COMMIT. Each run has a writer, a request and a transaction of its own, so
// nothing of the first is in the response of the second.
func TestHandlersCommitIsCut(t *testing.T) {
	t.Parallel()
	for kind, runs := range map[fault.Kind]int64{fault.CutBeforeCommit: 2, fault.CutAfterCommit: 1} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			proxy := fault.New(t, b.db.URL)
			b.pool = b.db.Via(proxy.URL()).Pool(t)
			b.next = func(w http.ResponseWriter, r *http.Request) {
				if body, err := io.ReadAll(r.Body); string(body) != "{}" || err != nil || r.Header.Get("X-Run") != "" {
					t.Errorf("body %q, %v, header %v", body, err, r.Header)
				}
				r.Header.Set("X-Run", "before")
				if tx, err := idemhttp.Tx[pgx.Tx](r.Context()); err == nil && b.runs.Load() == 1 {
					proxy.Arm(int64(tx.Conn().PgConn().PID()), kind)
				}
				w.Header().Set("X-Run", fmt.Sprint(w.Header().Get("X-Run"), b.runs.Load()))
				b.effect(w, r)
				b.created(w, r)
			}
			b.start()
			if r := b.post("r1", "{}"); r.status != 201 || r.replayed() || r.body != fmt.Sprintf(`{"run":%d}`, runs) || r.header.Get("X-Run") != fmt.Sprint(runs) {
				t.Errorf("got %+v", r)
			}
			b.has(1, 1, runs)
		})
	}
}

// A handler that is slower than MaxHandler, or whose transaction failed, has committed nothing, whatever it says.
func TestHandlersTransactionIsLost(t *testing.T) {
	t.Parallel()
	b := newMiddleware(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow":
			<-r.Context().Done()
		case "/failed":
			if tx, err := idemhttp.Tx[pgx.Tx](r.Context()); err == nil {
				_, _ = tx.Exec(r.Context(), `SELECT 1/0`)
			}
		case "/commits":
			if tx, err := idemhttp.Tx[pgx.Tx](r.Context()); err == nil {
				_, _ = tx.Exec(r.Context(), `COMMIT`)
			}
		}
		w.WriteHeader(http.StatusCreated)
	})
	b.op.MaxHandler = 2 * time.Second
	b.start()
	b.want(b.send("POST", "/slow", "r1", "{}"), 503, idemhttp.ProblemUnavailable)
	b.want(b.send("POST", "/failed", "r2", "{}"), 500, idemhttp.ProblemFailed)
	b.has(0, 0, 2)
	for range 2 { // nobody can take it back, and nobody repeats it
		r := b.send("POST", "/commits", "r3", "{}")
		b.want(r, 503, idemhttp.ProblemUnknownOutcome)
		if r.header.Get("Retry-After") == "" {
			t.Errorf("got %v", r.header)
		}
	}
	b.has(1, 1, 3)
}

// A time-out of net/http's around the middleware answers early, and the effect has its record all the same. One inside
// of it rolls back, and what its handler still writes is too late.
func TestTimeoutHandlers(t *testing.T) {
	t.Parallel()
	for name, place := range map[string]struct {
		outside bool
		effects int64
	}{"outside": {true, 1}, "inside": {false, 0}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			release, late := make(chan struct{}), make(chan error, 1)
			slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				tx, err := idemhttp.Tx[pgx.Tx](r.Context())
				<-release
				if err == nil {
					_, err = tx.Exec(context.WithoutCancel(r.Context()), `INSERT INTO effect VALUES ('late')`)
				}
				late <- err
				b.created(w, r)
			})
			b.next = slow
			limit := func(next http.Handler) http.Handler { return http.TimeoutHandler(next, 20*time.Millisecond, "slow") }
			if place.outside {
				b.wrap = limit
			} else {
				b.next = limit(slow).ServeHTTP
			}
			b.start()
			if r := b.post("r1", "{}"); r.status != 503 || r.body != "slow" || r.replayed() {
				t.Errorf("got %+v", r)
			}
			close(release)
			if err := received(t, "the handler's write", late); (err == nil) != place.outside {
				t.Errorf("got %v", err)
			}
			pgtest.Eventually(t, "the record", func() bool {
				return b.db.Int(t, `SELECT count(*) FROM pgonce.idem_record`) == place.effects
			})
			b.has(place.effects, place.effects, 1)
		})
	}
}
