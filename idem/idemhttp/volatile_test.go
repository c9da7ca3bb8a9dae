//go:build unix

package idemhttp_test

import (
	"net/http"
	"testing"
)

// A repeat is the same request whatever proxies, browsers and tracers add to it: another User-Agent, trace, date, address or connection.
func TestVolatileHeadersAreNoPartOfTheRequest(t *testing.T) {
	t.Parallel()
	b := newBench(t).start()
	for i, header := range []http.Header{
		{"User-Agent": {"shop/1.0"}, "Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}},
		{"User-Agent": {"shop/1.1"}, "Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4737-00f067aa0ba902b8-00"}},
		{"Date": {"Sun, 22 Nov 2026 15:00:00 GMT"}, "X-Forwarded-For": {"192.0.2.7"}, "X-Request-Id": {"2"}},
		{"Accept-Encoding": {"gzip"}, "Cookie": {"session=2"}, "Connection": {"close"}, "Retry-Count": {"3"}},
	} {
		r := b.post("r1", "{}", func(r *http.Request) {
			for name, values := range header {
				r.Header[name] = values
			}
		})
		if r.status != http.StatusCreated || r.replayed() != (i > 0) || r.body != `{"run":1}` {
			t.Errorf("%v: got %+v", header, r)
		}
	}
	b.has(1, 1, 1)
}
