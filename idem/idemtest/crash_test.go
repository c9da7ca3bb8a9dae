//go:build unix

package idemtest_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/driver/sqldriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/idem/idemtest"
	"github.com/pgonce/pgonce/internal/pgtest"
)

var payout = idem.Op{Name: "payout", Wait: time.Second, RetryAfter: time.Millisecond}

// patient is for a machine under load.
var patient = &idemtest.CrashConfig{Patience: 2 * time.Minute}

const payouts = `
CREATE TABLE payout (serial bigint GENERATED ALWAYS AS IDENTITY, id text NOT NULL);
CREATE TABLE seen (id text NOT NULL, serial bigint NOT NULL);
CREATE TABLE once (id text PRIMARY KEY);
CREATE TABLE bank (serial bigint GENERATED ALWAYS AS IDENTITY, id text NOT NULL, reference text);
CREATE TABLE void (reference text NOT NULL);
CREATE FUNCTION pay(num text, ref text) RETURNS bigint LANGUAGE plpgsql AS $$ DECLARE s bigint; BEGIN
	PERFORM pg_advisory_xact_lock(hashtextextended(ref, 0));
	IF EXISTS (SELECT FROM void WHERE reference = ref) THEN RAISE 'the reference is void'; END IF;
	INSERT INTO bank (id, reference) VALUES (num, ref) RETURNING serial INTO s;
	RETURN s;
END $$;
CREATE FUNCTION enquire(ref text) RETURNS bigint LANGUAGE plpgsql AS $$ DECLARE s bigint; BEGIN
	PERFORM pg_advisory_xact_lock(hashtextextended(ref, 0));
	SELECT max(serial) INTO s FROM bank WHERE reference = ref;
	IF s IS NULL THEN INSERT INTO void VALUES (ref); END IF;
	RETURN coalesce(s, 0);
END $$`

// lives are processes under test, by their client's library and by how they go about it.
type life = func(ctx context.Context, p *idemtest.Process, id string) (int64, error)

// onPool is a process with a pool and a store.
func onPool(fn func(ctx context.Context, pool *pgxpool.Pool, keys *idem.Store[pgx.Tx], id string) (int64, error)) life {
	return func(ctx context.Context, p *idemtest.Process, id string) (int64, error) {
		cfg, err := pgxpool.ParseConfig(p.DatabaseURL())
		if err != nil {
			return 0, err
		}
		cfg.MaxConns = 2
		pool, err := pgxpool.NewWithConfig(ctx, cfg)
		if err != nil {
			return 0, err
		}
		defer pool.Close()
		keys, err := idem.New(pgxdriver.New(pool), &idem.Config{Lease: time.Second})
		if err != nil {
			return 0, err
		}
		return fn(ctx, pool, keys, id)
	}
}

const insertPayout = `INSERT INTO payout (id) VALUES ($1) RETURNING serial`

// byDo is right.
var byDo = onPool(func(ctx context.Context, _ *pgxpool.Pool, keys *idem.Store[pgx.Tx], id string) (int64, error) {
	res, err := idem.Do(ctx, keys, payout.Key("m1", id), idem.NoFingerprint(), func(ctx context.Context, tx pgx.Tx) (serial int64, err error) {
		err = tx.QueryRow(ctx, insertPayout, id).Scan(&serial)
		return serial, err
	})
	return res.Value, err
})

// counting counts the rows of a request in a table.
func counting(pool *pgxpool.Pool, table string) func(ctx context.Context, id string) (int64, error) {
	return func(ctx context.Context, id string) (n int64, err error) {
		err = pool.QueryRow(ctx, `SELECT count(*) FROM `+table+` WHERE id = $1`, id).Scan(&n)
		return n, err
	}
}

func newPayouts(t *testing.T) (*pgtest.DB, *pgxpool.Pool) {
	t.Helper()
	db := pgtest.New(t)
	db.Exec(t, payouts)
	return db, db.Pool(t)
}

