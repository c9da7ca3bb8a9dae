package idemhttp

import (
	"fmt"
	"net/http"

	"github.com/dunglas/httpsfv"
	"github.com/pgonce/pgonce/idem"
)

const keyHeader = "Idempotency-Key"

// keyOf is the id in a request's header.
func keyOf(h http.Header) (string, error) {
	values := h.Values(keyHeader)
	switch len(values) {
	case 0:
		return "", newProblem(http.StatusBadRequest, ProblemMissingKey, "This request needs an Idempotency-Key header: "+
			`a string that is new for each request and the same for each repeat of it, such as "8e03978e-40d5-43dd-bc93-6894a57f9324".`)
	case 1:
	default:
		return "", invalidKey("is there more than once")
	}
	id, fault := parseKey(values[0])
	if fault != "" {
		return "", invalidKey(fault)
	}
	return id, nil
}

// keyOf is the id in a request's header, if it is as long as the service asks for.
func (c *Config) keyOf(h http.Header) (string, error) {
	id, err := keyOf(h)
	if err == nil && len(id) < c.MinKey {
		return "", invalidKey(fmt.Sprintf("has a key of %d bytes, this service asks for at least %d", len(id), c.MinKey))
	}
	return id, err
}

func invalidKey(fault string) error {
	return newProblem(http.StatusBadRequest, ProblemInvalidKey, "The Idempotency-Key header "+fault+".")
}

// parseKey reads a String of RFC 8941, or the same without quotes, as most clients send it. The
// two forms name the same key. What could be a list or have parameters is not a bare key, so that
// nobody has to guess where it ends.
func parseKey(value string) (id, fault string) {
	if value == "" {
		return "", "is empty"
	}
	id = value
	if value[0] == '"' {
		item, err := httpsfv.UnmarshalItem([]string{value})
		if err != nil {
			return "", "is not one string of RFC 8941"
		}
		if len(item.Params.Names()) > 0 {
			return "", "has parameters after its string"
		}
		id, _ = item.Value.(string)
	} else {
		for _, c := range []byte(value) {
			if c <= ' ' || c > '~' || c == '"' || c == '\\' || c == ',' || c == ';' {
				return "", fmt.Sprintf("has the byte 0x%02x, which needs quotes or is not allowed at all", c)
			}
		}
	}
	switch {
	case id == "":
		return "", "is empty"
	case len(id) > idem.MaxID:
		return "", fmt.Sprintf("has a key of %d bytes, the limit is %d", len(id), idem.MaxID)
	}
	return id, ""
}
