//go:build unix

package idemhttp_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/idem/idemhttp"
	"github.com/pgonce/pgonce/internal/fault"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// another is a second process of the service, as far as the database can tell: its own store and pool.
func (b *bench) another() *bench {
	b.t.Helper()
	o := &bench{t: b.t, db: b.db, pool: b.db.Pool(b.t), op: b.op, fn: b.fn}
	return o.start()
}

// hold makes the function say that it runs, and wait.
func (b *bench) hold() (inside <-chan struct{}, release func()) {
	in, out := make(chan struct{}, 1), make(chan struct{})
	b.fn = func(ctx context.Context, tx pgx.Tx, r *http.Request) (idemhttp.Response, error) {
		in <- struct{}{}
		<-out
		return b.refundOnce(ctx, tx, r)
	}
	return in, func() { close(out) }
}

// background sends a request whose reply comes when it comes.
func (b *bench) background(ctx context.Context, key string) <-chan reply {
	replies := make(chan reply, 1)
	go func() {
		r, err := b.trySend(ctx, http.MethodPost, "/refunds", key, "{}")
		if err != nil {
			r.body = err.Error()
		}
		replies <- r
	}()
	return replies
}

// While the first request runs, another one with its key is told so at once, in this process and in
// another, whatever its body.
func TestDuplicateInFlight(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	inside, release := b.hold()
	b.start()
	first := b.background(t.Context(), `"r1"`)
	received(t, "the function runs", inside)
	for _, service := range []*bench{b, b.another()} {
		for _, body := range []string{"{}", "{ }"} {
			r := service.post("r1", body)
			b.want(r, 409, idemhttp.ProblemInFlight)
			if r.header.Get("Retry-After") != "1" {
				t.Errorf("got %v", r.header)
			}
		}
	}
	release()
	if r := received(t, "the first reply", first); r.status != 201 || r.replayed() {
		t.Errorf("got %+v", r)
	}
	if r := b.post("r1", "{}"); !r.replayed() {
		t.Errorf("got %+v", r)
	}
	b.has(1, 1, 1)
}

// With Op.Wait, it gets the first one's response.
func TestDuplicateWaits(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.op.Wait = time.Minute
	inside, release := b.hold()
	b.start()
	other := b.another()
	first := b.background(t.Context(), "r1")
	received(t, "the function runs", inside)
	second := other.background(t.Context(), "r1")
	pgtest.Eventually(t, "the other process waits", func() bool {
		return b.db.Int(t, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == 1
	})
	release()
	a, z := received(t, "the first reply", first), received(t, "the second reply", second)
	if a.status != 201 || a.replayed() || !z.replayed() || z.body != a.body {
		t.Errorf("got %+v and %+v", a, z)
	}
	b.has(1, 1, 1)
}

// The client goes away while the function runs. The function is not disturbed, and a repeat gets its
// response.
func TestClientGoesAway(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	gone := make(chan struct{})
	b.wrap = func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer context.AfterFunc(r.Context(), func() { close(gone) })()
			next.ServeHTTP(w, r)
		})
	}
	inside, release := b.hold()
	b.start()
	ctx, leave := context.WithCancel(t.Context())
	reply := b.background(ctx, "r1")
	received(t, "the function runs", inside)
	leave()
	received(t, "the client's error", reply)
	received(t, "the server knows", gone)
	release()
	pgtest.Eventually(t, "the record", func() bool { return b.db.Int(t, `SELECT count(*) FROM pgonce.idem_record`) == 1 })
	b.has(1, 1, 1)
	again := b.post("r1", "{}")
	if !again.replayed() || again.body != `{"run":1}` {
		t.Errorf("got %+v", again)
	}
}

// At the first sign of a response, the effect and its record are there for everybody to see.
func TestCommitComesBeforeTheFirstByte(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.wrap = func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&firstByte{ResponseWriter: w, then: func() { b.has(1, 1, 1) }}, r)
		})
	}
	b.start()
	b.want(b.post("r1", "{}"), 201, "")
}

