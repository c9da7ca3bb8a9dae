package idem

import (
	"crypto/sha256"
	"crypto/subtle"
)

// Fingerprint is what makes two uses of a key the same request. Every verb asks for one, so
// that going without is a decision which a reviewer can see. Repeats are only compared with fingerprints of the same kind:
// while keys of an operation live, changing its kind lets other requests pass under them, with a warning to [Config.Logger]. It is stored as a digest of
// 128 bits with the version of its algorithm.
//
// It is of all that it is given, on purpose: a field that is not compared is one that a repeat could change, and be answered as if it had not. To
// leave out what may differ between repeats of one request, such as the time of sending, pass a document without it.
type Fingerprint struct {
	version int64
	sum     []byte
	fault   string // why there is none
}

// The algorithms. The numbers are stored; they are never reused.
const (
	fpMissing int64 = iota // the zero Fingerprint, refused
	fpNone
	fpBytes
	fpJSON
)

// Bytes is the fingerprint of a request's body as it came. A client that sends the same
// request must send the same bytes; one that marshals a map anew may not.
func Bytes(body []byte) Fingerprint {
	sum := sha256.Sum256(body)
	return Fingerprint{version: fpBytes, sum: sum[:16]}
}

// NoFingerprint accepts any request under the key as the same one. It is right where
// the id is derived from the request itself, and an invitation to wrong replays elsewhere.
func NoFingerprint() Fingerprint { return Fingerprint{version: fpNone} }

func (f Fingerprint) check() error {
	if f.fault != "" {
		return &KeyError{Part: "fingerprint", Reason: f.fault}
	}
	if f.version == fpMissing {
		return &KeyError{Part: "fingerprint", Reason: "is missing: use idem.Bytes(body) or idem.JSON(body), or idem.NoFingerprint() to go without"}
	}
	return nil
}

// matches compares with a stored fingerprint. known is false when the two were made by different
// algorithms, so that they cannot be compared: a request must not be refused because of a deploy, so
// such a pair counts as a match that deserves a warning.
func (f Fingerprint) matches(version int64, sum []byte) (same, known bool) {
	switch {
	case f.version == fpNone || version == fpNone:
		return true, true
	case f.version != version:
		return true, false
	}
	return subtle.ConstantTimeCompare(f.sum, sum) == 1, true
}
