//go:build unix

package statemachine

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// Every text that a call can have is complete, has its arguments without gaps, and the server can prepare it.
func TestEveryShapeOfFireIsValid(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE orders (id bigint PRIMARY KEY, state text, version int, since timestamptz, amount int)`)
	conn, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	pay, drop := NewEvent[string]("pay"), NewEvent[string]("drop")
	m := MustNew("orders", Initial("a"), Final("c"), From("a").On(pay).To("b"), From("a").On(drop).To("c"), From("b").On(drop).To("c"), From("b").On(NewEvent[string]("void")).To("c"))
	seen := map[string]bool{}
	for n := range 1 << 8 {
		bit := func(place int) bool { return n>>place&1 == 1 }
		table := Table{Name: "orders", NoHistory: bit(0)}
		if bit(1) {
			table.Version, table.Since, table.Scope = "version", "since", "amount = $1"
		}
		r, _ := table.resolve()
		l := &layout{table: r, idType: "bigint", shapes: map[shape]*statement{}, columns: map[string]column{"state": {typ: "pg_catalog.text"}, "amount": {typ: "pg_catalog.int4"}}}
		f := &firing[int64, string, pgx.Tx]{b: &Binding[int64, string, pgx.Tx]{m: m, table: r}, event: pay, mv: m.events["pay"], many: bit(2), layout: l}
		if bit(3) {
			f.event, f.mv = drop, m.events["drop"]
		}
		f.call = call{lock: bit(4)}
		if bit(5) && !table.NoHistory {
			id := "d"
			f.call.dedup = &id
		}
		if bit(1) {
			version := int64(1)
			f.call.version = &version
			f.call.apply([]Option{Where("amount > $1", 0), Match("amount = $1", 1), Set("amount", 1)})
		}
		for how := range 4 {
			held, first := how&1 == 1, how&2 == 2
			if table.NoHistory && f.mv.shared {
				continue // Bind refuses it
			}
			s, err := f.statement(f.partsOf(bit(6), bit(7), held, first && !held))
			if err != nil {
				t.Fatal(err)
			}
			if seen[s.sql] {
				continue
			}
			seen[s.sql] = true
			if strings.Contains(s.sql, "/*") || strings.Contains(s.sql, "*/") || !slices.IsSorted(s.args) {
				t.Errorf("something was not filled in: %v of\n%s", s.args, s.sql)
			}
			d, err := conn.Prepare(t.Context(), fmt.Sprint(len(seen)), s.sql)
			if err != nil {
				t.Fatalf("%v\n%s", err, s.sql)
			}
			if got, want := len(d.ParamOIDs), len(s.args)+len(f.call.args(nil))+r.scopeArgs; got != want {
				t.Errorf("%d parameters, %d arguments:\n%s", got, want, s.sql)
			}
		}
	}
	if len(seen) < 60 {
		t.Errorf("only %d texts", len(seen))
	}
}