type firstByte struct {
	http.ResponseWriter
	then func()
}

func (f *firstByte) WriteHeader(status int) {
	f.then()
	f.ResponseWriter.WriteHeader(status)
}

func (f *firstByte) Flush() {
	f.then()
	f.ResponseWriter.(http.Flusher).Flush()
}

func (f *firstByte) Write(p []byte) (int, error) {
	f.then()
	return f.ResponseWriter.Write(p)
}

// The connection to the database is cut at COMMIT. The client is told what became of it: never a
// success that is not there, never an effect twice.
func TestCommitIsCut(t *testing.T) {
	t.Parallel()
	for kind, runs := range map[fault.Kind]int64{fault.CutBeforeCommit: 2, fault.CutAfterCommit: 1} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			proxy := fault.New(t, b.db.URL)
			b.pool = b.db.Via(proxy.URL()).Pool(t)
			b.fn = func(ctx context.Context, tx pgx.Tx, r *http.Request) (idemhttp.Response, error) {
				if b.runs.Load() == 1 {
					proxy.Arm(int64(tx.Conn().PgConn().PID()), kind)
				}
				if body, err := io.ReadAll(r.Body); string(body) != "{}" || err != nil {
					return idemhttp.Response{}, fmt.Errorf("body %q, %w", body, err)
				}
				return b.refundOnce(ctx, tx, r)
			}
			b.start()
			if r := b.post("r1", "{}"); r.status != 201 || r.replayed() || r.body != fmt.Sprintf(`{"run":%d}`, runs) {
				t.Errorf("got %+v", r)
			}
			b.has(1, 1, runs)
			if r := b.post("r1", "{}"); !r.replayed() || r.body != fmt.Sprintf(`{"run":%d}`, runs) {
				t.Errorf("got %+v", r)
			}
		})
	}
}

// Nobody can say what became of the request: that is what the client is told, and that no other key
// may be used.
func TestUnknownOutcome(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.fn = func(ctx context.Context, tx pgx.Tx, r *http.Request) (idemhttp.Response, error) {
		resp, err := b.refundOnce(ctx, tx, r)
		if err == nil {
			_, err = tx.Exec(ctx, `COMMIT`)
		}
		if r.URL.Path == "/404" {
			resp.Status = 404
		}
		return resp, err
	}
	b.start()
	for n, path := range []string{"/201", "/404"} { // nor does a response hide it that would not be stored
		for range 2 {
			r := b.send("POST", path, path[1:], "{}")
			b.want(r, 503, idemhttp.ProblemUnknownOutcome)
			if r.header.Get("Retry-After") == "" || strings.Contains(r.body, "transaction") {
				t.Errorf("got %+v", r)
			}
		}
		b.has(int64(n+1), int64(n+1), int64(n+1))
	}
}

// Without a database that can do it, nothing is done and nothing is told about why.
func TestUnavailable(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		sql  string
		with func(b *bench)
		says string
	}{
		"no free connection": {with: func(b *bench) {
			cfg := b.db.Config(b.t)
			cfg.MaxConns = 1
			b.pool = b.db.Open(b.t, cfg)
			b.cfg.MaxWait = 10 * time.Millisecond
			conn, err := b.pool.Acquire(b.t.Context())
			if err != nil {
				b.t.Fatal(err)
			}
			b.t.Cleanup(conn.Release)
		}, says: "pool"},
		"closed pool":     {with: func(b *bench) { b.pool.Close() }, says: "closed pool"},
		"no schema":       {sql: `DROP SCHEMA pgonce CASCADE; CREATE SCHEMA pgonce; CREATE TABLE pgonce.idem_record ()`, says: "migrations.Up"},
		"read-only":       {sql: `ALTER DATABASE %q SET default_transaction_read_only = on`, says: "read-only"},
		"a slow function": {with: func(b *bench) { b.op.MaxHandler = 10 * time.Millisecond }, says: "MaxHandler"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.fn = func(ctx context.Context, tx pgx.Tx, r *http.Request) (idemhttp.Response, error) {
				resp, err := b.refundOnce(ctx, tx, r)
				if name == "a slow function" {
					<-ctx.Done()
				}
				return resp, err
			}
			if tc.sql != "" {
				b.db.Exec(t, strings.ReplaceAll(tc.sql, "%q", `"`+b.db.Name+`"`))
			}
			if tc.with != nil {
				tc.with(b)
			}
			b.start()
			r := b.post("r1", "{}")
			b.want(r, 503, idemhttp.ProblemUnavailable)
			if r.header.Get("Retry-After") != "5" || !strings.Contains(b.log.String(), tc.says) || strings.Contains(r.body, tc.says) {
				t.Errorf("got %+v, logged %s", r, b.log.String())
			}
			b.has(0, 0, b.runs.Load())
		})
	}
}

