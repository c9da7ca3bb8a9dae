//go:build unix

package statemachine_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

// JSON that jsonb does not take is refused before it can fail a transaction of the caller's, and nothing else is.
func TestMetaThatJSONBDoesNotTake(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps+`; INSERT INTO lamp VALUES (1)`)
	pool := db.Pool(t)
	b := bindLamps(t, pgxdriver.New(pool), sm.Table{})
	digits := strings.Repeat("1", 10_000)
	for says, texts := range map[string][]string{
		"":                               {`"\ud83d\ude00 \\ud800 \\\\u0000"`, `[1e5000, -1e-5000, ` + digits + `, 0.` + digits[2:] + `e-5000, ` + digits + `e5000]`, `{"a": null}`, strings.Repeat("[", 9999) + strings.Repeat("]", 9999)},
		"has a NUL character":            {`"\u0000"`, `"\\\u0000"`},
		"has half a surrogate pair":      {`"\ud800"`, `{"\uDC00": 1}`, `"\udc00\ud800"`, `"\ud800\ud83d\ude00\udc00"`, `"\\\uD800"`},
		"is not UTF-8":                   {"\"\xff\""},
		"has a number that Postgres can": {"1e5001", "[1E-5001]", "1e99999999999999999999", "1" + digits, "0." + strings.Repeat("1", 16384)},
	} {
		for _, text := range texts {
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_, err = b.FireTx(t.Context(), tx, 1, on, sm.Meta(json.RawMessage(text)))
			_, alive := tx.Exec(t.Context(), `SELECT 1`)
			if err := errors.Join(alive, tx.Rollback(t.Context())); err != nil {
				t.Errorf("%.60s: %v", text, err)
			}
			if says != "" {
				wantErr(t, err, sm.ErrInvalid, says)
			} else if err != nil {
				t.Errorf("%.60s: %v", text, err)
			}
		}
	}
}
