//go:build unix

package idem_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"testing"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// sealed is a codec that lets nobody read results who has not its key.
type sealed struct{ cipher.AEAD }

func newSealed(t *testing.T) sealed {
	t.Helper()
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	block, err := aes.NewCipher(secret)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	return sealed{aead}
}

func (s sealed) Encode(v any) ([]byte, error) {
	plain, err := json.Marshal(v)
	return s.Seal(nil, nil, plain, nil), err
}

func (s sealed) Decode(data []byte, into any) error {
	plain, err := s.Open(nil, nil, data, nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(plain, into)
}

// Results can be sealed by a Codec: nothing of them is in the table, repeats get them, and whoever has another key gets an error and executes nothing.
func TestResultsCanBeSealed(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, effects)
	pool := db.Pool(t)
	mine := newStore(t, pool, &idem.Config{Codec: newSealed(t)})
	for _, replayed := range []bool{false, true} {
		res, err := idem.Do(t.Context(), mine, refund.Key("m1", "r1"), idem.NoFingerprint(), insertEffect)
		if err != nil || res.Value != "receipt" || res.Replayed != replayed {
			t.Errorf("got %+v, %v", res, err)
		}
	}
	if n := db.Int(t, `SELECT count(*) FROM pgonce.idem_record WHERE position('receipt'::bytea in result) = 0`); n != 1 {
		t.Error("the result can be read")
	}
	theirs := newStore(t, pool, &idem.Config{Codec: newSealed(t)})
	if _, err := idem.Do(t.Context(), theirs, refund.Key("m1", "r1"), idem.NoFingerprint(), insertEffect); err == nil || errors.Is(err, idem.ErrUnknownOutcome) {
		t.Errorf("with another key: %v", err)
	}
	if n := db.Int(t, `SELECT count(*) FROM effect`); n != 1 {
		t.Errorf("%d effects", n)
	}
}
