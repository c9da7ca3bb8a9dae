package idemhttp

import (
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"reflect"
	"strconv"
	"testing"

	"github.com/pgonce/pgonce/idem"
)

// The bytes that are hashed are frozen for JSON too.
func TestJSONFingerprintIsFrozen(t *testing.T) {
	t.Parallel()
	q := requestOf("POST", "/a?b=1", "/a", "b=1", `{"b": 1e1, "a": ""}`)
	q.canonical = true
	const parts = "AAAAAAAAAA9wZ29uY2UuaWRlbWh0dHAAAAAAAAAABFBPU1QAAAAAAAAABi9hP2I9MQAAAAAAAAACL2EAAAAAAAAAA2I9MQ=="
	if want := idem.JSON([]byte(`["` + parts + `",{"a":"","b":10}]`)); !reflect.DeepEqual(q.fingerprint(), want) {
		t.Error("the fingerprint has changed")
	}
	q.body = nil
	if want := idem.JSON([]byte(`["` + parts + `"]`)); !reflect.DeepEqual(q.fingerprint(), want) {
		t.Error("the fingerprint without a body has changed")
	}
}

// Two requests with one fingerprint differ in nothing but how their JSON is written.
func FuzzJSONFingerprint(f *testing.F) {
	for _, seed := range [][2]string{
		{`{"a":1,"b":2}`, `{"b":2,"a":1}`},
		{`{"a":1}`, `{"a":1.0}`},
		{`1,2`, `1`},
		{`1],["x"`, `1`},
		{``, `null`},
		{`"a"`, `"\u0061"`},
		{`{"a":1,"a":1}`, `{"a":1}`},
		{`9007199254740993`, `9007199254740992`},
		{"\xff", `"`},
		{` [] `, `[]`},
		{`{"a":{"b":[1,{"c":null}]}}`, `{"a":{"b":[1,{"c":null}]}} `},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		fingerprint := func(body string) idem.Fingerprint {
			q := requestOf("POST", "/", "/", "", body)
			q.canonical = true
			return q.fingerprint()
		}
		if !reflect.DeepEqual(fingerprint(a), fingerprint(b)) || a == b {
			return
		}
		if (a == "") != (b == "") {
			t.Fatalf("%q is %q", a, b)
		}
		var left, right any
		errLeft, errRight := json.Unmarshal([]byte(a), &left), json.Unmarshal([]byte(b), &right)
		if (errLeft == nil) != (errRight == nil) || errLeft == nil && !reflect.DeepEqual(left, right) {
			t.Fatalf("%q is %q", a, b) // two that are not JSON have the same fault, and no fingerprint
		}
	})
}

// Two requests with one fingerprint are the same to the last byte.
func FuzzFingerprint(f *testing.F) {
	f.Add("POST", "/a", "q=1", "body", "POST", "/a?q=1", "", "body")
	f.Add("POST", "/a", "", "body", "POST", "/ab", "", "ody")
	f.Add("PUT", "/\xff", "", "", "PUT", "/\xfe", "", "")
	f.Fuzz(func(t *testing.T, m1, p1, q1, b1, m2, p2, q2, b2 string) {
		for _, canonical := range []bool{false, true} {
			one, two := requestOf(m1, p1, p1, q1, b1), requestOf(m2, p2, p2, q2, b2)
			if canonical {
				one.body, two.body, one.canonical, two.canonical = nil, nil, true, true
				b1, b2 = "", ""
			}
			same := m1 == m2 && p1 == p2 && q1 == q2 && b1 == b2
			if reflect.DeepEqual(one.fingerprint(), two.fingerprint()) != same {
				t.Fatalf("%q and %q, canonical: %t", []string{m1, p1, q1, b1}, []string{m2, p2, q2, b2}, canonical)
			}
		}
	})
}

// Whatever a record holds: it is refused, or sent as one response that is for everybody.
func FuzzStoredResponse(f *testing.F) {
	for _, seed := range []string{
		`{"status":201,"header":{"Content-Type":["application/json"],"Location":["/1"]},"body":"e30="}`, `{"status":204}`, `{"status":304,"body":"eA=="}`, `{}`, `null`, `"x"`, `[]`,
		`{"status":99}`, `{"status":1000}`, `{"status":-200}`, `{"status":200,"header":{"Set-Cookie":["a=b"],"set-cookie":["c=d"]}}`,
		`{"status":200,"header":{"X":["a\r\nSet-Cookie: b=c"]}}`, `{"status":200,"header":{"X\r\nY":["a"]}}`, `{"status":200,"header":{"":["a"]}}`, `{"status":200,"header":{"Content-Length":["7"],"Transfer-Encoding":["chunked"]}}`,
		`{"status":200,"header":{"Idempotent-Replayed":["false"]}}`, `{"status":200,"header":{"Trailer:X":["a"]}}`, `{"status":200,"body":"!"}`, `{"status":200,"header":{"X":null}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, stored []byte) {
		var r Response
		if json.Unmarshal(stored, &r) != nil {
			return
		}
		r, err := r.checked()
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		r.write(w, true)
		h := w.Result().Header
		if w.Code != r.Status || !bytes.Equal(w.Body.Bytes(), r.Body) || h.Get(replayedHeader) != "true" {
			t.Fatalf("%s: sent %d %v %q", stored, w.Code, h, w.Body)
		}
		if length := h.Get("Content-Length"); !bodiless(r.Status) && length != strconv.Itoa(len(r.Body)) {
			t.Fatalf("%s: Content-Length %q", stored, length)
		}
		for name, values := range h {
			if personal(name) && name != replayedHeader && name != "Content-Length" || len(values) == 0 && r.Header[name] == nil || !isToken(name) {
				t.Fatalf("%s: sent %q: %q", stored, name, values)
			}
			for _, v := range values {
				if !printable(v) {
					t.Fatalf("%s: sent %q: %q", stored, name, v)
				}
			}
		}
	})
}
