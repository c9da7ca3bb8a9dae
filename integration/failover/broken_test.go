//go:build unix

package failover_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// broken is a pair with one client whose handlers do something that they must not, and what clients were told.
func broken(t *testing.T) (p *pair, c *client, told *[]entry, bank string) {
	t.Helper()
	p, told, bank = newPair(t), new([]entry), filepath.Join(t.TempDir(), "bank")
	if err := appendLine(bank, "0 reference"); err != nil {
		t.Fatal(err)
	}
	c, err := newClient(t.Context(), p.url(), bank, func(e entry) { *told = append(*told, e) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.close(t.Context()) })
	return p, c, told, bank
}

// The audits have to be able to fail. Here an effect is written in a transaction of its own, so that it reaches the standby without its
// record, and is doubled by the repeat; and a past holder's write lands.
func TestAuditFindsAnEffectAlone(t *testing.T) {
	t.Parallel()
	p, c, told, bank := broken(t)
	insert := c.insert
	c.insert = func(ctx context.Context, _ pgx.Tx, name, receipt string) error {
		return pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error { return insert(ctx, tx, name, receipt) })
	}
	c.once(t.Context(), opDo, 1, 0)
	c.insert = func(ctx context.Context, _ pgx.Tx, name, receipt string) error {
		err := pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error { return insert(ctx, tx, name, receipt) })
		p.drained(t)
		p.cutOff(t)
		return err
	}
	c.once(t.Context(), opDo, 2, 0)
	p.failOver(t)
	if a := auditOf(t, p, *told, bank); a.alone != 1 || a.doubled != 0 || a.acknowledged != 2 {
		t.Errorf("before the repeat: %+v", a)
	}
	c.insert = insert
	c.once(t.Context(), opDo, 2, 0)
	db := connect(t, p.primary)
	defer func() { _ = db.Close(t.Context()) }()
	say(t, db, `INSERT INTO guarded (name, token) VALUES ('1', 2), ('1', 1)`, `INSERT INTO orders VALUES (1, 'paid')`)
	if err := appendLine(bank, "0 another"); err != nil {
		t.Fatal(err)
	}
	a := auditOf(t, p, *told, bank)
	if a.doubled != 2 || a.alone != 1 || len(a.tokens) != 1 { // the effect and the payment; the order without a history; the late write
		t.Errorf("after it: %+v", a)
	}
}

// Here a handler does without the standby, so an effect is lost that was acknowledged.
func TestAuditFindsALostEffect(t *testing.T) {
	t.Parallel()
	p, c, told, bank := broken(t)
	p.synchronous(t)
	c.once(t.Context(), opDo, 1, 0)
	p.cutOff(t)
	insert := c.insert
	c.insert = func(ctx context.Context, tx pgx.Tx, name, receipt string) error {
		if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = local`); err != nil {
			return err
		}
		return insert(ctx, tx, name, receipt)
	}
	c.once(t.Context(), opDo, 2, 0)
	p.failOver(t)
	if a := auditOf(t, p, *told, bank); a.lost != 1 || a.alone != 0 || a.doubled != 0 || a.acknowledged != 2 {
		t.Errorf("got %+v", a)
	}
}

func TestAuditFindsASmallToken(t *testing.T) {
	t.Parallel()
	grant := func(name string, asked, told, token int64) entry {
		return entry{Kind: opLock, Name: name, Asked: asked, Told: told, Token: token}
	}
	good := []entry{grant("a", 1, 2, 10), grant("a", 3, 4, 11), grant("b", 5, 6, 1), grant("a", 3, 9, 13), grant("a", 7, 8, 12)}
	if faults := tokenFaults(good); len(faults) > 0 {
		t.Error(faults)
	}
	faults := tokenFaults(append(good, grant("a", 10, 11, 13), grant("b", 7, 8, 2)))
	if len(faults) != 1 || !strings.Contains(faults[0], "token 13 after 13") {
		t.Errorf("found %q", faults)
	}
}
