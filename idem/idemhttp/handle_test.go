//go:build unix

package idemhttp_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/driver/sqldriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/idem/idemhttp"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// raw sends bytes over a connection of its own and returns those that come back, the Date aside.
func (b *bench) raw(request string) string {
	b.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		b.t.Fatal(err)
	}
	if _, err := conn.Write([]byte(request)); err != nil {
		b.t.Fatal(err)
	}
	var all strings.Builder
	lines := bufio.NewReader(conn)
	for err == nil {
		var line string
		if line, err = lines.ReadString('\n'); !strings.HasPrefix(line, "Date: ") {
			all.WriteString(line)
		}
	}
	return all.String()
}

const rawPost = "POST /refunds HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer m1\r\n"

// The replay is the first response, byte by byte on the wire, and says that it is a replay.
func TestReplayIsByteIdentical(t *testing.T) {
	t.Parallel()
	b := newBench(t).start()
	const request = rawPost + "Idempotency-Key: \"r1\"\r\nContent-Length: 2\r\n\r\n{}"
	first := b.raw(request)
	again := b.raw(request)
	want := strings.Join([]string{
		"HTTP/1.1 201 Created", "Content-Language: de", "Content-Length: 9", "Content-Type: application/json", `Etag: "v1"`,
		"Location: /refunds/1", "Connection: close", "", `{"run":1}`,
	}, "\r\n")
	if first != want {
		t.Errorf("got\n%s\nwant\n%s", first, want)
	}
	if marker := "Idempotent-Replayed: true\r\n"; strings.Count(again, marker) != 1 || strings.Replace(again, marker, "", 1) != first {
		t.Errorf("got\n%s\nafter\n%s", again, first)
	}
	b.has(1, 1, 1)
}

func TestQuotedAndBareNameOneKey(t *testing.T) {
	t.Parallel()
	b := newBench(t).start()
	for i, key := range []string{`"abc"`, `abc`, ` abc `, `"abc" `} {
		if r := b.post(key, "{}"); r.status != 201 || r.replayed() != (i > 0) || r.body != `{"run":1}` {
			t.Errorf("%q: got %+v", key, r)
		}
	}
	b.has(1, 1, 1)
}

// Every status of success is stored with its body, and none of them loses its headers.
func TestSuccessesAreStored(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	responses := map[string]idemhttp.Response{
		"/0":   {},
		"/200": {Status: 200, Body: []byte("\x00\xff binary \r\n")},
		"/202": {Status: 202, Header: http.Header{"content-type": {"text/plain"}}, Body: []byte("wait")},
		"/204": {Status: 204, Header: http.Header{"ETag": {`"1"`}}},
		"/303": {Status: 303, Header: http.Header{"Location": {"/refunds/7"}}},
		"/399": {Status: 399, Body: []byte("<script>")},
	}
	b.fn = func(ctx context.Context, tx pgx.Tx, r *http.Request) (idemhttp.Response, error) {
		_, err := tx.Exec(ctx, `INSERT INTO effect VALUES ('a')`)
		return responses[r.URL.Path], err
	}
	b.start()
	for path, want := range responses {
		first, again := b.send("POST", path, path[1:], ""), b.send("POST", path, path[1:], "")
		if first.replayed() || !again.replayed() || first.status != max(200, want.Status) || again.status != first.status ||
			first.body != string(want.Body) || again.body != first.body {
			t.Errorf("%s: %+v, then %+v", path, first, again)
		}
		again.header.Del("Idempotent-Replayed")
		for name := range first.header {
			if name != "Date" && first.header.Get(name) != again.header.Get(name) {
				t.Errorf("%s: %s was %q, then %q", path, name, first.header.Get(name), again.header.Get(name))
			}
		}
		if typ := first.header.Get("Content-Type"); path == "/399" && typ != "application/octet-stream" {
			t.Errorf("%s: sniffed as %q", path, typ)
		}
	}
	b.has(6, 6, 6)
}

