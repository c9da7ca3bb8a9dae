package pg

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// Fault says what is wrong with a part of a key, or nothing. A part is 1 to most bytes of valid
// UTF-8 without control characters.
func Fault(s string, most int) string {
	switch {
	case s == "":
		return "is empty"
	case len(s) > most:
		return fmt.Sprintf("has %d bytes, the limit is %d", len(s), most)
	case !utf8.ValidString(s):
		return "is not valid UTF-8"
	}
	for i, r := range s {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return fmt.Sprintf("has the control character %U at byte %d", r, i)
		}
	}
	return ""
}

// Printable shows what it can of a part of a key that may have been refused.
func Printable(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "..."
	}
	quoted := fmt.Sprintf("%q", s)
	return quoted[1 : len(quoted)-1]
}

// HashParts is the sha256 of the parts, each behind its length, so that no two lists run together to
// the same bytes. Frozen: what it names is stored, and processes of two releases must agree on it.
func HashParts(parts ...string) [sha256.Size]byte {
	buf := make([]byte, 0, 512) // on the stack
	for _, p := range parts {
		buf = binary.BigEndian.AppendUint64(buf, uint64(len(p)))
		buf = append(buf, p...)
	}
	return sha256.Sum256(buf)
}

// LockNumber is the number of the advisory lock that the parts name. Frozen, as [HashParts] is.
func LockNumber(parts ...string) int64 {
	sum := HashParts(parts...)
	return int64(binary.BigEndian.Uint64(sum[:8])) //nolint:gosec // a bit pattern, not a number
}
