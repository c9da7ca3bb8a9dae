package idem

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/gowebpki/jcs"
)

// JSON is the fingerprint of what a JSON document says, however it is written: white space, the order
// of members and the spelling of numbers and strings do not matter. Pass the document as it came,
// not a struct made from it, which has lost what it does not know.
//
// A document that two readers could understand differently has no fingerprint; the verb that gets
// it returns [ErrInvalidKey]. Those are invalid JSON or UTF-8, a member that occurs twice in an
// object, an integer above 2^53, and any other number that a float64 cannot carry.
//
// The form that is hashed is RFC 8785 (JSON Canonicalization Scheme).
func JSON(document []byte) Fingerprint {
	canonical, err := canonicalJSON(document)
	if err != nil {
		return Fingerprint{version: fpJSON, fault: err.Error()}
	}
	sum := sha256.Sum256(canonical)
	return Fingerprint{version: fpJSON, sum: sum[:16]}
}

func canonicalJSON(document []byte) ([]byte, error) {
	if !utf8.Valid(document) {
		return nil, errors.New("is not valid UTF-8")
	}
	canonical, err := jcs.Transform(document) // refuses duplicate members, and bounds the depth
	if err != nil {
		return nil, fmt.Errorf("is not JSON that has a canonical form: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(document))
	d.UseNumber()
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return canonical, nil
		}
		if err != nil {
			return nil, fmt.Errorf("is not JSON: %w", err)
		}
		if number, ok := token.(json.Number); ok {
			if err := checkNumber(number.String()); err != nil {
				return nil, err
			}
		}
	}
}

// checkNumber refuses a number that comes out of a float64 as another one.
func checkNumber(text string) error {
	const most = 1 << 53
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || math.Abs(f) > most && f == math.Trunc(f) || !sameDecimal(text, strconv.FormatFloat(f, 'e', -1, 64)) {
		return fmt.Errorf("has the number %.40s, which not every reader can represent: send it as a string", text)
	}
	return nil
}

// sameDecimal compares two numbers as they are written.
func sameDecimal(a, b string) bool {
	digitsA, exponentA := decimal(a)
	digitsB, exponentB := decimal(b)
	return digitsA == digitsB && exponentA == exponentB
}

// decimal splits a number that ParseFloat accepts into its significant digits, and the power of ten that
// the first of them stands before.
func decimal(text string) (digits string, exponent int) {
	mantissa, power, _ := strings.Cut(strings.ToLower(strings.TrimPrefix(text, "-")), "e")
	exponent, _ = strconv.Atoi(power) // 0 without one; ParseFloat has refused what is out of range
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits = strings.TrimLeft(whole+fraction, "0")
	exponent += len(whole) - (len(whole) + len(fraction) - len(digits))
	digits = strings.TrimRight(digits, "0")
	if digits == "" {
		return "", 0
	}
	return digits, exponent
}
