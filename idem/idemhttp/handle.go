package idemhttp

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/pgonce/pgonce/idem"
)

// Func answers a request inside a transaction. It must not end the transaction, and may be called
// again after a run that was rolled back, as with [idem.Do]. Its ctx, which is r's too, lives on when
// the client is gone, and ends at [idem.Op.MaxHandler]. The body of r is in memory.
type Func[TX any] func(ctx context.Context, tx TX, r *http.Request) (Response, error)

// Handle makes a handler that runs fn once per Idempotency-Key, and answers every repeat with the first
// response, byte by byte, marked by "Idempotent-Replayed: true".
//
// scope says who is asking: the tenant, merchant or user who may choose keys without asking
// the others, 1 to 255 bytes. It must come from what was authenticated, never from what the
// client merely claims. It runs for each request, before anything is looked up; its error refuses the
// request: [ErrUnauthenticated] with 401, [ErrForbidden] with 403, any other with 503.
//
// What becomes of fn's response:
//
//   - 2xx, 3xx: what fn wrote is committed, the response is stored, then it is sent.
//   - 4xx beside an [idem.Final] error: rolled back, the response is stored, then it is sent. A zero
//     Response stands for a 422. A status that is never stored (401, 403, 408, 409, 425, 429) cannot be final.
//   - Any other 4xx, 5xx: rolled back, nothing is stored, it is sent as it is.
//   - An error: rolled back, nothing is stored, 500. A panic goes on to the server.
//
// [Config.Fate] can decide otherwise about a response.
//
// What Handle answers by itself is problem+json (RFC 9457) with one of the types that are named
// Problem. POST, PUT, PATCH and DELETE need a key. Every other method gets 405, with a key or without: the
// header is for requests that have an effect, and fn is for nothing else.
//
// A client that is gone changes nothing: see [Func]. With a server's WriteTimeout shorter than fn takes, the
// response of the first request is lost, and its effect is not: a repeat gets the response.
// How long a body may trickle in is the server's ReadTimeout; no connection of the pool is held for it.
//
// Errors: a nil argument, an operation that cannot be used, a Config that cannot be.
//
// Cost: that of [idem.Do]. A request that is refused (400, 401, 403, 405, 413) costs no round trip.
func Handle[TX any](keys *idem.Store[TX], op idem.Op, scope func(*http.Request) (string, error), fn Func[TX], cfg *Config) (http.Handler, error) {
	h, err := newHandler("handle", keys, op, scope, cfg)
	switch {
	case err != nil:
		return nil, err
	case fn == nil:
		return nil, errors.New("idemhttp: handle: nil function")
	case h.cfg.KeyOptional:
		return nil, errors.New("idemhttp: handle: KeyOptional is for Middleware: without a key, there is no transaction for the function")
	}
	h.fn = fn
	return h, nil
}

type handler[TX any] struct {
	keys  *idem.Store[TX]
	op    idem.Op
	scope func(*http.Request) (string, error)
	fn    Func[TX]
	cfg   Config
}

// newHandler makes what [Handle] and [Middleware] have in common.
func newHandler[TX any](verb string, keys *idem.Store[TX], op idem.Op, scope func(*http.Request) (string, error), cfg *Config) (*handler[TX], error) {
	h := &handler[TX]{keys: keys, op: op, scope: scope}
	err := op.Validate()
	switch {
	case keys == nil:
		err = errors.New("nil store: pass the *idem.Store of idem.New")
	case scope == nil:
		err = errors.New("nil scope: pass a function that says who is asking")
	case err == nil:
		h.cfg, err = cfg.resolved()
	}
	if err != nil {
		return nil, fmt.Errorf("idemhttp: %s: %w", verb, err)
	}
	return h, nil
}

// ServeHTTP sends nothing before everything is decided.
func (h *handler[TX]) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var (
		q   *request
		err error = newProblem(http.StatusMethodNotAllowed, ProblemMethod,
			"This resource is for requests that have an effect.").with("Allow", "DELETE, PATCH, POST, PUT")
	)
	switch r.Method {
	case http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
		q, err = h.admit(w, r)
	}
	resp, replayed, _ := h.answer(q, r, err)
	resp.write(w, replayed)
}

// answer executes what was let in, and says what goes to the client: a response that is decided, a replay
// of one, or a problem.
func (h *handler[TX]) answer(q *request, r *http.Request, err error) (resp Response, replayed, problem bool) {
	if err == nil {
		resp, replayed, err = h.do(q)
	}
	if err == nil {
		return resp, replayed, false
	}
	p := problemOf(err)
	if p.Status >= http.StatusInternalServerError {
		h.cfg.Logger.ErrorContext(r.Context(), "idemhttp: request failed", "op", h.op.Name, "status", p.Status, "err", err)
	}
	return p.response(), false, true
}

// admit decides whether a request is one that may be executed or answered from a record.
func (h *handler[TX]) admit(w http.ResponseWriter, r *http.Request) (*request, error) {
	in := newBody(w, r, h.cfg.MaxBody)
	asking := r.WithContext(r.Context())
	asking.Body = in
	scope, err := h.scope(asking)
	if err != nil {
		return nil, h.refused(err)
	}
	if h.cfg.KeyOptional && len(r.Header.Values(keyHeader)) == 0 {
		return &request{http: in.again(r), keyless: true}, nil
	}
	id, err := h.cfg.keyOf(r.Header)
	if err != nil {
		return nil, err
	}
	data, err := in.rest(r, h.cfg.MaxBody)
	if err != nil {
		return nil, h.unreadable(err)
	}
	return &request{http: r, key: h.op.Key(scope, id), body: data, canonical: h.cfg.CanonicalJSON}, nil
}

