//go:build unix

package statemachine_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

// What a state requires the database keeps, from old rows once they have it, and as long as the machine says so.
func TestTriggerSQLKeepsWhatStatesRequire(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	const odd = `it's "$pgonce$" \`
	db.Exec(t, lamps+`; ALTER TABLE lamp ALTER watts DROP NOT NULL, ADD COLUMN "it's ""$pgonce$"" \" text; INSERT INTO lamp VALUES (1, 'a', 10), (2, 'z', NULL), (3, 'b', NULL)`)
	d := pgxdriver.New(db.Pool(t))
	bind := func(rules ...sm.Rule[light]) *sm.Binding[int64, light, pgx.Tx] {
		t.Helper()
		b, err := sm.Bind[int64](sm.MustNew("lights", append(rules, sm.Initial[light]("a"), sm.Final[light]("z"),
			from("a").On(on).To("b").Setting(odd, "watts"), from("b").On(off).To("z").Setting("watts"))...), d, sm.Table{Name: "lamp"})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	b, without := bind(sm.Require[light]("z", "watts"), sm.Require[light]("b", odd)), bind()

	// The first transaction holds new rows to it; the second fails while old ones break it.
	first, second, _ := strings.Cut(b.TriggerSQL(nil), "COMMIT;")
	db.Exec(t, first+"COMMIT;")
	if err := exec(t, db, strings.TrimSuffix(strings.TrimSpace(strings.Replace(second, "BEGIN;", "", 1)), "COMMIT;")+"SELECT 1"); !breaks(err) {
		t.Errorf("got %v", err)
	}
	got := found(t, b.Verify(t.Context()))
	if len(got) != 2 || !strings.HasPrefix(got[1], `check "pgonce_requires_state": is not valid`) {
		t.Errorf("got %q", got)
	}
	db.Exec(t, `UPDATE lamp SET watts = 5, "it's ""$pgonce$"" \" = 'x' WHERE id > 1`)
	db.Exec(t, second)
	if err := b.Verify(t.Context()); err != nil {
		t.Error(err)
	}

	for sql, legal := range map[string]bool{
		`UPDATE lamp SET state = 'b' WHERE id = 1`:                                              false,
		`UPDATE lamp SET state = 'b', "it's ""$pgonce$"" \" = 'x', watts = NULL WHERE id = 1`:   true,
		`UPDATE lamp SET watts = NULL WHERE id = 1`:                                             true,
		`UPDATE lamp SET watts = NULL WHERE id = 2`:                                             false,
		`SET LOCAL session_replication_role = replica; UPDATE lamp SET watts = NULL WHERE id=2`: false,
	} {
		if err := exec(t, db, sql); legal != (err == nil) || !legal && !breaks(err) {
			t.Errorf("%s: got %v", sql, err)
		}
	}
	if _, err := b.Fire(t.Context(), 3, off, sm.SetExpr("watts", "NULL")); !breaks(err) || errors.Is(err, sm.ErrTriggerRefused) {
		t.Errorf("got %v", err)
	}
	if res, err := b.Fire(t.Context(), 3, off, sm.Set("watts", 7)); err != nil || !res.Applied() {
		t.Errorf("got %+v, %v", res, err)
	}

	got = found(t, without.Verify(t.Context()))
	if len(got) != 2 || !strings.Contains(got[0], `it still requires`) || !strings.HasPrefix(got[1], `check "pgonce_requires_state": requires `) {
		t.Errorf("got %q", got)
	}
	db.Exec(t, without.TriggerSQL(nil))
	if err := without.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	if got = found(t, b.Verify(t.Context())); len(got) != 2 || !strings.Contains(got[0], `it does not require`) || !strings.HasPrefix(got[1], `check "pgonce_requires_state": is missing`) {
		t.Errorf("got %q", got)
	}
}

// breaks says whether it was the CHECK of what states require.
func breaks(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && e.Code == "23514" && e.ConstraintName == "pgonce_requires_state"
}
