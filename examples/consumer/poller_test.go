//go:build unix

package consumer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// inbox is a database with a poller on it, whose handler does what the test wants before it has its effect.
type inbox struct {
	*Poller
	t      *testing.T
	db     *pgtest.DB
	keys   *idem.Store[pgx.Tx]
	handle Handler
}

func newInbox(t *testing.T) *inbox {
	t.Helper()
	db := pgtest.New(t)
	db.Exec(t, Tables)
	pool := db.Pool(t)
	keys, err := idem.New(pgxdriver.New(pool), nil)
	if err != nil {
		t.Fatal(err)
	}
	in := &inbox{t: t, db: db, keys: keys, handle: AddCredit}
	once := Once(keys, func(ctx context.Context, tx pgx.Tx, m Message) error { return in.handle(ctx, tx, m) })
	in.Poller = &Poller{Pool: pool, Handle: once, Invisible: time.Hour, MaxAttempts: 3}
	return in
}

func (in *inbox) publish(message, body string) {
	in.t.Helper()
	in.db.Exec(in.t, fmt.Sprintf(`INSERT INTO inbox (source, message, body) VALUES ('bank', '%s', '%s')`, message, body))
}

const hundred = `{"account":"a","cents":100}`

// next works on one message.
func (in *inbox) next() {
	in.t.Helper()
	if worked, err := in.Next(in.t.Context()); !worked || err != nil {
		in.t.Fatalf("worked: %t, %v", worked, err)
	}
}

// later makes everything that waits visible, as time would.
func (in *inbox) later() { in.db.Exec(in.t, `UPDATE inbox SET visible_at = statement_timestamp()`) }

// has checks the cents that were credited, and how many messages wait and are put aside.
func (in *inbox) has(cents, waiting, dead int64) {
	in.t.Helper()
	c := in.db.Int(in.t, `SELECT coalesce(sum(cents), 0)::bigint FROM credit`)
	w, d := in.db.Int(in.t, `SELECT count(*) FROM inbox WHERE dead IS NULL`), in.db.Int(in.t, `SELECT count(*) FROM inbox WHERE dead IS NOT NULL`)
	if c != cents || w != waiting || d != dead {
		in.t.Errorf("%d cents, %d waiting, %d put aside, want %d, %d, %d", c, w, d, cents, waiting, dead)
	}
}

// While a message is not acknowledged, it is there; when it is gone, its effect is.
func TestPollerAcknowledgesAfterTheCommit(t *testing.T) {
	t.Parallel()
	in := newInbox(t)
	once := in.Handle
	in.Handle = func(ctx context.Context, m Message) error {
		in.has(0, 1, 0)
		if worked, err := in.Next(ctx); worked || err != nil {
			t.Errorf("another poller, meanwhile: %t, %v", worked, err)
		}
		err := once(ctx, m)
		in.has(100, 1, 0)
		return err
	}
	in.publish("m1", hundred)
	in.next()
	in.has(100, 0, 0)
	if worked, err := in.Next(t.Context()); worked || err != nil {
		t.Errorf("of an empty inbox: %t, %v", worked, err)
	}
}

// The worker dies after the commit and before the acknowledgement, or is taken for dead and comes back.
func TestPollerCrashesBeforeItAcknowledges(t *testing.T) {
	t.Parallel()
	in := newInbox(t)
	in.publish("m1", hundred)
	delivery, m, err := in.claim(t.Context())
	if err == nil {
		err = in.Handle(t.Context(), m)
	}
	if err != nil {
		t.Fatal(err)
	}
	in.has(100, 1, 0)
	in.later()
	again, second, err := in.claim(t.Context())
	if err != nil || again != delivery || second.Attempt != 2 {
		t.Fatalf("claimed %d, %+v, %v", again, second, err)
	}
	if err := in.settle(t.Context(), delivery, m, nil); err != nil { // it comes back: the claim is not its own any more
		t.Fatal(err)
	}
	in.has(100, 1, 0)
	if err := errors.Join(in.Handle(t.Context(), second), in.settle(t.Context(), again, second, nil)); err != nil {
		t.Fatal(err)
	}
	in.has(100, 0, 0)
}

// The worker dies in mid-handler: nothing has happened, and the message comes again.
func TestPollerCrashesInTheHandler(t *testing.T) {
	t.Parallel()
	in := newInbox(t)
	in.publish("m1", hundred)
	in.handle = func(ctx context.Context, tx pgx.Tx, m Message) error {
		return errors.Join(AddCredit(ctx, tx, m), errors.New("the process is told to stop"))
	}
	in.next()
	in.has(0, 1, 0)
	if worked, err := in.Next(t.Context()); worked || err != nil {
		t.Errorf("at once: %t, %v", worked, err)
	}
	in.handle = AddCredit
	in.later()
	in.next()
	in.has(100, 0, 0)
}

