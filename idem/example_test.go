//go:build unix

package idem_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// Receipt is what a refund answers.
type Receipt struct{ RefundID int64 }

var CreateRefund = idem.Op{Name: "refund.create", ReplayFor: idem.Forever, RememberFor: idem.Forever, Wait: 2 * time.Second}

// The money moves and the receipt is recorded in one commit. Every repeat of
// (merchant, key) gets the first receipt; the same key with another body is refused.
func Refund(ctx context.Context, keys *idem.Store[pgx.Tx], merchant, key string, body []byte) (idem.Result[Receipt], error) {
	return idem.Do(ctx, keys, CreateRefund.Key(merchant, key), idem.Bytes(body),
		func(ctx context.Context, tx pgx.Tx) (r Receipt, err error) {
			err = tx.QueryRow(ctx, `INSERT INTO refund (merchant, body) VALUES ($1, $2) RETURNING id`,
				merchant, body).Scan(&r.RefundID)
			return r, err
		})
}

const refundTable = `CREATE TABLE refund (id bigint GENERATED ALWAYS AS IDENTITY, merchant text NOT NULL, body json NOT NULL)`

func ExampleDo() {
	pgtest.Example(refundTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		for _, body := range []string{`{"cents": 1250}`, `{"cents": 1250}`, `{"cents": 9999}`} {
			res, err := Refund(ctx, keys, "merchant-7", "a3f1", []byte(body))
			switch {
			case errors.Is(err, idem.ErrMismatch):
				fmt.Println("refused: another request under this key")
			case err != nil:
				return err
			default:
				fmt.Printf("refund %d, replayed: %t\n", res.Value.RefundID, res.Replayed)
			}
		}
		return nil
	})
	// Output:
	// refund 1, replayed: false
	// refund 1, replayed: true
	// refused: another request under this key
}

func ExampleDoTx() {
	pgtest.Example(refundTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { // ends as the caller says
			for range 2 {
				res, err := idem.DoTx(ctx, keys, tx, CreateRefund.Key("merchant-7", "a3f1"), idem.JSON([]byte(`{"cents": 1250}`)),
					func(ctx context.Context, tx pgx.Tx) (r Receipt, err error) {
						err = tx.QueryRow(ctx, `INSERT INTO refund (merchant, body) VALUES ('merchant-7', '{}') RETURNING id`).Scan(&r.RefundID)
						return r, err
					})
				if err != nil {
					return err
				}
				fmt.Printf("refund %d, replayed: %t\n", res.Value.RefundID, res.Replayed)
			}
			return nil
		})
	})
	// Output:
	// refund 1, replayed: false
	// refund 1, replayed: true
}

func ExampleStore_SeenTx() {
	pgtest.Example(refundTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		op := idem.Op{Name: "refund.requested"}
		consume := func(messageID string) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				seen, err := keys.SeenTx(ctx, tx, op.Key("refund-queue", messageID))
				if err != nil || seen {
					fmt.Println("seen:", seen)
					return err
				}
				fmt.Println("first delivery")
				_, err = tx.Exec(ctx, `INSERT INTO refund (merchant, body) VALUES ('merchant-7', '{}')`)
				return err
			})
		}
		return errors.Join(consume("m-1"), consume("m-1"))
	})
	// Output:
	// first delivery
	// seen: true
}

func ExampleFinal() {
	pgtest.Example(refundTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		for range 2 {
			res, err := idem.Do(ctx, keys, CreateRefund.Key("merchant-7", "a3f1"), idem.NoFingerprint(),
				func(context.Context, pgx.Tx) (string, error) {
					return "account-closed", idem.Final(errors.New("the account was closed in 2019"))
				})
			if refused, ok := errors.AsType[*idem.RefusedError](err); ok {
				fmt.Printf("%s: %s, replayed: %t\n", res.Value, refused.Reason, res.Replayed)
			}
		}
		return nil
	})
	// Output:
	// account-closed: the account was closed in 2019, replayed: false
	// account-closed: the account was closed in 2019, replayed: true
}

func ExampleJSON() {
	a, b := idem.JSON([]byte(`{"cents": 1250, "to": "DE02"}`)), idem.JSON([]byte(`{"to":"DE02","cents":1.25e3}`))
	fmt.Println(reflect.DeepEqual(a, b))
	// Output: true
}

func ExampleConfig_observe() {
	pgtest.Example(``, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), &idem.Config{
			Observe: func(e idem.Event) { fmt.Println(e.Kind, e.Attempt, errors.Is(e.Err, idem.ErrMismatch)) }, // count it
		})
		if err != nil {
			return err
		}
		for _, fp := range []idem.Fingerprint{idem.Bytes([]byte("a")), idem.Bytes([]byte("a")), idem.Bytes([]byte("b"))} {
			_, _ = idem.Do(ctx, keys, CreateRefund.Key("m", "1"), fp, func(context.Context, pgx.Tx) (int, error) { return 1, nil })
		}
		return nil
	})
	// Output:
	// executed 1 false
	// replayed 0 false
	// failed 0 true
}

func ExampleStore_Maintain() {
	pgtest.Example(``, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		ctx, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- keys.Maintain(ctx) }() // in every process: one of them works
		stop()                                      // at shutdown
		fmt.Println(<-ended)
		return nil
	})
	// Output: <nil>
}

