package idemhttp

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/pgonce/pgonce/idem"
)

// Middleware is [Handle] for a handler as net/http has it: requests with an effect run once per
// Idempotency-Key, in a transaction that the handler gets by [Tx], and every repeat gets the first response.
//
//	once, err := idemhttp.Middleware(keys, CreateRefund, merchantOf, nil)
//	mux.Handle("POST /refunds", once(http.HandlerFunc(createRefund)))
//
// What the handler writes to its ResponseWriter is kept in memory until the transaction is committed;
// no byte leaves before. The response decides about the transaction:
//
//   - 2xx, 3xx: committed, the response is stored, then it is sent.
//   - 4xx that the handler has declared final ([Final]): rolled back, the response is stored, then it is sent.
//   - Any other 4xx, 5xx: rolled back, nothing is stored, it is sent as it is.
//   - A panic: rolled back, nothing is stored, and it goes on; also http.ErrAbortHandler.
//
// [Config.Fate] can decide otherwise. The handler may run again after a run that was rolled back: when its transaction or its
// connection was lost before the commit. An error of the database that it answers with a 5xx is not
// tried again; the client does that, with the same key. (A [Handle] function returns the error, so there it is.)
//
// GET, HEAD, OPTIONS and TRACE pass through untouched, with a key or without. All other methods need a key, unless
// [Config.KeyOptional] says otherwise. scope is that of [Handle], and so is the order of things.
//
// # The handler's ResponseWriter
//
// The first caller gets the headers as they are. Stored and replayed are those that [Response.Header] lists, and the
// body as the handler wrote it, in its Content-Encoding: compress around the middleware, not inside of it. A missing Content-Type is
// sniffed, as net/http does. Flush does nothing, informational responses (1xx) and trailers are dropped, a second
// WriteHeader is ignored with a line in the log. The connection cannot be hijacked; deadlines can be set by
// http.ResponseController. A body larger than [Config.MaxResponse], one that is not as long as its Content-Length
// says, and a status that net/http does not know are mistakes: rolled back, 500, and the log says why. What
// goroutines write after the handler has returned is refused.
//
// # Where it belongs
//
// Directly around the handler: what comes between the two runs inside the transaction, once for each run. Routers that keep
// notes of a request's way in its ctx (chi) belong around it; there, that is With, not Use.
//
// Errors and cost: those of Handle. A nil handler panics when it is wrapped, as net/http has it.
func Middleware[TX any](keys *idem.Store[TX], op idem.Op, scope func(*http.Request) (string, error), cfg *Config) (func(next http.Handler) http.Handler, error) {
	h, err := newHandler("middleware", keys, op, scope, cfg)
	if err != nil {
		return nil, err
	}
	return func(next http.Handler) http.Handler {
		if next == nil {
			panic("idemhttp: middleware: nil handler")
		}
		return &middleware[TX]{handler: *h, next: next}
	}, nil
}

// ErrNoTx means that there is no transaction for this request: it has no key ([Config.KeyOptional]), its method has no
// effect, or it did not come through a [Middleware].
var ErrNoTx = errors.New("no transaction: the request has no key, or did not come through idemhttp.Middleware")

// Tx is the transaction of a request that came through a [Middleware], from the ctx of the handler's request. It must
// not be ended, and is dead when the handler has returned. TX is the type that the store's driver has: pgx.Tx, *sql.Tx or
// *sqlx.Tx; another one is an error, and not [ErrNoTx].
func Tx[TX any](ctx context.Context) (tx TX, err error) {
	held, ok := ctx.Value(txKey{}).(heldTx)
	if !ok {
		return tx, fmt.Errorf("idemhttp: tx: %w", ErrNoTx)
	}
	if tx, ok = held.tx.(TX); !ok {
		return tx, fmt.Errorf("idemhttp: tx: the transaction is a %T: ask for the type that the store's driver has", held.tx)
	}
	return tx, nil
}

type txKey struct{}

type heldTx struct{ tx any }

// Final declares the response of a [Middleware]'s handler to be the answer for good: what the handler wrote is rolled
// back, and the response is stored for every repeat. It is for a 4xx that no repeat can change; beside a
// status that is never stored (401, 403, 408, 409, 425, 429, 5xx, 2xx) it is a mistake, which gets 500. It may be called before
// or after WriteHeader, as long as the handler runs. For a request that no Middleware records, it does nothing.
func Final(w http.ResponseWriter) {
	for w != nil {
		if rec, ok := w.(*recorder); ok {
			rec.declareFinal()
			return
		}
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return
		}
		w = u.Unwrap()
	}
}

type middleware[TX any] struct {
	handler[TX]
	next http.Handler
}

// ServeHTTP lets pass what has no effect, and executes the rest.
func (m *middleware[TX]) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		m.next.ServeHTTP(w, r)
		return
	}
	q, err := m.admit(w, r)
	if err == nil && q.keyless {
		m.next.ServeHTTP(w, q.http)
		return
	}
	var last *recorder // of the run that counts: those before it were rolled back
	once := m.handler
	once.fn = func(ctx context.Context, tx TX, r *http.Request) (Response, error) {
		last = newRecorder(w, &m.cfg)
		defer last.end() // also when the handler panics
		m.next.ServeHTTP(last, r.WithContext(context.WithValue(ctx, txKey{}, heldTx{tx})))
		return last.response()
	}
	resp, replayed, problem := once.answer(q, r, err)
	switch {
	case replayed:
		m.clear(w.Header(), resp.Header)
	case !problem:
		last.restore(w.Header())
	}
	resp.write(w, replayed)
}

// clear takes away what a middleware has set of the headers that the record decides about.
func (m *middleware[TX]) clear(header, stored http.Header) {
	for name := range header {
		if _, ok := stored[name]; !ok && m.cfg.replayable(name) {
			delete(header, name)
		}
	}
}
