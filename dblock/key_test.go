package dblock

import (
	"errors"
	"strings"
	"testing"

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

// No two pairs of space and id run together to one encoding.
func FuzzNumbersAreApart(f *testing.F) {
	f.Add("a", "bc", "ab", "c")
	f.Add("a", "b", "a", "b")
	f.Fuzz(func(t *testing.T, space1, id1, space2, id2 string) {
		a, b := Key{space1, id1}, Key{space2, id2}
		if (a == b) != (a.number(pg.DefaultSchema) == b.number(pg.DefaultSchema)) {
			t.Errorf("%q and %q", a, b)
		}
		if a == b {
			return
		}
		if a.number("s") == a.number("t") {
			t.Errorf("%q in two schemas", a)
		}
	})
}

func TestKeyHidesItsID(t *testing.T) {
	t.Parallel()
	if s := (Key{"order", "secret-id"}).String(); strings.Contains(s, "secret") || !strings.HasPrefix(s, "order#") {
		t.Errorf("got %s", s)
	}
}