// onSQL is byDo on database/sql.
func onSQL(ctx context.Context, p *idemtest.Process, id string) (int64, error) {
	std, err := sql.Open("pgx", p.DatabaseURL())
	if err != nil {
		return 0, err
	}
	defer func() { _ = std.Close() }()
	keys, err := idem.New(sqldriver.New(std), nil)
	if err != nil {
		return 0, err
	}
	res, err := idem.Do(ctx, keys, payout.Key("m1", id), idem.NoFingerprint(), func(ctx context.Context, tx *sql.Tx) (serial int64, err error) {
		err = tx.QueryRowContext(ctx, insertPayout, id).Scan(&serial)
		return serial, err
	})
	return res.Value, err
}

func TestCrashEverywhereInDo(t *testing.T) {
	t.Parallel()
	for name, life := range map[string]life{"pgx": byDo, "database/sql": onSQL} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, pool := newPayouts(t)
			idemtest.CrashEverywhere(t, db.URL, life, counting(pool, "payout"), patient)
		})
	}
}

// paying pays at a bank that pays as often as it is asked to, but for references that it has declared void when somebody enquired, and books the payment.
func paying(bank *pgxpool.Pool, reconcile bool) life {
	return func(ctx context.Context, p *idemtest.Process, id string) (int64, error) {
		pay := func(ctx context.Context, reference string) (serial int64, err error) {
			err = p.Call(func() error {
				return bank.QueryRow(context.WithoutCancel(ctx), `SELECT pay($1, $2)`, id, reference).Scan(&serial)
			})
			return serial, err
		}
		enquire := func(ctx context.Context, reference string) (serial int64, o idem.Outcome, err error) {
			err = bank.QueryRow(ctx, `SELECT enquire($1)`, reference).Scan(&serial)
			if serial == 0 {
				return 0, idem.NeverHappened, err
			}
			return serial, idem.Happened, err
		}
		opts := []idem.StepOption[int64]{idem.AtMostOnce(enquire)}
		if !reconcile {
			opts = nil
		}
		return onPool(func(ctx context.Context, _ *pgxpool.Pool, keys *idem.Store[pgx.Tx], id string) (int64, error) {
			res, err := idem.RunSteps(ctx, keys, payout.Key("m1", id), idem.NoFingerprint(), id, func(ctx context.Context, run *idem.Run[pgx.Tx], id string) (int64, error) {
				serial, err := idem.Step(ctx, run, "pay", pay, opts...)
				if err != nil {
					return 0, err
				}
				return idem.StepTx(ctx, run, "book", func(ctx context.Context, tx pgx.Tx) (int64, error) {
					_, err := tx.Exec(ctx, `INSERT INTO payout (id) VALUES ($1)`, id)
					return serial, err
				})
			})
			return res.Value, err
		})(ctx, p, id)
	}
}

// each is as many effects as there are of every kind; -1 where the kinds differ.
func each(pool *pgxpool.Pool) func(ctx context.Context, id string) (int64, error) {
	return func(ctx context.Context, id string) (int64, error) {
		paid, err := counting(pool, "bank")(ctx, id)
		booked, err2 := counting(pool, "payout")(ctx, id)
		if paid != booked {
			return -1, fmt.Errorf("%d payments, %d bookings", paid, booked)
		}
		return paid, errors.Join(err, err2)
	}
}

// A payment in steps, at a bank that would pay twice. A process that is frozen is so for longer than its lease.
func TestCrashEverywhereInSteps(t *testing.T) {
	t.Parallel()
	cfg := &idemtest.CrashConfig{Freeze: 1300 * time.Millisecond, Patience: patient.Patience, Parallel: 10}
	t.Run("at most once", func(t *testing.T) {
		t.Parallel()
		db, pool := newPayouts(t)
		idemtest.CrashEverywhere(t, db.URL, paying(pool, true), each(pool), cfg)
	})
	t.Run("at least once is found out", func(t *testing.T) {
		t.Parallel()
		db, pool := newPayouts(t)
		said := judged(t, func(tb testing.TB) {
			tb.Helper()
			idemtest.CrashEverywhere(tb, db.URL, paying(pool, false), each(pool), cfg)
		})
		if !strings.Contains(said, "2 payments, 1 bookings") {
			t.Errorf("it said %q", said)
		}
	})
}

