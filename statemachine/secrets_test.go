//go:build unix

package statemachine_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

// What a caller gives as Meta, Actor and Dedup, and as arguments of Set, Where, Match and Scope, comes into no error: errors end in logs.
func TestArgumentsStayOutOfErrors(t *testing.T) {
	t.Parallel()
	const secret = "4929-1234-5678-9012"
	db := pgtest.New(t)
	db.Exec(t, lamps+`; ALTER TABLE lamp ADD COLUMN note text, ADD COLUMN version bigint NOT NULL DEFAULT 0, ADD CONSTRAINT hot CHECK (watts < 100), ADD CONSTRAINT one UNIQUE (note);
		INSERT INTO lamp (id, state) VALUES (1, 'a'), (2, 'c'), (3, 'q'), (4, 'a'), (5, 'a'), (6, 'a'); UPDATE lamp SET note = '`+secret+`' WHERE id = 6`)
	pool := db.Pool(t)
	b := bindLamps(t, pgxdriver.New(pool), sm.Table{Version: "version", Scope: "note IS DISTINCT FROM $1"}).In("x" + secret)
	db.Exec(t, b.TriggerSQL(nil)[:strings.Index(b.TriggerSQL(nil), "COMMIT;")+7])
	ctx := t.Context()
	all := []sm.Option{sm.Meta(map[string]string{"card": secret}), sm.Actor(secret), sm.Dedup(secret)}
	fire := func(id int64, ev sm.Event[light], opts ...sm.Option) error {
		_, err := b.Fire(ctx, id, ev, append(opts, all...)...)
		return err
	}
	many := func(id int64, ev sm.Event[light], opts ...sm.Option) error {
		rows, err := b.FireMany(ctx, []int64{id}, ev, append(opts, all...)...)
		for _, r := range rows {
			err = errors.Join(err, r.Err)
		}
		return err
	}
	create := func(opts ...sm.Option) error {
		_, err := b.Create(ctx, 1, "a", append(opts, all[:2]...)...)
		return err
	}
	where, match := sm.Where("note = $1", secret), sm.Match("note = $1", secret)
	if err := fire(5, on); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"conflict": fire(2, on), "match": fire(1, on, match), "guard": fire(1, on, where), "version": fire(1, on, sm.ExpectVersion(7)), "not found": fire(9, on), "unknown state": fire(3, on),
		"dedup reused": fire(5, dim), "a CHECK": fire(1, on, sm.Set("watts", 1000), sm.Set("note", secret)), "a unique one": fire(1, on, sm.Set("note", secret)),
		"no such column": fire(1, on, sm.Set("nothing", secret)), "a bad expression": fire(1, on, sm.Where("nothing = $1", secret)), "two statements": fire(1, on, sm.Where("true; $1", secret)),
		"meta that is none": fire(1, on, sm.Meta(map[string]any{"card": secret, "n": math.NaN()})), "meta that is long": fire(1, on, sm.Meta(strings.Repeat(secret, 5000))),
		"meta with a NUL": fire(1, on, sm.Meta(secret+"\x00")), "an actor that is none": fire(1, on, sm.Actor(secret+"\n")), "an id that is none": fire(1, on, sm.Dedup(secret+"\n")),
		"many: conflict": many(2, on), "many: match": many(1, on, match), "many: guard": many(1, on, where), "many: dedup reused": many(5, dim), "many: a CHECK": many(1, on, sm.Set("watts", 1000)),
		"create: there": create(), "create: a CHECK": create(sm.Set("watts", 1000)),
		"scope": func() error { _, err := b.In(secret, secret).Fire(ctx, 1, on); return err }(),
	} {
		switch {
		case err == nil:
			t.Errorf("%s: no error", what)
		case strings.Contains(fmt.Sprintf("%v %+v %q", err, err, err), secret):
			t.Errorf("%s: the error says it: %v", what, err)
		}
	}
}