func ExampleStore_PurgeOnce() {
	pgtest.Example(refundTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		// The answer is kept for two days and the key for a month, since a message can come again after three weeks.
		op := idem.Op{Name: "refund.requested", ReplayFor: 48 * time.Hour, RememberFor: 31 * 24 * time.Hour, RetryWindow: 21 * 24 * time.Hour}
		if err := op.Validate(); err != nil { // refuses a memory that is shorter than that
			return err
		}
		_, err = idem.Do(ctx, keys, op.Key("refund-queue", "m-1"), idem.NoFingerprint(), func(context.Context, pgx.Tx) (int, error) { return 1, nil })
		if err != nil {
			return err
		}
		stats, err := keys.PurgeOnce(ctx) // as a job of your own scheduler
		fmt.Printf("scanned %d, cleared %d, deleted %d\n", stats.Scanned, stats.Cleared, stats.Deleted)
		return err
	})
	// Output: scanned 1, cleared 0, deleted 0
}

func ExampleStore_Inspect() {
	pgtest.Example(refundTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		if _, err := Refund(ctx, keys, "merchant-7", "a3f1", []byte(`{"cents": 1250}`)); err != nil {
			return err
		}
		rec, err := keys.Inspect(ctx, CreateRefund.Key("merchant-7", "a3f1"))
		fmt.Printf("%v, %d bytes, for ever: %t, in flight: %t\n", rec.State, rec.ResultBytes, rec.RememberUntil.IsZero(), rec.InFlight)
		return err
	})
	// Output: done, 14 bytes, for ever: true, in flight: false
}

func ExampleStore_List() {
	pgtest.Example(refundTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		for _, id := range []string{"a3f1", "b200"} {
			if _, err := Refund(ctx, keys, "merchant-7", id, []byte(`{}`)); err != nil {
				return err
			}
		}
		for rec, err := range keys.List(ctx, "merchant-7", &idem.ListConfig{Operation: "refund.create"}) {
			if err != nil {
				return err
			}
			fmt.Println(rec.ID, rec.State)
		}
		return nil
	})
	// Unordered output:
	// a3f1 done
	// b200 done
}

func ExampleStore_Forget() {
	pgtest.Example(refundTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		key := CreateRefund.Key("merchant-7", "a3f1")
		_, err = idem.Do(ctx, keys, key, idem.NoFingerprint(), func(context.Context, pgx.Tx) (string, error) {
			return "", idem.Final(errors.New("the account is closed")) // it was not: a mistake
		})
		fmt.Println(errors.Is(err, idem.ErrRefused))
		fmt.Println(keys.Forget(ctx, key, "Ada, ticket 4711: closed by mistake"))
		res, err := Refund(ctx, keys, "merchant-7", "a3f1", []byte(`{}`)) // executes
		fmt.Println(res.Replayed, err)
		return nil
	})
	// Output:
	// true
	// <nil>
	// false <nil>
}

func ExampleLookup() {
	pgtest.Example(refundTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		body := []byte(`{"cents": 1250}`)
		key := CreateRefund.Key("merchant-7", "a3f1")
		_, ok, err := idem.Lookup[Receipt](ctx, keys, key, idem.Bytes(body))
		fmt.Println("before:", ok, err)
		if _, err := Refund(ctx, keys, "merchant-7", "a3f1", body); err != nil {
			return err
		}
		res, ok, err := idem.Lookup[Receipt](ctx, keys, key, idem.Bytes(body))
		fmt.Println("after:", ok, res.Value.RefundID, err)
		return nil
	})
	// Output:
	// before: false <nil>
	// after: true 1 <nil>
}

func ExampleNew() {
	pgtest.Example(``, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), &idem.Config{HideIDs: true})
		if err != nil {
			return err
		}
		fmt.Println(keys.Validate(ctx)) // at start: says what to run where the schema is not as it should be
		return nil
	})
	// Output: <nil>
}

// At start, so that a deployment whose database was not migrated does not get any requests.
func ExampleStore_Validate() {
	pgtest.Example(``, func(ctx context.Context, pool *pgxpool.Pool) error {
		for _, schema := range []string{"pgonce", "elsewhere"} {
			keys, err := idem.New(pgxdriver.New(pool), &idem.Config{Schema: schema})
			if err != nil {
				return err
			}
			err = keys.Validate(ctx)
			fmt.Printf("%s: ready: %t, to be migrated: %t\n", schema, err == nil, errors.Is(err, idem.ErrSchema))
		}
		return nil
	})
	// Output:
	// pgonce: ready: true, to be migrated: false
	// elsewhere: ready: false, to be migrated: true
}

// A queue says which messages it has delivered before. Those are looked up first.
func ExampleKey_LikelyReplay() {
	pgtest.Example(refundTable, func(ctx context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		for _, redelivered := range []bool{false, true} {
			key := CreateRefund.Key("refund-queue", "m-1")
			if redelivered {
				key = key.LikelyReplay()
			}
			res, err := idem.Do(ctx, keys, key, idem.NoFingerprint(), func(ctx context.Context, tx pgx.Tx) (r Receipt, err error) {
				err = tx.QueryRow(ctx, `INSERT INTO refund (merchant, body) VALUES ('merchant-7', '{}') RETURNING id`).Scan(&r.RefundID)
				return r, err
			})
			if err != nil {
				return err
			}
			fmt.Printf("refund %d, replayed: %t\n", res.Value.RefundID, res.Replayed)
		}
		return nil
	})
	// Output:
	// refund 1, replayed: false
	// refund 1, replayed: true
}

func ExampleOp_Key() {
	key := CreateRefund.Key("merchant-7", "a3f1")
	fmt.Println(key.Op().Name, key.Scope(), key.ID())
	fmt.Println(key) // for logs: without the id, which may be a secret
	// Output:
	// refund.create merchant-7 a3f1
	// merchant-7/refund.create#dfb10994
}
