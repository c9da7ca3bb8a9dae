//go:build unix

package idemhttp_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/idem/idemhttp"
	"github.com/pgonce/pgonce/internal/pgtest"
)

const effects = `CREATE TABLE effect (name text NOT NULL)`

var refund = idem.Op{Name: "refund.create"}

// caller is whoever the bearer token says; some tokens are not what they should be.
func caller(r *http.Request) (string, error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return "", idemhttp.ErrUnauthenticated
	}
	switch token {
	case "revoked":
		return "", idemhttp.ErrForbidden
	case "down":
		return "", errors.New("token service: connection refused by 10.0.0.7")
	case "nameless":
		return "", nil
	default:
		return token, nil
	}
}

// bench is a service on a real socket, over a database of its own.
type bench struct {
	t    *testing.T
	db   *pgtest.DB
	pool *pgxpool.Pool
	op   idem.Op
	cfg  idemhttp.Config

	fn   idemhttp.Func[pgx.Tx]                // refundOnce, unless the test has another
	next http.HandlerFunc                     // a handler behind Middleware, in fn's place
	wrap func(next http.Handler) http.Handler // middleware
	runs atomic.Int64
	log  lockedBuffer

	url    string
	client *http.Client
}

func newBench(t *testing.T) *bench {
	t.Helper()
	db := pgtest.New(t)
	db.Exec(t, effects)
	b := &bench{t: t, db: db, pool: db.Pool(t), op: refund}
	b.fn = b.refundOnce
	return b
}

// refundOnce writes an effect and answers differently in each run, so that a replay can be told
// from another run.
func (b *bench) refundOnce(ctx context.Context, tx pgx.Tx, r *http.Request) (idemhttp.Response, error) {
	if _, err := tx.Exec(ctx, `INSERT INTO effect VALUES ($1)`, r.URL.Path); err != nil {
		return idemhttp.Response{}, err
	}
	resp, err := idemhttp.JSON(http.StatusCreated, map[string]int64{"run": b.runs.Load()})
	resp.Header.Set("Location", "/refunds/1")
	resp.Header.Set("ETag", `"v1"`)
	resp.Header.Set("Content-Language", "de")
	return resp, err
}

// start serves, until the test is over.
func (b *bench) start() *bench {
	b.t.Helper()
	keys, err := idem.New(pgxdriver.New(b.pool), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	if b.cfg.Logger == nil {
		b.cfg.Logger = slog.New(slog.NewTextHandler(&b.log, nil))
	}
	h, err := b.handler(keys)
	if err != nil {
		b.t.Fatal(err)
	}
	if b.wrap != nil {
		h = b.wrap(h)
	}
	b.url, b.client = serve(b.t, h)
	return b
}

func (b *bench) handler(keys *idem.Store[pgx.Tx]) (http.Handler, error) {
	if b.next != nil {
		once, err := idemhttp.Middleware(keys, b.op, caller, &b.cfg)
		if err != nil {
			return nil, err
		}
		return once(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b.runs.Add(1)
			b.next(w, r)
		})), nil
	}
	return idemhttp.Handle(keys, b.op, caller, func(ctx context.Context, tx pgx.Tx, r *http.Request) (idemhttp.Response, error) {
		b.runs.Add(1)
		return b.fn(ctx, tx, r)
	}, &b.cfg)
}

func serve(t *testing.T, h http.Handler) (url string, client *http.Client) {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.Start()
	t.Cleanup(srv.Close)
	client = &http.Client{
		Transport:     &http.Transport{},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t.Cleanup(client.CloseIdleConnections)
	return srv.URL, client
}

// reply is a response that has been read.
type reply struct {
	status int
	header http.Header
	body   string
}

func (r reply) replayed() bool { return r.header.Get("Idempotent-Replayed") == "true" }

// problem is the slug of the reply's type.
func (r reply) problem() string {
	var p struct {
		Type   string
		Status int
	}
	if r.header.Get("Content-Type") != "application/problem+json" || json.Unmarshal([]byte(r.body), &p) != nil || p.Status != r.status {
		return ""
	}
	return p.Type
}

// send sends a request of merchant m1, as change wants it.
func (b *bench) send(method, path, key, body string, change ...func(*http.Request)) reply {
	b.t.Helper()
	r, err := b.trySend(b.t.Context(), method, path, key, body, change...)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func (b *bench) trySend(ctx context.Context, method, path, key, body string, change ...func(*http.Request)) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, method, b.url+path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	req.Header.Set("Authorization", "Bearer m1")
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	for _, c := range change {
		c(req)
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(data)}, err
}

func (b *bench) post(key, body string, change ...func(*http.Request)) reply {
	b.t.Helper()
	return b.send(http.MethodPost, "/refunds", key, body, change...)
}

func as(token string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
}

// want checks a reply against a status and, where typ is not empty, the type of a problem.
func (b *bench) want(r reply, status int, typ string) {
	b.t.Helper()
	if r.status != status || r.problem() != typ {
		b.t.Errorf("got %d %q, want %d %q", r.status, r.body, status, typ)
	}
}

// has checks how many effects and records there are, and how often the function ran.
func (b *bench) has(effects, records, runs int64) {
	b.t.Helper()
	e, r := b.db.Int(b.t, `SELECT count(*) FROM effect`), b.db.Int(b.t, `SELECT count(*) FROM pgonce.idem_record`)
	if e != effects || r != records || b.runs.Load() != runs {
		b.t.Errorf("%d effects, %d records, %d runs, want %d, %d, %d", e, r, b.runs.Load(), effects, records, runs)
	}
}

// lockedBuffer is a log that a test may read while the service writes.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// received waits for a value, as long as a slow machine may take.
func received[T any](t *testing.T, what string, from <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-from:
	case <-time.After(time.Minute):
		t.Fatalf("timed out: %s", what)
	}
	return value
}
