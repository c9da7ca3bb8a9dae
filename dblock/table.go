package dblock

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pgonce/pgonce/internal/pg"
)

// RowKey is what rows are named by: the Go type of a column that is a smallint, int or bigint; of a uuid, as
// 16 bytes; or of a text, varchar or the like.
type RowKey interface {
	~int | ~int16 | ~int32 | ~int64 | ~string | ~[16]byte
}

// Table says where the rows are. Names are taken as they are written, case included; what SQL
// created without quotes is lower case.
type Table struct {
	// Name is "orders" or "billing.orders". Without a schema it is in "public": the
	// search_path is never asked.
	Name string

	// ID is the column that names a row. All transactions that lock rows of the table should name them by the
	// same one, since its order is what keeps them from waiting for each other in a circle. Defaults to "id".
	ID string
}

// maxIdentifier is what Postgres cuts longer names down to, in bytes.
const maxIdentifier = 63

// resolve is the table and its column in SQL.
func (t Table) resolve() (table, column string, err error) {
	schema, name := "public", t.Name
	if before, after, ok := strings.Cut(t.Name, "."); ok {
		schema, name = before, after
	}
	id := cmp.Or(t.ID, "id")
	for _, part := range []struct{ what, name string }{{"table's schema", schema}, {"table's name", name}, {"id column", id}} {
		if reason := pg.Fault(part.name, maxIdentifier); reason != "" {
			return "", "", fmt.Errorf("%w: %s %s", ErrInvalidTable, part.what, reason)
		}
	}
	if strings.Contains(name, ".") {
		return "", "", fmt.Errorf("%w: name %s has more than one dot", ErrInvalidTable, pg.Printable(t.Name))
	}
	return quote(schema) + "." + quote(name), quote(id), nil
}

// quote makes an identifier of any name.
func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// keySet is the keys of one call, each once, and the text by which the server knows it.
type keySet[K RowKey] struct {
	texts []string
	keys  map[string]K
}

func newKeySet[K RowKey](keys []K) (keySet[K], error) {
	s := keySet[K]{texts: make([]string, 0, len(keys)), keys: make(map[string]K, len(keys))}
	for _, k := range keys {
		text := keyText(k)
		if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			return s, fmt.Errorf("%w: key %s is not valid text", ErrInvalidTable, pg.Printable(text))
		}
		if _, ok := s.keys[text]; !ok {
			s.keys[text] = k
			s.texts = append(s.texts, text)
		}
	}
	return s, nil
}

// array is the keys as an array's literal, which every client library can carry.
func (s keySet[K]) array() string {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	var b strings.Builder
	for i, text := range s.texts {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(`"` + escape.Replace(text) + `"`)
	}
	return "{" + b.String() + "}"
}

// split is the keys that were found, as the caller named them, and the text of those that were not. A column
// may have a collation by which different texts are equal, so a text that comes back need not be one that was sent.
func (s keySet[K]) split(found []string) (locked []K, missing []string) {
	there := make(map[string]bool, len(found))
	for _, text := range found {
		if there[text] {
			continue // the column is not unique
		}
		there[text] = true
		k, ok := s.keys[text]
		if !ok {
			reflect.ValueOf(&k).Elem().SetString(text) // no other kind of key has two texts
		}
		locked = append(locked, k)
	}
	for _, text := range s.texts {
		if !there[text] {
			missing = append(missing, text)
		}
	}
	return locked, missing
}

func keyText[K RowKey](key K) string {
	v := reflect.ValueOf(key)
	switch v.Kind() {
	case reflect.String:
		return v.String()
	case reflect.Array:
		var b [16]byte
		reflect.Copy(reflect.ValueOf(&b).Elem(), v)
		h := hex.EncodeToString(b[:])
		return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
	}
	return strconv.FormatInt(v.Int(), 10)
}

// keyType is the type as which keys are sent.
func keyType[K RowKey]() string {
	switch reflect.TypeFor[K]().Kind() {
	case reflect.String:
		return "text"
	case reflect.Array:
		return "uuid"
	}
	return "bigint"
}