// What cannot be tried is said at once.
func TestCrashEverywhereMisuse(t *testing.T) {
	t.Parallel()
	db, pool := newPayouts(t)
	past := func(ctx context.Context, _ *idemtest.Process, id string) (serial int64, err error) {
		err = pool.QueryRow(ctx, insertPayout, id).Scan(&serial)
		return 1, err
	}
	for says, run := range map[string]func(testing.TB){
		"is nil": func(tb testing.TB) {
			tb.Helper()
			idemtest.CrashEverywhere[int](tb, db.URL, nil, counting(pool, "payout"), nil)
		},
		"want a URL such as": func(tb testing.TB) {
			tb.Helper()
			idemtest.CrashEverywhere(tb, "host=localhost", byDo, counting(pool, "payout"), nil)
		},
		"names one host": func(tb testing.TB) {
			tb.Helper()
			idemtest.CrashEverywhere(tb, "postgres://a,b/c", byDo, counting(pool, "payout"), nil)
		},
		"count the effects": func(tb testing.TB) {
			tb.Helper()
			idemtest.CrashEverywhere(tb, db.URL, byDo, counting(pool, "nothing"), nil)
		},
		"no answer within 1s": func(tb testing.TB) {
			tb.Helper()
			never := func(context.Context, *idemtest.Process, string) (int, error) { return 0, errors.New("never") }
			idemtest.CrashEverywhere(tb, db.URL, never, counting(pool, "payout"), &idemtest.CrashConfig{Patience: time.Second})
		},
		"nothing went through": func(tb testing.TB) {
			tb.Helper()
			once := func(context.Context, string) (int64, error) { return 1, nil }
			idemtest.CrashEverywhere(tb, db.URL, past, once, nil)
		},
	} {
		if said := judged(t, run); !strings.Contains(said, says) {
			t.Errorf("it said %q, want %q", said, says)
		}
	}
}

