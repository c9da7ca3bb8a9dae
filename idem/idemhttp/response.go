package idemhttp

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"unicode/utf8"
)

const replayedHeader = "Idempotent-Replayed"

// Response is what a function answers. It is stored as it is, by the store's codec, which must be
// able to encode and decode it; idem.Lookup[idemhttp.Response] reads it.
type Response struct {
	// Status is from 200 to 599; 0 stands for 200.
	Status int `json:"status"`

	// Header may have, in a response that is stored: Cache-Control, Content-Disposition, Content-Encoding,
	// Content-Language, Content-Location, Content-Type, ETag, Last-Modified, Location, Vary,
	// X-Content-Type-Options, and those of [Config.Headers]. What speaks about one connection or to one
	// caller (Set-Cookie) is not for those who ask again.
	Header http.Header `json:"header,omitempty"`

	// Body has the type that Header says, or else application/octet-stream: it is not sniffed.
	Body []byte `json:"body,omitempty"`
}

// JSON is a response with v as its body.
func JSON(status int, v any) (Response, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return Response{}, fmt.Errorf("idemhttp: encode response %T: %w", v, err)
	}
	return Response{Status: status, Header: http.Header{"Content-Type": {"application/json"}}, Body: body}, nil
}

// checked is the response as it is stored and sent, or says why it cannot be.
func (r Response) checked() (Response, error) {
	if r.Status == 0 {
		r.Status = http.StatusOK
	}
	if r.Status < 200 || r.Status > 599 {
		return r, fmt.Errorf("response has status %d, which is not from 200 to 599", r.Status)
	}
	if bodiless(r.Status) && len(r.Body) > 0 {
		return r, fmt.Errorf("response of status %d has a body", r.Status)
	}
	header := make(http.Header, len(r.Header)+1)
	for name, values := range r.Header {
		if !isToken(name) {
			return r, fmt.Errorf("response has a header with the name %.40q, which is none", name)
		}
		name = http.CanonicalHeaderKey(name)
		for _, v := range values {
			if !printable(v) {
				return r, fmt.Errorf("response header %s has a control character or is not UTF-8", name)
			}
			header.Add(name, v)
		}
	}
	if len(r.Body) > 0 && header.Get("Content-Type") == "" {
		header.Set("Content-Type", "application/octet-stream")
	}
	r.Header = header
	return r, nil
}

func bodiless(status int) bool {
	return status == http.StatusNoContent || status == http.StatusNotModified
}

func printable(value string) bool {
	for _, c := range []byte(value) {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return utf8.ValidString(value)
}

// errNotResponse means that a record holds the result of something else than a function of
// [Handle], or that the store's codec does not give back what it gets.
var errNotResponse = errors.New("record does not hold an HTTP response: is the operation used elsewhere, or has the codec changed?")

// write sends a response that is decided: nothing can change its mind any more.
func (r Response) write(w http.ResponseWriter, replayed bool) {
	h := w.Header()
	for name, values := range r.Header {
		if !replayed || !personal(name) { // whatever a record says
			h[name] = values
		}
	}
	for _, name := range []string{replayedHeader, "Content-Length", "Connection", "Transfer-Encoding", "Trailer", "Upgrade"} {
		h.Del(name) // ours, and the server's
	}
	if replayed {
		h.Set(replayedHeader, "true")
	}
	if !bodiless(r.Status) {
		h.Set("Content-Length", strconv.Itoa(len(r.Body)))
	}
	w.WriteHeader(r.Status)
	_, _ = w.Write(r.Body) // a client that is gone asks again
}
