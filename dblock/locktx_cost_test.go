//go:build unix

package dblock

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/sqldriver"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// What the verbs cost: round trips, counted on the wire; no transaction number and no WAL for locks on keys, and both
// for locks on rows.
func TestCostInTheCallersTransaction(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE account (id bigint PRIMARY KEY); INSERT INTO account SELECT generate_series(1, 10)`)
	wire := pgtest.NewWire()
	cfg := db.Config(t)
	cfg.MaxConns = 1
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	cfg.ConnConfig.DialFunc = wire.Dial(cfg.ConnConfig.DialFunc)
	pool := db.Open(t, cfg)
	c := txClient(t, pool)
	holderPool := db.Pool(t)
	holder := txClient(t, holderPool)
	shared, rows := &TxConfig{Shared: true}, &RowsConfig{Wait: NoWait}
	lockRows := func(tx pgx.Tx) error {
		_, err := LockRowsTx(t.Context(), c, tx, Table{Name: "account"}, []int64{3, 1, 2}, rows)
		return err
	}
	for name, tc := range map[string]struct {
		call  func(tx pgx.Tx) error
		trips int64
		held  bool // by somebody else
		xid   bool
	}{
		"LockTx, free":      {func(tx pgx.Tx) error { return c.LockTx(t.Context(), tx, txKey, nil) }, 1, false, false},
		"TryLockTx, free":   {func(tx pgx.Tx) error { return c.TryLockTx(t.Context(), tx, txKey, nil) }, 1, false, false},
		"TryLockTx, held":   {func(tx pgx.Tx) error { return wantNotAcquired(c.TryLockTx(t.Context(), tx, txKey, nil)) }, 1, true, false},
		"LockTx, shared":    {func(tx pgx.Tx) error { return c.LockTx(t.Context(), tx, txKey, shared) }, 3, false, false},
		"TryLockTx, shared": {func(tx pgx.Tx) error { return c.TryLockTx(t.Context(), tx, txKey, shared) }, 2, false, false},
		"LockRowsTx":        {lockRows, 2, false, true},
		"LockRowsTx, no key": {func(tx pgx.Tx) error {
			_, err := LockRowsTx(t.Context(), c, tx, Table{Name: "account"}, []int64{}, nil)
			return err
		}, 0, false, false},
	} {
		run := func() {
			inTx(t, pool, func(tx pgx.Tx) {
				before := wire.Trips()
				if err := tc.call(tx); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if got := wire.Trips() - before; got != tc.trips {
					t.Errorf("%s: %d round trips, want %d", name, got, tc.trips)
				}
				var xid bool
				if err := tx.QueryRow(t.Context(), `SELECT pg_current_xact_id_if_assigned() IS NOT NULL`).Scan(&xid); err != nil || xid != tc.xid {
					t.Errorf("%s: xid %t, %v", name, xid, err)
				}
			})
		}
		if !tc.held {
			run()
			continue
		}
		inTx(t, holderPool, func(tx pgx.Tx) {
			if err := holder.LockTx(t.Context(), tx, txKey, nil); err != nil {
				t.Fatal(err)
			}
			run()
		})
	}

	// A wait: three trips.
	inTx(t, pool, func(tx pgx.Tx) {
		held, err := holderPool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := holder.LockTx(t.Context(), held, txKey, nil); err != nil {
			t.Fatal(err)
		}
		before := wire.Trips()
		result := make(chan error, 1)
		go func() { result <- c.LockTx(t.Context(), tx, txKey, nil) }()
		pgtest.Eventually(t, "LockTx waits", func() bool {
			return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'`) == 1
		})
		if err := held.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-result; err != nil {
			t.Error(err)
		}
		if got := wire.Trips() - before; got != 3 {
			t.Errorf("a wait took %d round trips, want 3", got)
		}
	})
}