// Responses that say "not you", "not now" or "broken", and refusals that are not final: sent as they
// are, with everything rolled back, and the function runs again for a repeat.
func TestUnstoredResponses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	statuses := []int{400, 401, 402, 403, 404, 408, 409, 410, 422, 425, 429, 499, 500, 502, 503, 599}
	var status int
	b.fn = func(ctx context.Context, tx pgx.Tx, r *http.Request) (idemhttp.Response, error) {
		resp, err := b.refundOnce(ctx, tx, r)
		resp.Status = status
		resp.Header.Set("Retry-After", "120")
		resp.Header.Set("Idempotent-Replayed", "true") // it lies
		resp.Header.Set("Content-Length", "1")
		return resp, err
	}
	b.start()
	for n, s := range statuses {
		status = s
		for i := range 2 {
			r := b.post(fmt.Sprint("key-", s), "{}")
			if want := fmt.Sprintf(`{"run":%d}`, 2*n+i+1); r.status != s || r.body != want || r.replayed() ||
				r.header.Get("Retry-After") != "120" || r.header.Get("Location") == "" {
				t.Errorf("%d: got %+v, want %s", s, r, want)
			}
		}
	}
	b.has(0, 0, int64(2*len(statuses)))
	status = http.StatusCreated
	b.fn = b.refundOnce
	if r := b.post("key-503", "{}"); r.status != 201 || r.replayed() {
		t.Errorf("after a 503: %+v", r)
	}
}

// Another method, path, value of the path, query or body under a key is another request, and changes nothing.
func TestAnotherRequestUnderTheKey(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.wrap = func(next http.Handler) http.Handler {
		mux := http.NewServeMux()
		mux.Handle("/accounts/{account}/refunds", next)
		mux.Handle("/v1/", http.StripPrefix("/v1", next))
		mux.Handle("/v2/", http.StripPrefix("/v2", next))
		return mux
	}
	b.start()
	for i, first := range []string{"/accounts/7/refunds?dry=0", "/v1/refunds"} {
		key := fmt.Sprint("k", i)
		b.want(b.send("POST", first, key, "{}"), 201, "")
		b.want(b.send("POST", first, key, "{} "), 422, idemhttp.ProblemMismatch)
		b.want(b.send("PUT", first, key, "{}"), 422, idemhttp.ProblemMismatch)
		for _, other := range []string{"/accounts/8/refunds?dry=0", "/accounts/7/refunds?dry=1", "/accounts/7/refunds", "/accounts/%37/refunds?dry=0", "/v2/refunds"} {
			b.want(b.send("POST", other, key, "{}"), 422, idemhttp.ProblemMismatch)
		}
		if r := b.send("POST", first, key, "{}"); !r.replayed() {
			t.Errorf("the first request again: %+v", r)
		}
	}
	b.has(2, 2, 2)
}

// Two callers have nothing in common, and one who may not ask any more is not answered from the record.
func TestScopes(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.cfg.Challenge = `Bearer realm="refunds"`
	b.start()
	for run, merchant := range []string{"m1", "m2", "m1:r1", "m"} {
		if r := b.post("r1", "{}", as(merchant)); r.replayed() || r.body != fmt.Sprintf(`{"run":%d}`, run+1) {
			t.Errorf("%s: got %+v", merchant, r)
		}
	}
	for token, want := range map[string]struct {
		status int
		typ    string
	}{
		"":         {401, idemhttp.ProblemUnauthenticated},
		"revoked":  {403, idemhttp.ProblemForbidden},
		"down":     {503, idemhttp.ProblemUnavailable},
		"nameless": {500, idemhttp.ProblemFailed},
	} {
		r := b.post("r1", "{}", as(token))
		b.want(r, want.status, want.typ)
		if (r.header.Get("WWW-Authenticate") == b.cfg.Challenge) != (want.status == 401) || strings.Contains(r.body, "10.0.0.7") {
			t.Errorf("%q: got %+v", token, r)
		}
	}
	if !strings.Contains(b.log.String(), "10.0.0.7") {
		t.Errorf("the log does not say why: %s", b.log.String())
	}
	b.has(4, 4, 4)
}

// Who may not ask is not told anything about the rest of the request, and cannot make us read it.
func TestScopeComesFirst(t *testing.T) {
	t.Parallel()
	b := newBench(t).start()
	b.pool.Close() // the database is not asked
	b.client.Transport.(*http.Transport).ExpectContinueTimeout = time.Hour
	read := make(chan error, 1)
	body := readerFunc(func([]byte) (int, error) {
		read <- errors.New("read")
		return 0, io.EOF
	})
	for _, key := range []string{"", "a,b"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Expect", "100-continue") // so the client sends the body only when it is wanted
		req.Header.Set("Idempotency-Key", key)
		resp, err := b.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != 401 || len(read) > 0 {
			t.Errorf("got %d, read: %d", resp.StatusCode, len(read))
		}
	}
}

