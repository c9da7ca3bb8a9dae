package statemachine

import (
	"bytes"
	"cmp"
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

var (
	escapedBackslash = regexp.MustCompile(`\\\\`)
	surrogatePair    = regexp.MustCompile(`\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}`)
	surrogate        = regexp.MustCompile(`\\u[dD][89a-fA-F][0-9a-fA-F]{2}`)
)

// The numbers of JSON have no limits, those of jsonb have: 131072 digits before the point and 16383 after it. These are within both.
const (
	maxDigits   = 10_000
	maxExponent = 5_000
)

// faultOfJSON says what the server would refuse in valid JSON: a json.RawMessage is sent as it is.
func faultOfJSON(data []byte) string {
	escapes := escapedBackslash.ReplaceAll(data, nil)
	switch {
	case !utf8.Valid(data):
		return "is not UTF-8"
	case bytes.Contains(escapes, []byte(`\u0000`)):
		return "has a NUL character, which Postgres does not store"
	case surrogate.Match(surrogatePair.ReplaceAll(escapes, nil)):
		return "has half a surrogate pair, which is no character"
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	for {
		token, err := d.Token()
		if err != nil {
			return "" // the end: it is valid
		}
		number, ok := token.(json.Number)
		if !ok {
			continue
		}
		digits, exponent, _ := strings.Cut(strings.ToLower(number.String()), "e")
		if n, err := strconv.Atoi(cmp.Or(exponent, "0")); err != nil || len(digits) > maxDigits || n < -maxExponent || n > maxExponent {
			return "has a number that Postgres cannot store"
		}
	}
}