// A request over HTTP to somebody else is cut as the connections to the database are.
func TestCrashEverywhereCutsHTTP(t *testing.T) {
	t.Parallel()
	_, pool := newPayouts(t)
	var asked sync.Map // by the key that the bank honours, if it does
	bank := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.URL.Query().Get("key")
		if r.URL.Path == "/careless" {
			key = rand.Text()
		}
		if _, known := asked.LoadOrStore(key, true); !known {
			_, _ = pool.Exec(context.WithoutCancel(r.Context()), `INSERT INTO bank (id) VALUES ($1)`, r.URL.Query().Get("key"))
		}
		_, _ = io.WriteString(w, "paid")
	}))
	t.Cleanup(bank.Close)
	life := func(path string) func(context.Context, *idemtest.Process, string) (string, error) {
		return func(ctx context.Context, p *idemtest.Process, id string) (string, error) {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, bank.URL+path+"?key="+id, nil)
			if err != nil {
				return "", err
			}
			resp, err := (&http.Client{Transport: p.Transport(nil)}).Do(req)
			if err != nil {
				return "", err
			}
			defer func() { _ = resp.Body.Close() }()
			body, err := io.ReadAll(resp.Body)
			return string(body), err
		}
	}
	const unused = "postgres://localhost/unused"
	idemtest.CrashEverywhere(t, unused, life("/careful"), counting(pool, "bank"), patient)
	said := judged(t, func(tb testing.TB) {
		tb.Helper()
		idemtest.CrashEverywhere(tb, unused, life("/careless"), counting(pool, "bank"), nil)
	})
	if !strings.Contains(said, "effects, want 1") {
		t.Errorf("it said %q", said)
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

// Handlers that are not what they seem are found out. The freeze ends when the other process has answered, so it may be long.
func TestCrashEverywhereFindsOut(t *testing.T) {
	t.Parallel()
	begin := pgx.BeginFunc
	for name, tc := range map[string]struct {
		life  life
		table string
		says  string
	}{
		"a key made at each try": {table: "payout", says: "3 effects", life: onPool(func(ctx context.Context, _ *pgxpool.Pool, keys *idem.Store[pgx.Tx], id string) (int64, error) {
			res, err := idem.Do(ctx, keys, payout.Key("m1", rand.Text()), idem.NoFingerprint(), func(ctx context.Context, tx pgx.Tx) (serial int64, err error) {
				err = tx.QueryRow(ctx, insertPayout, id).Scan(&serial)
				return serial, err
			})
			return res.Value, err
		})},
		"the effect outside of the transaction": {table: "bank", says: "2 effects", life: onPool(func(ctx context.Context, pool *pgxpool.Pool, keys *idem.Store[pgx.Tx], id string) (int64, error) {
			res, err := idem.Do(ctx, keys, payout.Key("m1", id), idem.NoFingerprint(), func(ctx context.Context, _ pgx.Tx) (serial int64, err error) {
				err = pool.QueryRow(ctx, `INSERT INTO bank (id) VALUES ($1) RETURNING serial`, id).Scan(&serial)
				return serial, err
			})
			return res.Value, err
		})},
		"look, then insert": {table: "payout", says: "2 effects", life: onPool(func(ctx context.Context, pool *pgxpool.Pool, _ *idem.Store[pgx.Tx], id string) (serial int64, err error) {
			err = begin(ctx, pool, func(tx pgx.Tx) error { // in one transaction, even
				err := tx.QueryRow(ctx, `SELECT serial FROM payout WHERE id = $1 ORDER BY serial LIMIT 1`, id).Scan(&serial)
				if errors.Is(err, pgx.ErrNoRows) {
					err = tx.QueryRow(ctx, insertPayout, id).Scan(&serial)
				}
				return err
			})
			return serial, err
		})},
		"the record after the effect": {table: "payout", says: "2 effects", life: onPool(func(ctx context.Context, pool *pgxpool.Pool, _ *idem.Store[pgx.Tx], id string) (serial int64, err error) {
			err = pool.QueryRow(ctx, `SELECT serial FROM seen WHERE id = $1`, id).Scan(&serial)
			if !errors.Is(err, pgx.ErrNoRows) {
				return serial, err
			}
			if err = pool.QueryRow(ctx, insertPayout, id).Scan(&serial); err == nil {
				_, err = pool.Exec(ctx, `INSERT INTO seen VALUES ($1, $2)`, id, serial)
			}
			return serial, err
		})},
		"the record before the effect": {table: "payout", says: "0 effects", life: onPool(func(ctx context.Context, pool *pgxpool.Pool, _ *idem.Store[pgx.Tx], id string) (serial int64, err error) {
			var n int64
			if err = pool.QueryRow(ctx, `SELECT count(*) FROM seen WHERE id = $1`, id).Scan(&n); err != nil || n > 0 {
				return 7, err
			}
			if _, err = pool.Exec(ctx, `INSERT INTO seen VALUES ($1, 7)`, id); err == nil {
				_, err = pool.Exec(ctx, `INSERT INTO payout (id) VALUES ($1)`, id)
			}
			return 7, err
		})},
		"another answer for repeats": {table: "payout", says: "answered", life: func(ctx context.Context, p *idemtest.Process, id string) (int64, error) {
			serial, err := byDo(ctx, p, id)
			return serial + time.Now().UnixNano(), err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, pool := newPayouts(t)
			said := judged(t, func(tb testing.TB) {
				tb.Helper()
				idemtest.CrashEverywhere(tb, db.URL, tc.life, counting(pool, tc.table), &idemtest.CrashConfig{Freeze: 20 * time.Second})
			})
			if !strings.Contains(said, tc.says) {
				t.Errorf("it said %q, want %q", said, tc.says)
			}
		})
	}
}
