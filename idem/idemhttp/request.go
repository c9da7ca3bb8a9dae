package idemhttp

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/pgonce/pgonce/idem"
)

// body keeps what anybody reads of a request's body, so that scope may read it (to check a
// signature) and the fingerprint still covers all of it.
type body struct {
	from  io.Reader
	bytes bytes.Buffer
}

func newBody(w http.ResponseWriter, r *http.Request, most int64) *body {
	from := r.Body
	if from == nil {
		from = http.NoBody
	}
	return &body{from: http.MaxBytesReader(w, from, most)}
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	b.bytes.Write(p[:n])
	return n, err
}

// Close does nothing: whoever closes it is not the last reader.
func (b *body) Close() error { return nil }

// rest reads to the end, and returns everything. A body that breaks off is an error, not a
// shorter body.
func (b *body) rest(r *http.Request, most int64) ([]byte, error) {
	if r.ContentLength > most {
		return nil, &http.MaxBytesError{Limit: most}
	}
	if _, err := io.Copy(io.Discard, b); err != nil {
		return nil, err
	}
	if b.bytes.Len() == 0 && r.ContentLength > 0 {
		return nil, errBodyGone
	}
	return b.bytes.Bytes(), nil
}

// again is r with the whole body, what was read of it included.
func (b *body) again(r *http.Request) *http.Request {
	from := r.Body
	if from == nil {
		from = http.NoBody
	}
	r = r.WithContext(r.Context())
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(b.bytes.Bytes()), b.from), from}
	return r
}

// errBodyGone would otherwise make all bodies the same request.
var errBodyGone = errors.New("a middleware has read the body and not put it back")

// request is a request that has been let in.
type request struct {
	http      *http.Request
	key       idem.Key
	body      []byte
	keyless   bool // let in without a key, to be passed on
	canonical bool // the body is compared by what it says as JSON
}

// fresh is the request for one run of the function. A run before it has left no trace, and
// forms are parsed from the bytes that the fingerprint covers, whoever has parsed them before.
func (q *request) fresh(ctx context.Context) *http.Request {
	r := q.http.Clone(ctx)
	r.Body = io.NopCloser(bytes.NewReader(q.body))
	r.ContentLength = int64(len(q.body))
	r.TransferEncoding = nil
	r.Form, r.PostForm, r.MultipartForm = nil, nil, nil
	return r
}

// fingerprint covers what the function can act on: the method, the target as it came and as
// middleware has left it (each may have lost what the other has), and the body. Each part
// has its length before it, so no two requests run together to the same bytes. Frozen: a
// deploy must not refuse a repeat.
func (q *request) fingerprint() idem.Fingerprint {
	u := q.http.URL
	parts := []string{"pgonce.idemhttp", q.http.Method, q.http.RequestURI, u.EscapedPath(), u.RawQuery}
	buf := make([]byte, 0, 256+len(q.body))
	for _, p := range parts {
		buf = binary.BigEndian.AppendUint64(buf, uint64(len(p)))
		buf = append(buf, p...)
	}
	if q.canonical {
		return jsonFingerprint(buf, q.body)
	}
	buf = binary.BigEndian.AppendUint64(buf, uint64(len(q.body)))
	return idem.Bytes(append(buf, q.body...))
}

// jsonFingerprint is that of an array of the other parts, as a string, and the body, if there is one. A body
// that is more or less than one JSON value would make another array, so it is refused here: it goes
// alone to idem.JSON, which says what is wrong with it.
func jsonFingerprint(parts, body []byte) idem.Fingerprint {
	if len(body) > 0 && !json.Valid(body) {
		return idem.JSON(body)
	}
	doc := append([]byte(`["`), base64.StdEncoding.EncodeToString(parts)...)
	doc = append(doc, '"')
	if len(body) > 0 {
		doc = append(append(doc, ','), body...)
	}
	return idem.JSON(append(doc, ']'))
}
