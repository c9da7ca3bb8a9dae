//go:build unix

package conformance

import (
	"context"
	"testing"
	"time"

	"github.com/pgonce/pgonce/idem"
)

func idemExpiry[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	short := idem.Op{Name: "short", ReplayFor: time.Hour, RememberFor: 2 * time.Hour}
	call := func(op idem.Op) (idem.Result[string], error) {
		return idem.Do(t.Context(), b.keys, op.Key("m1", "r1"), idem.NoFingerprint(), b.effect(op.Name))
	}
	forever := idem.Op{Name: "forever", ReplayFor: idem.Forever, RememberFor: idem.Forever}
	for _, op := range []idem.Op{short, forever, refund} {
		_, err := call(op)
		noErr(t, err)
	}
	age := func(interval string) {
		b.db.Exec(t, `UPDATE pgonce.idem_record SET created_at = created_at - interval '`+interval+`',
			replay_until = replay_until - interval '`+interval+`', remember_until = remember_until - interval '`+interval+`'`)
	}
	wantInt(t, "defaults", b.db.Int(t, `SELECT count(*) FROM pgonce.idem_record WHERE op = 'refund.create'
		AND replay_until BETWEEN created_at + interval '24 h' AND created_at + interval '24 h 1 min'
		AND remember_until BETWEEN created_at + interval '30 days' AND created_at + interval '30 days 1 min'`), 1)

	age("59 minutes")
	res, err := call(short)
	noErr(t, err)
	if !res.Replayed {
		t.Errorf("got %+v", res)
	}
	for _, more := range []string{"2 minutes", "10 hours"} { // past ReplayFor, past RememberFor
		age(more)
		_, err = call(short)
		wantErr(t, err, idem.ErrExpired)
		_, _, err = idem.Lookup[string](t.Context(), b.keys, short.Key("m1", "r1"), idem.NoFingerprint())
		wantErr(t, err, idem.ErrExpired)
	}
	b.db.Exec(t, `UPDATE pgonce.idem_record SET result = NULL WHERE op = 'refund.create'`) // as a purge will
	_, err = call(refund)
	wantErr(t, err, idem.ErrExpired)
	age("1000 years")
	res, err = call(forever)
	noErr(t, err)
	if !res.Replayed {
		t.Errorf("got %+v", res)
	}
	b.effects(3)
}

// The first caller gets the value as a repeat will. What cannot be stored is
// found before anything is committed.
func idemResults[TX any](t *testing.T, c Client[TX]) {
	b := setup(t, c, 2)
	type receipt struct {
		ID     int64
		Note   string
		At     time.Time
		secret string
	}
	made := receipt{ID: 9007199254740993, Note: "ü\x00", At: time.Now(), secret: "not stored"}
	call := func() (idem.Result[receipt], error) {
		return idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(context.Context, TX) (receipt, error) {
			return made, nil
		})
	}
	first, err := call()
	noErr(t, err)
	again, err := call()
	noErr(t, err)
	if first.Value != again.Value || first.Value.secret != "" || first.Value.ID != made.ID || first.Value.Note != made.Note {
		t.Errorf("first %+v, repeat %+v", first.Value, again.Value)
	}
	none, err := idem.Do(t.Context(), b.keys, refund.Key("m1", "nil"), idem.NoFingerprint(), func(context.Context, TX) (*receipt, error) {
		return nil, nil
	})
	if err != nil || none.Value != nil {
		t.Errorf("nil result: %+v, %v", none, err)
	}
	_, err = idem.Do(t.Context(), b.keys, refund.Key("m1", "chan"), idem.NoFingerprint(), func(ctx context.Context, tx TX) (chan int, error) {
		return make(chan int), b.Exec(ctx, tx, `INSERT INTO effect VALUES ('chan')`)
	})
	wantText(t, err, "encode result chan int")
	_, err = idem.Do(t.Context(), b.keys, refund.Key("m1", "r1"), idem.NoFingerprint(), func(context.Context, TX) (int, error) { return 0, nil })
	wantText(t, err, "decode result into int")
	b.effects(0)
	b.records(2)
}
