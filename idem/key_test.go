package idem

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"
)

// These numbers are in databases and in running processes of other releases. If this test
// fails, the change forgets every key that was ever stored.
func TestKeyHashesAreFrozen(t *testing.T) {
	t.Parallel()
	key := Op{Name: "refund.create"}.Key("m1", "r-1")
	if got := hex.EncodeToString(key.digest()); got != "d26a92ea58e18a10bc354652bae16e1b" {
		t.Errorf("digest %s", got)
	}
	for schema, want := range map[string]int64{"pgonce": 5622734017471581308, "other": 4503846834161470786} {
		if got := key.lock(schema); got != want {
			t.Errorf("lock in schema %s: %d", schema, got)
		}
	}
	if got := hex.EncodeToString(Bytes([]byte("{}")).sum); got != "44136fa355b3678a1146ad16f7e8649e" {
		t.Errorf("fingerprint %s", got)
	}
}

func TestKeyPartsDoNotRunTogether(t *testing.T) {
	t.Parallel()
	seen := map[string]Key{}
	for _, key := range []Key{
		Op{Name: "ab"}.Key("s", "c"), Op{Name: "a"}.Key("s", "bc"), Op{Name: "abc"}.Key("s", ""), Op{Name: "a/b"}.Key("s", "c"),
	} {
		d := string(key.digest())
		if other, ok := seen[d]; ok {
			t.Errorf("%v and %v have one digest", key, other)
		}
		seen[d] = key
	}
	op := Op{Name: "o"}
	if op.Key("ab", "c").lock("s") == op.Key("a", "bc").lock("s") || op.Key("a", "b").lock("sx") == op.Key("xa", "b").lock("s") {
		t.Error("two keys have one lock")
	}
}

func TestKeyCheck(t *testing.T) {
	t.Parallel()
	ok := Op{Name: "refund.create"}
	cases := map[string]struct {
		key  Key
		part string // "" is fine
	}{
		"fine":                 {ok.Key("m1", "r-1"), ""},
		"longest":              {Op{Name: strings.Repeat("o", MaxOpName)}.Key(strings.Repeat("s", MaxScope), strings.Repeat("i", MaxID)), ""},
		"not ASCII":            {ok.Key("商户", "ключ ü"), ""},
		"as short as can be":   {Op{Name: "o"}.Key("s", "1"), ""}, // no entropy, and no harm: the scope keeps tenants apart
		"zero Key":             {Key{}, "operation"},
		"no operation":         {Op{}.Key("m1", "r1"), "operation"},
		"operation too long":   {Op{Name: strings.Repeat("o", MaxOpName+1)}.Key("m1", "r1"), "operation"},
		"no scope":             {ok.Key("", "r1"), "scope"},
		"scope too long":       {ok.Key(strings.Repeat("s", MaxScope+1), "r1"), "scope"},
		"no id":                {ok.Key("m1", ""), "id"},
		"id too long":          {ok.Key("m1", strings.Repeat("ü", MaxID/2+1)), "id"},
		"NUL":                  {ok.Key("m1", "r\x001"), "id"},
		"newline":              {ok.Key("m1\n", "r1"), "scope"},
		"DEL":                  {ok.Key("m1", "\x7f"), "id"},
		"C1 control":           {ok.Key("m1", "\u0085"), "id"},
		"not UTF-8":            {ok.Key("m1", "\xff"), "id"},
		"half a surrogate":     {ok.Key("m1", "\xed\xa0\x80"), "id"},
		"forever":              {Op{Name: "o", ReplayFor: Forever}.Key("m1", "r1"), ""},
		"long replay":          {Op{Name: "o", ReplayFor: 90 * 24 * time.Hour}.Key("m1", "r1"), ""},
		"forgets before":       {Op{Name: "o", ReplayFor: Forever, RememberFor: time.Hour}.Key("m1", "r1"), "policy"},
		"forgets before, fine": {Op{Name: "o", ReplayFor: time.Hour, RememberFor: time.Hour}.Key("m1", "r1"), ""},
		"forgets too early":    {Op{Name: "o", RememberFor: time.Hour, ReplayFor: time.Hour, RetryWindow: time.Hour + 1}.Key("m1", "r1"), "policy"},
		"long retries":         {Op{Name: "o", RetryWindow: 90 * 24 * time.Hour}.Key("m1", "r1"), ""},
		"retries for ever":     {Op{Name: "o", RetryWindow: Forever}.Key("m1", "r1"), ""},
		"just long enough":     {Op{Name: "o", ReplayFor: time.Hour, RememberFor: time.Hour, RetryWindow: time.Hour}.Key("m1", "r1"), ""},
		"negative retries":     {Op{Name: "o", RetryWindow: -1}.Key("m1", "r1"), "policy"},
		"endless handler":      {Op{Name: "o", MaxHandler: Forever}.Key("m1", "r1"), "policy"},
		"negative handler":     {Op{Name: "o", MaxHandler: -1}.Key("m1", "r1"), "policy"},
		"negative":             {Op{Name: "o", ReplayFor: -1}.Key("m1", "r1"), "policy"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := tc.key.check()
			if tc.part == "" {
				if err != nil {
					t.Errorf("got %v", err)
				}
				return
			}
			e, ok := errors.AsType[*KeyError](err)
			if !ok || e.Part != tc.part || !errors.Is(err, ErrInvalidKey) {
				t.Errorf("got %v, want a KeyError about the %s", err, tc.part)
			}
			_ = tc.key.String() // must bear anything
		})
	}
}