// A message that was published twice, and one that comes when its result is no longer kept.
func TestPollerGetsDuplicates(t *testing.T) {
	t.Parallel()
	in := newInbox(t)
	in.publish("m1", hundred)
	in.publish("m1", hundred)
	in.publish("m2", hundred)
	for range 3 {
		in.next()
	}
	in.has(200, 0, 0)
	in.db.Exec(t, `UPDATE pgonce.idem_record SET result = NULL`)
	in.publish("m1", hundred)
	in.next()
	in.has(200, 0, 0)
}

// Messages that can never have an effect are put aside, with the reason, and are in nobody's way: bad ones, another
// message under a known id, one that always fails, and one that kills its worker.
func TestPollerPutsPoisonAside(t *testing.T) {
	t.Parallel()
	in := newInbox(t)
	in.handle = func(ctx context.Context, tx pgx.Tx, m Message) error {
		switch m.ID {
		case "fails":
			return errors.Join(AddCredit(ctx, tx, m), errors.New("no such account"))
		case "kills":
			panic("a bug")
		}
		return AddCredit(ctx, tx, m)
	}
	for message, body := range map[string]string{"bad": `{"account":"a","cents":-1}`, "fails": hundred, "kills": hundred} {
		in.publish(message, body)
	}
	in.publish("m1", hundred)
	in.publish("m1", `{"account":"a","cents":999}`)
	for range 2 * (in.MaxAttempts + 2) {
		func() {
			defer func() { _ = recover() }() // the process dies, and another one starts
			_, err := in.Next(t.Context())
			if err != nil {
				t.Error(err)
			}
		}()
		in.later()
	}
	in.has(100, 0, 4)
	for message, reason := range map[string]string{"bad": "bad message", "fails": "no such account", "kills": "its worker died", "m1": "another request"} {
		if n := in.db.Int(t, fmt.Sprintf(`SELECT count(*) FROM inbox WHERE message = '%s' AND dead LIKE '%%%s%%'`, message, reason)); n != 1 {
			t.Errorf("%s: %d with the reason %q", message, n, reason)
		}
	}
}

// A delivery that meets another one at work is no fault of the message's: it is not counted.
func TestPollerMeetsAnother(t *testing.T) {
	t.Parallel()
	in := newInbox(t)
	in.publish("m1", hundred)
	in.Handle = func(context.Context, Message) error { return fmt.Errorf("do: %w", idem.ErrInFlight) }
	for range 2 * in.MaxAttempts {
		in.next()
		in.later()
	}
	in.has(0, 1, 0)
	if n := in.db.Int(t, `SELECT attempts::bigint FROM inbox`); n != 0 {
		t.Errorf("%d attempts", n)
	}
}

// Four pollers, each message three times, every fifth acknowledgement lost: each message has its effect once.
func TestPollersInAStorm(t *testing.T) {
	t.Parallel()
	in := newInbox(t)
	const messages = 12
	for n := range 3 * messages {
		in.publish(fmt.Sprint("m", n%messages), hundred)
	}
	in.MaxAttempts = 1000
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for n := 0; ; n++ {
				delivery, m, err := in.claim(t.Context())
				if errors.Is(err, pgx.ErrNoRows) {
					return
				}
				if err == nil {
					err = in.Handle(t.Context(), m)
				}
				if n%5 == 4 {
					continue
				}
				if bad := in.settle(t.Context(), delivery, m, err); bad != nil {
					t.Error(bad)
				}
			}
		})
	}
	wg.Wait()
	for in.db.Int(t, `SELECT count(*) FROM inbox`) > 0 {
		in.later()
		in.next()
	}
	in.has(100*messages, 0, 0)
	if n := in.db.Int(t, `SELECT count(DISTINCT id) FROM pgonce.idem_record`); n != messages {
		t.Errorf("%d keys", n)
	}
}

// What the server says is passed on, and nothing is lost.
func TestPollerWithoutATable(t *testing.T) {
	t.Parallel()
	in := newInbox(t)
	in.db.Exec(t, `DROP TABLE inbox`)
	if worked, err := in.Next(t.Context()); worked || err == nil || !strings.Contains(err.Error(), "claim") {
		t.Errorf("worked: %t, %v", worked, err)
	}
}