// refused is the answer to an error of scope.
func (h *handler[TX]) refused(err error) error {
	_, tooLarge := errors.AsType[*http.MaxBytesError](err)
	switch {
	case errors.Is(err, ErrUnauthenticated):
		p := newProblem(http.StatusUnauthorized, ProblemUnauthenticated, "Nobody is known by what this request shows.")
		if h.cfg.Challenge != "" {
			p.header.Set("WWW-Authenticate", h.cfg.Challenge)
		}
		return p
	case errors.Is(err, ErrForbidden):
		return newProblem(http.StatusForbidden, ProblemForbidden, "This request is not allowed.")
	case tooLarge:
		return h.unreadable(err)
	}
	return fmt.Errorf("%w: scope: %w", idem.ErrUnavailable, err)
}

// unreadable is the answer to an error of the body.
func (h *handler[TX]) unreadable(err error) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return newProblem(http.StatusRequestEntityTooLarge, ProblemTooLarge, fmt.Sprintf("The limit is %d bytes.", h.cfg.MaxBody))
	}
	if errors.Is(err, errBodyGone) {
		return err
	}
	return newProblem(http.StatusBadRequest, ProblemUnreadableBody, "The body could not be read to its end.")
}

// do executes a request, or answers it from its record.
func (h *handler[TX]) do(q *request) (resp Response, replayed bool, err error) {
	wait, cancel := newWaiting(q.http, h.cfg.MaxWait, h.op.Wait)
	defer cancel()
	res, err := idem.Do(wait.ctx, h.keys, q.key, q.fingerprint(), func(ctx context.Context, tx TX) (Response, error) {
		if err := wait.over(); err != nil {
			return Response{}, err
		}
		defer wait.again()
		return h.run(ctx, tx, q)
	})
	if u, ok := errors.AsType[*unstored](err); ok && !errors.Is(err, idem.ErrTxEnded) && !errors.Is(err, idem.ErrHandlerTimeout) {
		return u.response, false, nil
	}
	if err != nil && !isRefusal(err) {
		return Response{}, false, err
	}
	resp, err = res.Value.checked()
	if err != nil || res.Value.Status == 0 {
		return Response{}, false, errors.Join(errNotResponse, err)
	}
	return resp, res.Replayed, nil
}

// run is one run of the function. Whatever is not to be stored is an error for [idem.Do].
func (h *handler[TX]) run(ctx context.Context, tx TX, q *request) (Response, error) {
	r := q.fresh(ctx)
	defer func() {
		if r.MultipartForm != nil {
			_ = r.MultipartForm.RemoveAll() // the server does that for its own request only
		}
	}()
	resp, err := h.fn(ctx, tx, r)
	if err != nil {
		return h.beside(resp, err)
	}
	resp, err = h.cfg.checked(resp)
	if err != nil {
		return Response{}, &functionError{err}
	}
	fate, err := h.cfg.fateOf(resp.Status, false)
	if err == nil && fate == Forget {
		return Response{}, &unstored{resp}
	}
	if err == nil {
		err = h.cfg.storable(resp)
	}
	switch {
	case err != nil:
		return Response{}, &functionError{err}
	case fate == Refuse:
		return resp, &functionError{idem.Final(fmt.Errorf("answered %d", resp.Status))}
	}
	return resp, nil
}

// beside is what goes with an error of the function. It is stored and sent if the error is
// [idem.Final], which only [idem.Do] knows, and is lost otherwise.
func (h *handler[TX]) beside(resp Response, err error) (Response, error) {
	if resp.Status == 0 {
		return refusal().response(), &functionError{err}
	}
	resp, fault := h.cfg.checked(resp)
	fate := Refuse
	if fault == nil {
		fate, fault = h.cfg.fateOf(resp.Status, true)
	}
	if fault == nil && fate != Refuse {
		fault = fmt.Errorf("response of status %d cannot be final", resp.Status)
	}
	if fault == nil {
		fault = h.cfg.storable(resp)
	}
	if fault != nil {
		return Response{}, &misfitError{err, fault}
	}
	return resp, &functionError{err}
}

// isRefusal reports a refusal that [idem.Do] has stored, and not one of another key that the
// function speaks of.
func isRefusal(err error) bool {
	_, own := errors.AsType[*functionError](err)
	return errors.Is(err, idem.ErrRefused) && !own
}

// unstored carries a response past the commit.
type unstored struct{ response Response }

func (u *unstored) Error() string {
	return fmt.Sprintf("function answered %d, which is not stored", u.response.Status)
}

// functionError marks the function's own error, whose words about other keys are not about this one.
type functionError struct{ err error }

func (e *functionError) Error() string { return e.err.Error() }
func (e *functionError) Unwrap() error { return e.err }

// misfitError is an error of the function beside a response that cannot be stored. It does not unwrap, so
// that nothing is final by it; a run that the server broke off is still made again.
type misfitError struct{ err, fault error }

func (e *misfitError) Error() string { return e.fault.Error() + ": " + e.err.Error() }

// SQLState is that of the function's error.
func (e *misfitError) SQLState() string {
	var s interface{ SQLState() string }
	if errors.As(e.err, &s) {
		return s.SQLState()
	}
	return ""
}
