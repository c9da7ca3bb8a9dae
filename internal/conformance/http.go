//go:build unix

package conformance

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/idem/idemhttp"
	"github.com/pgonce/pgonce/idem/idemtest"
)

func merchant(*http.Request) (string, error) { return "m1", nil }

func refundRequest(n int) *http.Request {
	return httptest.NewRequest(http.MethodPost, fmt.Sprintf("/refunds/%d", n), strings.NewReader(fmt.Sprintf(`{"cents": %d}`, n)))
}

// over runs the suite that users have for their services over a handler of ours, with and without waiting.
func (b *bench[TX]) over(make func(op idem.Op) (http.Handler, error)) {
	for _, op := range []idem.Op{{Name: "refund.create"}, {Name: "refund.wait", Wait: time.Minute}} {
		h, err := make(op)
		noErr(b.t, err)
		idemtest.HTTP(b.t, h, refundRequest, func(context.Context) (int64, error) {
			return b.db.Int(b.t, `SELECT count(*) FROM effect`), nil
		}, nil)
	}
}

// A function that answers requests.
func httpHandle[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 10)
	var runs atomic.Int64
	b.over(func(op idem.Op) (http.Handler, error) {
		return idemhttp.Handle(b.keys, op, merchant, func(ctx context.Context, tx TX, r *http.Request) (idemhttp.Response, error) {
			if err := b.Exec(ctx, tx, `INSERT INTO effect VALUES ('refund')`); err != nil {
				return idemhttp.Response{}, err
			}
			return idemhttp.JSON(http.StatusCreated, map[string]any{"run": runs.Add(1), "path": r.URL.Path})
		}, nil)
	})
}

// A handler as net/http has it, which also refuses, fails and panics.
func httpMiddleware[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 10)
	var runs atomic.Int64
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tx, err := idemhttp.Tx[TX](r.Context())
		if err == nil {
			err = b.Exec(r.Context(), tx, `INSERT INTO effect VALUES ('refund')`)
		}
		switch {
		case err != nil:
			t.Error(err)
			w.WriteHeader(http.StatusInternalServerError)
		case r.URL.Path == "/final":
			idemhttp.Final(w)
			http.Error(w, fmt.Sprint("closed ", runs.Add(1)), http.StatusUnprocessableEntity)
		case r.URL.Path == "/fails":
			http.Error(w, fmt.Sprint("broken ", runs.Add(1)), http.StatusInternalServerError)
		default:
			w.Header().Set("Location", fmt.Sprint("/refunds/", runs.Add(1)))
			w.WriteHeader(http.StatusCreated)
			_, _ = io.Copy(w, r.Body)
		}
	})
	b.over(func(op idem.Op) (http.Handler, error) {
		once, err := idemhttp.Middleware(b.keys, op, merchant, nil)
		if err != nil {
			return nil, err
		}
		return once(handler), nil
	})
	once, err := idemhttp.Middleware(b.keys, refund, merchant, nil)
	noErr(t, err)
	before := b.db.Int(t, `SELECT count(*) FROM effect`)
	send := func(path string) string {
		r := httptest.NewRequest(http.MethodPost, path, http.NoBody)
		r.Header.Set("Idempotency-Key", path[1:])
		w := httptest.NewRecorder()
		once(handler).ServeHTTP(w, r)
		return w.Body.String()
	}
	if a, z := send("/final"), send("/final"); a != z || !strings.HasPrefix(a, "closed") {
		t.Errorf("final: %q, then %q", a, z)
	}
	if a, z := send("/fails"), send("/fails"); a == z || !strings.HasPrefix(z, "broken") {
		t.Errorf("fails: %q, then %q", a, z)
	}
	wantInt(t, "effects of what was rolled back", b.db.Int(t, `SELECT count(*) FROM effect`)-before, 0)
}
