//go:build unix

package failover_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pg"
)

// An old primary that comes back as one does not know that there is another. While it waits for its synchronous standby, which
// follows it no more, it acknowledges nothing and gives out no locks. When somebody has it do without a standby, it executes again what it
// has not heard of, and gives out locks, with tokens that are smaller than those of the new one: cut it off before.
func TestOldPrimaryComesBack(t *testing.T) {
	t.Parallel()
	p, c, told, _ := broken(t)
	p.synchronous(t)
	c.once(t.Context(), opDo, 1, 0)
	c.once(t.Context(), opLock, 0, 0)
	p.cutOff(t)
	old := p.failOver(t)
	c.once(t.Context(), opDo, 2, 0)
	c.once(t.Context(), opLock, 0, 0)
	if err := old.Up(); err != nil {
		t.Fatal(err)
	}
	astray, err := newClient(t.Context(), old.URL("postgres"), "", c.say) // it has found the old one
	if err != nil {
		t.Fatal(err)
	}
	defer astray.close(t.Context())

	if _, err := astray.refund(pg.WithNetTimeout(t.Context(), time.Second), "2"); !errors.Is(err, idem.ErrUnknownOutcome) {
		t.Errorf("the old primary said %v, want ErrUnknownOutcome", err)
	}
	db := connect(t, old)
	defer func() { _ = db.Close(t.Context()) }()
	if n := number(t, db, `SELECT count(*) FROM effect WHERE name = '2'`); n != 0 {
		t.Errorf("%d effects can be seen there", n)
	}
	first := (*told)[0].Receipt
	if receipt, err := astray.refund(t.Context(), "1"); err != nil || receipt != first {
		t.Errorf("what it knows: %q, %v, want %q", receipt, err, first)
	}

	if before, after := (*told)[1].Token, (*told)[3].Token; before >= after {
		t.Errorf("token %d, and after the promotion %d", before, after)
	}
	locks := func(ctx context.Context) (*dblock.Client[pgx.Tx], error) {
		return dblock.New(ctx, pgxdriver.New(astray.pool), nil)
	}
	if _, err := locks(pg.WithNetTimeout(t.Context(), 2*time.Second)); !errors.Is(err, dblock.ErrUnavailable) {
		t.Errorf("a new client of locks is told %v there, want ErrUnavailable", err)
	}

	say(t, db, `ALTER SYSTEM SET synchronous_standby_names = ''`, `SELECT pg_reload_conf()`)
	receipt, err := astray.refund(t.Context(), "2")
	if err != nil || receipt == (*told)[2].Receipt {
		t.Errorf("two primaries are two memories, and so there would be two effects: %q, %v", receipt, err)
	}
	client, err := locks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lock, err := client.Acquire(t.Context(), dblock.Key{Space: "hot", ID: "0"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if newest := (*told)[3].Token; int64(lock.Token()) >= newest {
		t.Errorf("the old primary gave out token %d, the new one %d before", lock.Token(), newest)
	}
	if err := errors.Join(lock.Release(t.Context()), client.Close(t.Context())); err != nil {
		t.Error(err)
	}
}