// Keys that are none, over the wire, where a client could split, fold or repeat the header.
func TestKeysAreRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t).start()
	b.want(b.post("", "{}"), 400, idemhttp.ProblemMissingKey)
	if r := b.post("", "{}"); !strings.Contains(r.body, "8e03978e") {
		t.Errorf("no hint: %s", r.body)
	}
	for _, header := range []string{
		"Idempotency-Key: r1\r\nIdempotency-Key: r1", "Idempotency-Key: r1\r\nidempotency-key: r2", "Idempotency-Key:", "Idempotency-Key: \"\"",
		"Idempotency-Key: \"r1\";a=1", "Idempotency-Key: r1, r1", "Idempotency-Key: \"r1\", \"r2\"", "Idempotency-Key: \"r1",
		"Idempotency-Key: r\x001", "Idempotency-Key: \"r\t1\"", "Idempotency-Key: r\x7f1", "Idempotency-Key: \xc3\xa4", "Idempotency-Key: a b",
		"Idempotency-Key: r1\r\n folded", "Idempotency-Key : r1", "Idempotency_Key: r1", "X-Idempotency-Key: r1",
		"Idempotency-Key: " + strings.Repeat("k", 256),
	} {
		got := b.raw(rawPost + header + "\r\nContent-Length: 2\r\n\r\n{}")
		if !strings.HasPrefix(got, "HTTP/1.1 400 ") {
			t.Errorf("%q: got %s", header, got)
		}
	}
	b.has(0, 0, 0)
	longest := strings.Repeat("k", 255)
	b.want(b.post(longest, "{}"), 201, "")
}

// Methods without an effect never reach the function, whatever a header says about them.
func TestMethodsWithoutEffect(t *testing.T) {
	t.Parallel()
	b := newBench(t).start()
	for _, method := range []string{"GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "post"} {
		for _, key := range []string{"", "r1"} {
			r := b.send(method, "/refunds", key, "", func(r *http.Request) { r.Header.Set("X-HTTP-Method-Override", "POST") })
			if r.status != 405 || r.header.Get("Allow") != "DELETE, PATCH, POST, PUT" || (r.body == "") != (method == "HEAD") {
				t.Errorf("%s: got %+v", method, r)
			}
		}
	}
	b.has(0, 0, 0)
	for i, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
		b.want(b.send(method, "/refunds", fmt.Sprint(i), "{}"), 201, "")
	}
	b.has(4, 4, 4)
}

// The same on database/sql: the transaction's type is the store's.
func TestOnDatabaseSQL(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, effects)
	keys, err := idem.New(sqldriver.New(db.SQL(t)), nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, db: db}
	h, err := idemhttp.Handle(keys, refund, caller, func(ctx context.Context, tx *sql.Tx, r *http.Request) (idemhttp.Response, error) {
		b.runs.Add(1)
		if _, err := tx.ExecContext(ctx, `INSERT INTO effect VALUES ('a')`); err != nil || r.URL.Path != "/refunds" {
			return idemhttp.Response{Status: 404}, err
		}
		return idemhttp.JSON(201, b.runs.Load())
	}, &idemhttp.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	b.url, b.client = serve(t, h)
	b.want(b.send("POST", "/elsewhere", "r1", "{}"), 404, "")
	for i := range 2 {
		if r := b.post("r1", "{}"); r.status != 201 || r.body != "2" || r.replayed() != (i > 0) {
			t.Errorf("got %+v", r)
		}
	}
	b.want(b.post("r1", "{ }"), 422, idemhttp.ProblemMismatch)
	b.has(1, 1, 2)
}

func TestHandleRefuses(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	keys, err := idem.New(pgxdriver.New(db.Pool(t)), nil)
	if err != nil {
		t.Fatal(err)
	}
	fn := func(context.Context, pgx.Tx, *http.Request) (idemhttp.Response, error) {
		return idemhttp.Response{}, nil
	}
	_, errStore := idemhttp.Handle[pgx.Tx](nil, refund, caller, fn, nil)
	_, errScope := idemhttp.Handle(keys, refund, nil, fn, nil)
	_, errFunc := idemhttp.Handle(keys, refund, caller, nil, nil)
	_, errBody := idemhttp.Handle(keys, refund, caller, fn, &idemhttp.Config{MaxBody: -1})
	_, errWait := idemhttp.Handle(keys, refund, caller, fn, &idemhttp.Config{MaxWait: -1})
	_, errName := idemhttp.Handle(keys, idem.Op{}, caller, fn, nil)
	_, errPolicy := idemhttp.Handle(keys, idem.Op{Name: "a", Wait: -1}, caller, fn, nil)
	for _, err := range []error{errName, errPolicy} {
		if !errors.Is(err, idem.ErrInvalidKey) {
			t.Errorf("got %v, want ErrInvalidKey", err)
		}
	}
	for says, err := range map[string]error{
		"nil store": errStore, "nil scope": errScope, "nil function": errFunc, "negative": errors.Join(errBody, errWait),
	} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
	if errBody == nil || errWait == nil {
		t.Errorf("%v, %v", errBody, errWait)
	}
}
