package dblock

import (
	"encoding/hex"
	"fmt"

	"github.com/pgonce/pgonce/internal/pg"
)

// The longest that a part of a key may be, in bytes.
const (
	MaxSpace = 100
	MaxID    = 255
)

// Key names what is locked: a space ("order", "nightly-report") and an id in it. Both are
// required, 1 to [MaxSpace] and 1 to [MaxID] bytes of valid UTF-8 without control characters. A key
// that cannot be used is reported by the verb that gets it.
type Key struct {
	Space string
	ID    string
}

// Validate says whether the key can be used: nil, or a *KeyError.
func (k Key) Validate() error {
	if reason := pg.Fault(k.Space, MaxSpace); reason != "" {
		return &KeyError{Part: "space", Reason: reason}
	}
	if reason := pg.Fault(k.ID, MaxID); reason != "" {
		return &KeyError{Part: "id", Reason: reason}
	}
	return nil
}

// String is for logs and errors. It shows the space but only a digest of the id, which is often
// somebody's secret.
func (k Key) String() string {
	sum := pg.HashParts(k.Space, k.ID)
	return fmt.Sprintf("%s#%s", pg.Printable(k.Space), hex.EncodeToString(sum[:4]))
}

// number is the number of the key's advisory lock. Two keys in use at the same time that share one are
// found out by the process that uses both, and refused ([ErrCollision]); in two processes they
// cost a needless wait. Frozen: processes of two releases must agree on it.
func (k Key) number(schema string) int64 {
	return pg.LockNumber("pgonce.dblock", schema, k.Space, k.ID)
}

// The companions of a lock, by which a transaction that is fenced holds its successors up. One is held by all that are
// fenced, and an exclusive successor must find it free; the other one by those of exclusive tenures only, for shared
// successors. So whoever takes a lock looks at one, which is done much more often than fencing. Frozen, as the number is.
const (
	companionAny       = 0x3b67ae8584caa73b
	companionExclusive = 0x6a09e667f3bcc908
)

// companionMask is that of the companion which whoever takes a lock must find free.
func companionMask(shared bool) int64 {
	if shared {
		return companionExclusive
	}
	return companionAny
}