func TestKeyStringHidesTheID(t *testing.T) {
	t.Parallel()
	s := Op{Name: "refund.create"}.Key("m1\n", "secret").String()
	if strings.Contains(s, "secret") || strings.Contains(s, "\n") || !strings.Contains(s, "refund.create") {
		t.Errorf("got %q", s)
	}
}

func FuzzKey(f *testing.F) {
	f.Add("m1", "refund.create", "r-1")
	f.Add("", "\x00", "\xff")
	f.Fuzz(func(t *testing.T, scope, op, id string) {
		key := Op{Name: op}.Key(scope, id)
		_ = key.String()
		err := key.check()
		if err != nil && !errors.Is(err, ErrInvalidKey) {
			t.Errorf("got %v", err)
		}
		if err == nil && (len(scope) > MaxScope || len(op) > MaxOpName || len(id) > MaxID || strings.ContainsRune(scope+op+id, 0)) {
			t.Errorf("accepted %q %q %q", scope, op, id)
		}
		if len(key.digest()) != 16 {
			t.Error("digest length")
		}
	})
}

func TestFingerprint(t *testing.T) {
	t.Parallel()
	a, b := Bytes([]byte("a")), Bytes([]byte("b"))
	cases := map[string]struct {
		request     Fingerprint
		version     int64
		sum         []byte
		same, known bool
	}{
		"same":            {a, a.version, a.sum, true, true},
		"other":           {a, b.version, b.sum, false, true},
		"truncated":       {a, a.version, a.sum[:8], false, true},
		"none asked":      {NoFingerprint(), a.version, a.sum, true, true},
		"none stored":     {a, fpNone, nil, true, true},
		"unknown version": {a, 99, b.sum, true, false},
	}
	for name, tc := range cases {
		if same, known := tc.request.matches(tc.version, tc.sum); same != tc.same || known != tc.known {
			t.Errorf("%s: got %v, %v", name, same, known)
		}
	}
	if err := (Fingerprint{}).check(); !errors.Is(err, ErrInvalidKey) {
		t.Errorf("the zero Fingerprint: got %v", err)
	}
}

// What is left of a wait may be next to nothing.
func TestSleepTakesAnyTime(t *testing.T) {
	t.Parallel()
	for _, most := range []time.Duration{-1, 0, 1, 2, time.Microsecond} {
		if err := sleep(t.Context(), most); err != nil {
			t.Errorf("%v: %v", most, err)
		}
	}
}
