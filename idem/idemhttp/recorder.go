package idemhttp

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pgonce/pgonce/idem"
)

// recorder is the ResponseWriter of one run. It has no Unwrap: whoever got hold of the real one could send bytes
// before the commit.
type recorder struct {
	real http.ResponseWriter
	cfg  *Config

	live http.Header // the handler's, changeable until the header is written

	mu     sync.Mutex
	header http.Header // as it was then
	status int         // 0 until then
	body   bytes.Buffer
	final  bool
	over   bool
	fault  error // the handler's first mistake
}

// newRecorder begins with the headers that middleware has set, so that the handler can add to them and take them away.
func newRecorder(real http.ResponseWriter, cfg *Config) *recorder {
	return &recorder{real: real, cfg: cfg, live: real.Header().Clone()}
}

func (r *recorder) Header() http.Header {
	if r.live == nil {
		r.live = http.Header{}
	}
	return r.live
}

func (r *recorder) WriteHeader(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writeHeader(status)
}

func (r *recorder) writeHeader(status int) {
	switch {
	case r.over:
	case status >= 100 && status < 200 && status != http.StatusSwitchingProtocols:
		// informational, and nothing leaves before the commit
	case r.status != 0:
		r.cfg.Logger.Warn("idemhttp: superfluous WriteHeader", "status", status, "first", r.status)
	default:
		r.status, r.header = status, r.Header().Clone()
	}
}

var errOver = errors.New("idemhttp: write: the handler has returned")

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return 0, errOver
	}
	if r.status == 0 {
		r.writeHeader(http.StatusOK)
	}
	if bodiless(r.status) {
		return 0, http.ErrBodyNotAllowed
	}
	if int64(r.body.Len())+int64(len(p)) > r.cfg.MaxResponse {
		r.fault = &tooLargeError{r.cfg.MaxResponse}
	}
	if r.fault != nil {
		return 0, r.fault
	}
	return r.body.Write(p)
}

// Flush does nothing but what writing nothing does: no byte leaves before the commit.
func (r *recorder) Flush() { _ = r.FlushError() }

// FlushError is Flush for http.ResponseController.
func (r *recorder) FlushError() error {
	_, err := r.Write(nil)
	if errors.Is(err, http.ErrBodyNotAllowed) {
		return nil
	}
	return err
}

// SetReadDeadline, SetWriteDeadline and EnableFullDuplex are for http.ResponseController. They send nothing.
func (r *recorder) SetReadDeadline(at time.Time) error {
	return http.NewResponseController(r.real).SetReadDeadline(at)
}

// SetWriteDeadline may give a slow handler more time than the server's WriteTimeout.
func (r *recorder) SetWriteDeadline(at time.Time) error {
	return http.NewResponseController(r.real).SetWriteDeadline(at)
}

// EnableFullDuplex changes nothing for the handler, whose body is in memory.
func (r *recorder) EnableFullDuplex() error {
	return http.NewResponseController(r.real).EnableFullDuplex()
}

func (r *recorder) declareFinal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.final = r.final || !r.over
}

// end refuses whatever is written from now on, by goroutines that the handler has left.
func (r *recorder) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.status == 0 {
		r.writeHeader(http.StatusOK)
	}
	r.over = true
}

// errDeclared is the reason of a refusal, where the handler's own words are in its response.
var errDeclared = errors.New("the handler declared its response final")

// response is what the handler has written, as [Handle] has it from a function.
func (r *recorder) response() (Response, error) {
	r.end()
	if r.fault == nil {
		r.fault = r.lengthFault()
	}
	if r.fault != nil {
		return Response{}, r.fault
	}
	r.settle()
	resp := Response{Status: r.status, Header: http.Header{}, Body: r.body.Bytes()}
	for name, values := range r.header {
		if r.cfg.replayable(name) {
			resp.Header[name] = values
		}
	}
	if r.final {
		return resp, idem.Final(errDeclared)
	}
	return resp, nil
}

// lengthFault finds a body that broke off: the handler said how long it would be, and did not say that it failed.
func (r *recorder) lengthFault() error {
	declared := r.header.Get("Content-Length")
	if declared == "" || bodiless(r.status) {
		return nil
	}
	if n, err := strconv.Atoi(declared); err != nil || n != r.body.Len() {
		return fmt.Errorf("response has %d bytes where its Content-Length is %.20q", r.body.Len(), declared)
	}
	return nil
}

// settle leaves of the headers what may be sent, and sniffs a missing Content-Type as net/http does.
func (r *recorder) settle() {
	for name := range r.header {
		if name == "Trailer" || strings.HasPrefix(name, http.TrailerPrefix) {
			delete(r.header, name)
		}
	}
	_, typed := r.header["Content-Type"]
	if !typed && r.body.Len() > 0 && r.header.Get("Content-Encoding") == "" {
		r.header.Set("Content-Type", http.DetectContentType(r.body.Bytes()))
	}
}

// restore makes the headers of a response those that the handler has left.
func (r *recorder) restore(header http.Header) {
	clear(header)
	for name, values := range r.header {
		header[name] = values
	}
}