// The same on database/sql.
func TestCostInTheCallersTransactionOnDatabaseSQL(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE account (id bigint PRIMARY KEY); INSERT INTO account VALUES (1)`)
	wire := pgtest.NewWire()
	cfg := db.Config(t).ConnConfig
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	cfg.DialFunc = wire.Dial(cfg.DialFunc)
	d := sqldriver.New(db.SQLConfig(t, cfg))
	resolved, err := (*Config)(nil).resolved()
	if err != nil {
		t.Fatal(err)
	}
	c := &Client[*sql.Tx]{db: d, engine: newEngine(t.Context(), d.Session, resolved)}
	for name, tc := range map[string]struct {
		call  func(tx *sql.Tx) error
		trips int64
	}{
		"LockTx":            {func(tx *sql.Tx) error { return c.LockTx(t.Context(), tx, txKey, nil) }, 1},
		"LockTx, shared":    {func(tx *sql.Tx) error { return c.LockTx(t.Context(), tx, txKey, &TxConfig{Shared: true}) }, 6},
		"TryLockTx, shared": {func(tx *sql.Tx) error { return c.TryLockTx(t.Context(), tx, txKey, &TxConfig{Shared: true}) }, 5},
		"LockRowsTx": {func(tx *sql.Tx) error {
			_, err := LockRowsTx(t.Context(), c, tx, Table{Name: "account"}, []int64{1}, nil)
			return err
		}, 5},
	} {
		tx, err := d.Begin(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		before := wire.Trips()
		if err := tc.call(tx.Handle()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := wire.Trips() - before; got != tc.trips {
			t.Errorf("%s: %d round trips, want %d", name, got, tc.trips)
		}
		tx.Rollback(t.Context())
	}

	// A wait: six trips.
	holder, err := d.Begin(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	tx, err := d.Begin(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.LockTx(t.Context(), holder.Handle(), txKey, nil); err != nil {
		t.Fatal(err)
	}
	before := wire.Trips()
	result := make(chan error, 1)
	go func() { result <- c.LockTx(context.WithoutCancel(t.Context()), tx.Handle(), txKey, nil) }() // no slices
	pgtest.Eventually(t, "LockTx waits", func() bool {
		return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'`) == 1
	})
	holder.Rollback(t.Context()) // one trip
	if err := <-result; err != nil {
		t.Error(err)
	}
	if got := wire.Trips() - before - 1; got != 6 {
		t.Errorf("a wait took %d round trips, want 6", got)
	}
	tx.Rollback(t.Context())
	if err := c.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// A lock on a row is written to the row: it costs WAL, and two transaction numbers, one of them the savepoint's, so that COMMIT has
// something to flush. A lock on a key costs none of it.
func TestWALOfLocksInTheCallersTransaction(t *testing.T) {
	t.Parallel()
	pool := pgtest.Quiet(t)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE account (id bigint PRIMARY KEY); INSERT INTO account SELECT generate_series(1, 10)`); err != nil {
		t.Fatal(err)
	}
	c := txClient(t, pool)
	lockRows := func(mode RowMode, keys ...int64) func(pgx.Tx) error {
		return func(tx pgx.Tx) error {
			_, err := LockRowsTx(t.Context(), c, tx, Table{Name: "account"}, keys, &RowsConfig{Mode: mode})
			return err
		}
	}
	lockTx := func(cfg *TxConfig) func(pgx.Tx) error {
		return func(tx pgx.Tx) error { return c.LockTx(t.Context(), tx, Key{"account", "1"}, cfg) }
	}
	for _, tc := range []struct {
		what        string
		call        func(pgx.Tx) error
		least, most int64 // bytes of WAL, with those of COMMIT
		xids        int64
	}{
		{"LockTx", lockTx(nil), 0, 0, 0},
		{"LockTx, shared", lockTx(&TxConfig{Shared: true}), 0, 0, 0},
		{"LockRowsTx of one row", lockRows(ForNoKeyUpdate, 1), 56, 120, 2},
		{"LockRowsTx of one row, shared", lockRows(ForShare, 1), 56, 120, 2},
		{"LockRowsTx of ten rows", lockRows(ForNoKeyUpdate, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10), 560, 660, 2},
	} {
		commit := func() {
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(tc.call(tx), tx.Commit(t.Context())); err != nil {
				t.Errorf("%s: %v", tc.what, err)
			}
		}
		commit() // what the first call of a server writes beside it
		wal, xids := pgtest.WAL(t, pool), pgtest.XIDs(t, pool)
		commit()
		wal, xids = pgtest.WAL(t, pool)-wal, pgtest.XIDs(t, pool)-xids
		t.Logf("%s: %d bytes of WAL", tc.what, wal)
		if wal < tc.least || wal > tc.most || xids != tc.xids {
			t.Errorf("%s: %d bytes of WAL and %d transaction numbers, want %d to %d and %d", tc.what, wal, xids, tc.least, tc.most, tc.xids)
		}
	}
}

func wantNotAcquired(err error) error {
	if errors.Is(err, ErrNotAcquired) {
		return nil
	}
	return errors.Join(errors.New("it was acquired"), err)
}
