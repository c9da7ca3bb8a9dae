package idem

import (
	"bytes"
	"testing"
)

// What was stored of a refusal comes back as it was, with its value or without; what was damaged is an error, never a
// panic, and never a longer reason than there is.
func FuzzRefusal(f *testing.F) {
	for _, seed := range [][]byte{nil, {0}, {0, 1}, {3, 'a', 'b', 'c'}, {3, 'a', 'b', 'c', 1, '{', '}'}, {200}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 'a'}, {0x80}} {
		f.Add(seed, "closed", []byte("{}"), true)
	}
	f.Add([]byte{1}, "", []byte{}, true)
	f.Add([]byte{1}, "a\x00b\xff", []byte{1}, false)
	f.Fuzz(func(t *testing.T, stored []byte, reason string, value []byte, valued bool) {
		if got, rest, err := unpackRefusal(stored); err == nil && len(got)+len(rest) > len(stored) {
			t.Fatalf("%q: %q and %q", stored, got, rest)
		}
		if !valued {
			value = nil
		} else if value == nil {
			value = []byte{}
		}
		got, rest, err := unpackRefusal(packRefusal(reason, value))
		if err != nil || got != reason || !bytes.Equal(rest, value) || (rest == nil) != (value == nil) {
			t.Fatalf("%q with %q: %q with %q, %v", reason, value, got, rest, err)
		}
	})
}
