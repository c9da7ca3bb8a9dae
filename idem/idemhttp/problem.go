package idemhttp

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/pgonce/pgonce/idem"
)

// The types of the problems (RFC 9457) that [Handle] and [Middleware] answer with by themselves. They are stable:
// clients may decide by them. Each leads to its own documentation here.
const (
	// ProblemMissingKey: 400, there is no Idempotency-Key header.
	ProblemMissingKey = types + "ProblemMissingKey"

	// ProblemInvalidKey: 400, the header is not one string of 1 to 255 printable ASCII characters,
	// in quotes or bare; or it is shorter than [Config.MinKey].
	ProblemInvalidKey = types + "ProblemInvalidKey"

	// ProblemUnreadableBody: 400, the body broke off or is not what its framing says; or, with
	// [Config.CanonicalJSON], it is no JSON that every reader understands alike.
	ProblemUnreadableBody = types + "ProblemUnreadableBody"

	// ProblemUnauthenticated: 401, scope said [ErrUnauthenticated].
	ProblemUnauthenticated = types + "ProblemUnauthenticated"

	// ProblemForbidden: 403, scope said [ErrForbidden].
	ProblemForbidden = types + "ProblemForbidden"

	// ProblemMethod: 405, the method is none that has an effect.
	ProblemMethod = types + "ProblemMethod"

	// ProblemInFlight: 409, a request with this key is being executed. Repeat it after Retry-After.
	ProblemInFlight = types + "ProblemInFlight"

	// ProblemExpired: 410, the request was executed long ago and its response is no longer kept. It
	// was not executed again.
	ProblemExpired = types + "ProblemExpired"

	// ProblemTooLarge: 413, the body is larger than [Config.MaxBody].
	ProblemTooLarge = types + "ProblemTooLarge"

	// ProblemMismatch: 422, the key was used for another request. Do not repeat it.
	ProblemMismatch = types + "ProblemMismatch"

	// ProblemRefused: 422, the function refused the request for good and had no response of its own.
	ProblemRefused = types + "ProblemRefused"

	// ProblemFailed: 500, the function failed, and what it did was rolled back; or the server cannot
	// say what it should. Repeating the request with the same key is safe.
	ProblemFailed = types + "ProblemFailed"

	// ProblemUnavailable: 503, nothing was done. Repeat the request with the same key after Retry-After.
	ProblemUnavailable = types + "ProblemUnavailable"

	// ProblemUnknownOutcome: 503, the request may have been executed or not. Repeating it with the
	// same key after Retry-After is safe, and finds out; with another key it is not.
	ProblemUnknownOutcome = types + "ProblemUnknownOutcome"

	types = "https://pkg.go.dev/github.com/pgonce/pgonce/idem/idemhttp#"
)

// What a scope function says to refuse a request. Any other error of it is answered with 503, since it
// says nothing about the one who asks.
var (
	// ErrUnauthenticated means that nobody knows who is asking: 401.
	ErrUnauthenticated = errors.New("unauthenticated")

	// ErrForbidden means that the one who asks may not: 403.
	ErrForbidden = errors.New("forbidden")
)

// Seconds, for Retry-After.
const later = "5" // something is broken

// problem is an error that is its own answer.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`

	header http.Header
}

func newProblem(status int, typ, detail string) *problem {
	return &problem{
		Type: typ, Title: http.StatusText(status), Status: status, Detail: detail,
		header: http.Header{"Content-Type": {"application/problem+json"}},
	}
}

func (p *problem) with(header, value string) *problem {
	p.header.Set(header, value)
	return p
}

func (p *problem) Error() string { return p.Detail }

func (p *problem) response() Response {
	body, _ := json.Marshal(p) // strings and a number
	return Response{Status: p.Status, Header: p.header, Body: body}
}

// problemOf finds the answer to an error. None of them shows what is in err: that is for the log.
//
// ErrTxEnded and ErrHandlerTimeout come first, since the function's own error may be in them. Then
// comes the function's: what it says of other keys of its own must not be taken for this one's.
func problemOf(err error) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	_, failed := errors.AsType[*functionError](err)
	switch {
	case errors.Is(err, idem.ErrTxEnded):
		return unknownOutcome()
	case errors.Is(err, idem.ErrHandlerTimeout):
		return unavailable()
	case failed:
		return failure()
	case errors.Is(err, idem.ErrInFlight):
		return inFlight(err)
	case errors.Is(err, idem.ErrExpired):
		return newProblem(http.StatusGone, ProblemExpired,
			"The request with this Idempotency-Key was executed and its response is no longer kept. It was not executed again.")
	case isBadBody(err):
		return newProblem(http.StatusBadRequest, ProblemUnreadableBody, "The body has to be one JSON document that every reader understands alike: "+
			"valid UTF-8, no member twice, no number that a double cannot carry.")
	case errors.Is(err, idem.ErrMismatch):
		return newProblem(http.StatusUnprocessableEntity, ProblemMismatch,
			"This Idempotency-Key was used for a request with another method, target or body.")
	case errors.Is(err, idem.ErrUnknownOutcome):
		return unknownOutcome()
	case errors.Is(err, idem.ErrUnavailable), errors.Is(err, idem.ErrReadOnly), errors.Is(err, idem.ErrSchema),
		errors.Is(err, errWaited):
		return unavailable()
	}
	return failure()
}

// isBadBody reports a body without a fingerprint. Only [Config.CanonicalJSON] makes such.
func isBadBody(err error) bool {
	k, ok := errors.AsType[*idem.KeyError](err)
	return ok && k.Part == "fingerprint"
}

// inFlight says when to ask again, as [idem.InFlightError] does.
func inFlight(err error) *problem {
	seconds := int64(1)
	if e, ok := errors.AsType[*idem.InFlightError](err); ok {
		seconds = max(seconds, int64(e.RetryAfter/time.Second))
	}
	return newProblem(http.StatusConflict, ProblemInFlight,
		"A request with this Idempotency-Key is being executed. Repeat it with the same key to get its response.").
		with("Retry-After", strconv.FormatInt(seconds, 10))
}

func failure() *problem {
	return newProblem(http.StatusInternalServerError, ProblemFailed,
		"The server failed to answer this request. Repeating it with the same Idempotency-Key is safe.")
}

// refusal is the response of a function that has none beside its [idem.Final] error. It is stored.
func refusal() *problem {
	return newProblem(http.StatusUnprocessableEntity, ProblemRefused, "The request was refused for good. Do not repeat it.")
}

func unavailable() *problem {
	return newProblem(http.StatusServiceUnavailable, ProblemUnavailable,
		"The request was not executed. Repeat it later with the same Idempotency-Key.").with("Retry-After", later)
}

func unknownOutcome() *problem {
	return newProblem(http.StatusServiceUnavailable, ProblemUnknownOutcome,
		"The request may have been executed. Repeat it later with the same Idempotency-Key, and with no other.").with("Retry-After", later)
}