func TestExpired(t *testing.T) {
	t.Parallel()
	b := newBench(t).start()
	b.want(b.post("r1", "{}"), 201, "")
	b.db.Exec(t, `UPDATE pgonce.idem_record SET result = NULL`)
	b.want(b.post("r1", "{}"), 410, idemhttp.ProblemExpired)
	b.has(1, 1, 1)
}

// A run that the server broke off is made again, with the whole body and whatever response came with it.
func TestFunctionIsRetried(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.fn = func(ctx context.Context, tx pgx.Tx, r *http.Request) (idemhttp.Response, error) {
		if body, err := io.ReadAll(r.Body); string(body) != "{}" || err != nil {
			return idemhttp.Response{}, fmt.Errorf("body %q, %w", body, err)
		}
		resp, err := b.refundOnce(ctx, tx, r)
		switch run := b.runs.Load(); {
		case err == nil && run < 4:
			_, err = tx.Exec(ctx, `DO $$ BEGIN RAISE SQLSTATE '40001'; END $$`)
			if run == 1 {
				resp = idemhttp.Response{} // else it cannot be stored, nor be final
			}
			if run == 3 {
				err = idem.Final(err)
			}
		}
		return resp, err
	}
	b.start()
	if r := b.post("r1", "{}"); r.status != 201 || r.body != `{"run":4}` || r.replayed() {
		t.Errorf("got %+v", r)
	}
	b.has(1, 1, 4)
}

// A record that something else has made under the operation is not taken for a response.
func TestRecordOfSomethingElse(t *testing.T) {
	t.Parallel()
	b := newBench(t).start()
	keys, err := idem.New(pgxdriver.New(b.pool), nil)
	if err != nil {
		t.Fatal(err)
	}
	for id, value := range map[string]any{"text": "receipt", "struct": struct{ RefundID int }{7}, "status": idemhttp.Response{Status: 99}} {
		_, err := idem.Do(t.Context(), keys, refund.Key("m1", id), idem.NoFingerprint(), func(context.Context, pgx.Tx) (any, error) { return value, nil })
		if err != nil {
			t.Fatal(err)
		}
		b.want(b.post(id, "{}"), 500, idemhttp.ProblemFailed)
	}
	b.has(0, 3, 0)
}

// What a client says about replays, and what a middleware has said before, is not passed on.
func TestForgedMarkers(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.wrap = func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Idempotent-Replayed", r.Header.Get("Idempotent-Replayed"))
			w.Header().Set("Content-Length", "1")
			next.ServeHTTP(w, r)
		})
	}
	b.start()
	forge := func(r *http.Request) { r.Header.Set("Idempotent-Replayed", "true") }
	for i := range 2 {
		if r := b.post("r1", "{}", forge); r.replayed() != (i > 0) || r.body != `{"run":1}` {
			t.Errorf("got %+v", r)
		}
	}
	if r := b.post("", "{}", forge); r.status != 400 || r.replayed() {
		t.Errorf("got %+v", r)
	}
}
