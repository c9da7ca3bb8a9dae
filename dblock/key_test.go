package dblock

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/pgonce/pgonce/internal/pg"
)

// Processes of two releases must agree on a key's number.
func TestNumberIsFrozen(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		schema string
		key    Key
		want   int64
	}{
		{"pgonce", Key{"order", "42"}, 315846618262311617},
		{"other", Key{"order", "42"}, -3531169519291034191},
		{"pgonce", Key{"orde", "r42"}, -6978961691732995140},
		{"pgonce", Key{"ordnung", "ä/\U0001f600"}, -6734991989548782156},
	} {
		if got := tc.key.number(tc.schema); got != tc.want {
			t.Errorf("%s %q: %d, want %d", tc.schema, tc.key, got, tc.want)
		}
	}
}

func TestKeysAreChecked(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 256)
	for name, tc := range map[string]struct {
		key  Key
		part string // "" is good
	}{
		"good":               {Key{"order", "1"}, ""},
		"as long as allowed": {Key{long[:MaxSpace], long[:MaxID]}, ""},
		"no space":           {Key{"", "1"}, "space"},
		"no id":              {Key{"order", ""}, "id"},
		"long space":         {Key{long[:MaxSpace+1], "1"}, "space"},
		"long id":            {Key{"order", long}, "id"},
		"control character":  {Key{"order", "a\n"}, "id"},
		"not UTF-8":          {Key{"\xff", "1"}, "space"},
	} {
		err := tc.key.Validate()
		if e, ok := errors.AsType[*KeyError](err); tc.part == "" && err != nil || tc.part != "" && (!ok || e.Part != tc.part || !errors.Is(err, ErrInvalidKey)) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// Whatever a key is made of: no two pairs of space and id have one number, nor one pair in two schemas; what Validate lets
// through is what the server can be told, and nothing of an id but a digest is ever shown.
func FuzzKeys(f *testing.F) {
	f.Add("a", "bc", "ab", "c")
	f.Add("a", "b", "a", "b")
	f.Add("", "", "\x00", "\x00\x00")
	f.Add("order", "42", "order", "4\x002")
	f.Add("\xff\xfe", "\u202e", "ordnung", "\u0085")
	f.Add(strings.Repeat("\U0001f600", 25), strings.Repeat("x", 255), "#", "#00000000")
	f.Fuzz(func(t *testing.T, space1, id1, space2, id2 string) {
		a, b := Key{space1, id1}, Key{space2, id2}
		if (a == b) != (a.number(pg.DefaultSchema) == b.number(pg.DefaultSchema)) {
			t.Errorf("%q and %q", a, b)
		}
		if a.number("s") == a.number("t") {
			t.Errorf("%q has one number in two schemas", a)
		}
		for _, k := range []Key{a, b} {
			err := k.Validate()
			good := k.Space != "" && k.ID != "" && len(k.Space) <= MaxSpace && len(k.ID) <= MaxID && utf8.ValidString(k.Space+"/"+k.ID) &&
				!strings.ContainsFunc(k.Space+k.ID, unicode.IsControl)
			if e, ok := errors.AsType[*KeyError](err); good != (err == nil) || !good && (!ok || !errors.Is(err, ErrInvalidKey) || e.Part != "space" && e.Part != "id") {
				t.Errorf("%q: %v", k, err)
			}
			if rest, ok := strings.CutPrefix(k.String(), pg.Printable(k.Space)); !ok || !digest.MatchString(rest) {
				t.Errorf("%q shows more than a digest of its id: %s", k.ID, k)
			}
		}
	})
}

var digest = regexp.MustCompile(`^#[0-9a-f]{8}$`)

func TestKeyHidesItsID(t *testing.T) {
	t.Parallel()
	if s := (Key{"order", "secret-id"}).String(); strings.Contains(s, "secret") || !strings.HasPrefix(s, "order#") {
		t.Errorf("got %s", s)
	}
}
