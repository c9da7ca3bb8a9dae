package idemhttp

import (
	"net/http"
	"strings"
	"testing"

	"github.com/dunglas/httpsfv"
	"github.com/pgonce/pgonce/idem"
)

func TestParseKey(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("k", idem.MaxID)
	for value, want := range map[string]string{
		`abc`: "abc", `"abc"`: "abc", `"a\"b\\c"`: `a"b\c`, `"a, b;c=1"`: "a, b;c=1", `" "`: " ",
		`8e03978e-40d5-43dd-bc93-6894a57f9324`: "8e03978e-40d5-43dd-bc93-6894a57f9324",
		`order:12/x+y==`:                       "order:12/x+y==", `?1`: "?1", `:YWJj:`: ":YWJj:", `a'b`: "a'b", `~`: "~",
		long: long, `"` + long + `"`: long, `"` + strings.Repeat(`\"`, idem.MaxID) + `"`: strings.Repeat(`"`, idem.MaxID),
	} {
		if id, fault := parseKey(value); id != want || fault != "" {
			t.Errorf("%q: got %q, %q, want %q", value, id, fault, want)
		}
	}
	for value, want := range map[string]string{
		"": "empty", `""`: "empty", long + "k": "256 bytes", `"` + long + `k"`: "256 bytes",
		`"abc";p=1`: "parameters", `"abc";p`: "parameters", `abc;p=1`: "0x3b", `a,b`: "0x2c", `a, b`: "0x2c", `a b`: "0x20",
		`"a", "b"`: "RFC 8941", `"a" "b"`: "RFC 8941", `"a`: "RFC 8941", `"`: "RFC 8941", `"a\b"`: "RFC 8941", `"a"b`: "RFC 8941",
		`a"b`: "0x22", `a"`: "0x22", `a\b`: "0x5c", "a\tb": "0x09", "a\x00b": "0x00", "\"a\x00b\"": "RFC 8941", "\"a\tb\"": "RFC 8941",
		"a\x7f": "0x7f", "\"a\x7f\"": "RFC 8941", "ä": "0xc3", `"ä"`: "RFC 8941", "\r\nX: y": "0x0d", `("a")`: "0x22",
	} {
		if id, fault := parseKey(value); id != "" || !strings.Contains(fault, want) {
			t.Errorf("%q: got %q, %q, want a fault with %q", value, id, fault, want)
		}
	}
}

func TestKeyOf(t *testing.T) {
	t.Parallel()
	header := func(values ...string) http.Header {
		h := http.Header{}
		for _, v := range values {
			h.Add("idempotency-key", v)
		}
		return h
	}
	if id, err := keyOf(header(`"abc"`)); id != "abc" || err != nil {
		t.Errorf("got %q, %v", id, err)
	}
	for typ, h := range map[string]http.Header{
		ProblemMissingKey: header(), ProblemInvalidKey: header("abc", "abc"),
	} {
		id, err := keyOf(h)
		if p := problemOf(err); id != "" || p.Status != http.StatusBadRequest || p.Type != typ {
			t.Errorf("%v: got %q, %+v", h, id, p)
		}
	}
	_, err := keyOf(header("se;cret"))
	if p := problemOf(err); p.Type != ProblemInvalidKey || strings.Contains(p.Detail, "se;") {
		t.Errorf("got %+v, which must not show the key", p)
	}
}

// What is accepted fits a key, survives its own canonical form, and means the same quoted
// and bare.
func FuzzParseKey(f *testing.F) {
	for _, seed := range []string{``, `abc`, `"abc"`, `"a\"b"`, `"a";p=1`, `a,b`, `"a", "b"`, "a\x00", `"ä"`, `:YQ==:`, `?1`, `@1`, `%"x"`, ` "a" `, "\t"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		id, fault := parseKey(value)
		if (id == "") == (fault == "") {
			t.Fatalf("%q: %q and %q", value, id, fault)
		}
		if fault != "" {
			return
		}
		if len(id) > idem.MaxID {
			t.Fatalf("%q: %d bytes", value, len(id))
		}
		for _, c := range []byte(id) {
			if c < 0x20 || c > 0x7e {
				t.Fatalf("%q: has byte %#x", value, c)
			}
		}
		quoted, err := httpsfv.Marshal(httpsfv.NewItem(id))
		if err != nil {
			t.Fatal(err)
		}
		if again, fault := parseKey(quoted); again != id || fault != "" {
			t.Fatalf("%q as %q: got %q, %q", value, quoted, again, fault)
		}
		if bare, fault := parseKey(id); fault == "" && id[0] != '"' && bare != id {
			t.Fatalf("%q bare: got %q", id, bare)
		}
	})
}
