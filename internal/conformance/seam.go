//go:build unix

package conformance

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// Every type that may cross the seam, there and back, whatever the database's time zone. This one
// needs no list of zones, which small images lack.
func seamValues[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, `ALTER DATABASE "`+db.Name+`" SET timezone = '<+0545>-05:45'`)
	d := c.Open(t, db, 2).Driver
	when := time.Date(2026, 3, 29, 1, 30, 0, 123456000, time.UTC)
	const sql = `SELECT $1::text, $2::bigint, $3::bool, $4::bytea, $5::timestamptz, $6::float8, $7::text, $8::bytea`
	var (
		s    string
		i    int64
		b    bool
		raw  []byte
		at   time.Time
		f    float64
		null *string
		nul  []byte
	)
	stmt := pg.Stmt{
		SQL:  sql,
		Args: []any{`o'x\"$1 ü`, int64(-1 << 63), true, []byte{0, 0xff, '\\', '\''}, when, -1.5, (*string)(nil), []byte(nil)},
		Dest: []any{&s, &i, &b, &raw, &at, &f, &null, &nul},
	}
	tx := begin(t, d, "")
	for name, run := range map[string]func() error{
		"pool":        func() error { return d.Pool().Run(t.Context(), stmt) },
		"transaction": func() error { return tx.Run(t.Context(), stmt) },
		"batch":       func() error { return tx.RunAll(t.Context(), stmt, stmt) },
	} {
		noErr(t, run())
		if s != `o'x\"$1 ü` || i != -1<<63 || !b || !bytes.Equal(raw, []byte{0, 0xff, '\\', '\''}) ||
			!at.Equal(when) || f != -1.5 || null != nil || nul != nil {
			t.Errorf("%s: got %q %d %v %x %v %v %v %v", name, s, i, b, raw, at, f, null, nul)
		}
	}
}

func seamNoRow[TX any](t *testing.T, c Client[TX]) {
	d := c.Open(t, pgtest.New(t), 2).Driver
	tx := begin(t, d, "")
	var n, rows int64
	none := pg.Stmt{SQL: `SELECT 1::bigint WHERE false`, Dest: []any{&n}}
	wantErr(t, d.Pool().Run(t.Context(), none), pg.ErrNoRow)
	wantErr(t, tx.Run(t.Context(), none), pg.ErrNoRow)

	rows = -1
	none.Rows = &rows
	noErr(t, tx.RunAll(t.Context(), none, pg.Stmt{SQL: `SELECT 7::bigint`, Dest: []any{&n}}))
	wantInt(t, "rows of nothing", rows, 0)
	wantInt(t, "the statement after it", n, 7)

	noErr(t, tx.RunAll(t.Context(),
		pg.Stmt{SQL: `CREATE TEMP TABLE x (a bigint)`},
		pg.Stmt{SQL: `SELECT 1`},
	))
	noErr(t, tx.Run(t.Context(), pg.Stmt{SQL: `INSERT INTO x VALUES (1), (2), ($1::bigint)`, Args: []any{int64(3)}, Rows: &rows}))
	wantInt(t, "rows affected", rows, 3)
}

func seamRunAllStops[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects)
	d := c.Open(t, db, 2).Driver
	tx := begin(t, d, "")
	err := tx.RunAll(t.Context(),
		pg.Stmt{SQL: `INSERT INTO effect VALUES ('a')`},
		pg.Stmt{SQL: `SELECT 1 / $1::int`, Args: []any{int64(0)}, Dest: []any{new(int64)}},
		pg.Stmt{SQL: `INSERT INTO effect VALUES ('b')`})
	if pg.Code(err) != "22012" || !pg.Rejected(err) {
		t.Errorf("got %v (%s), want division by zero", err, pg.Code(err))
	}
	if st := tx.Status(); st != pg.TxFailed && st != pg.TxUnknown {
		t.Errorf("status %c", st)
	}
	tx.Rollback(t.Context())
	wantInt(t, "effects", db.Int(t, `SELECT count(*) FROM effect`), 0)
	noErr(t, d.Pool().Run(t.Context(), pg.Stmt{SQL: `SELECT 1`}))
}

func seamErrorFields[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE a (id int CONSTRAINT a_pk PRIMARY KEY, v int NOT NULL); INSERT INTO a VALUES (1, 1)`)
	d := c.Open(t, db, 2).Driver
	err := d.Pool().Run(t.Context(), pg.Stmt{SQL: `INSERT INTO a VALUES ($1::int, 2)`, Args: []any{int64(1)}})
	e, ok := errors.AsType[*pg.Error](err)
	if !ok || e.Code != pg.CodeUnique || e.Fatal || e.Schema != "public" || e.Table != "a" || e.Constraint != "a_pk" || e.Detail == "" {
		t.Errorf("unique violation: got %#v", err)
	}
	err = d.Pool().Run(t.Context(), pg.Stmt{SQL: `INSERT INTO a VALUES (2, NULL)`})
	e, ok = errors.AsType[*pg.Error](err)
	if !ok || e.Code != pg.CodeNotNull || e.Column != "v" {
		t.Errorf("not-null violation: got %#v", err)
	}
	var state interface{ SQLState() string }
	if !errors.As(err, &state) || state.SQLState() != pg.CodeNotNull {
		t.Errorf("the client library's own error is lost: %v", err)
	}
}

func seamCallersTransaction[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects)
	d := c.Open(t, db, 2).Driver
	owner := begin(t, d, "") // stands for a transaction of the caller's
	q := d.Tx(owner.Handle())
	noErr(t, q.RunAll(t.Context(), pg.Stmt{SQL: `INSERT INTO effect VALUES ('a')`}, pg.Stmt{SQL: `INSERT INTO effect VALUES ('b')`}))
	var names []string
	for scan, err := range q.Query(t.Context(), `SELECT name FROM effect ORDER BY name`) {
		noErr(t, err)
		var s string
		noErr(t, scan(&s))
		names = append(names, s)
	}
	if len(names) != 2 || names[0] != "a" || names[1] != "b" {
		t.Errorf("read %v", names)
	}
	wantInt(t, "before commit", db.Int(t, `SELECT count(*) FROM effect`), 0)
	noErr(t, owner.Commit(t.Context()))
	wantInt(t, "after commit", db.Int(t, `SELECT count(*) FROM effect`), 2)
}

// A Begin that fails leaves nothing open, whatever it failed on.
func seamFailedBegin[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	d := c.Open(t, db, 1) // a lost connection would block the next Begin
	_, err := d.Begin(t.Context(), "", pg.Stmt{SQL: `SELECT * FROM nowhere`})
	if pg.Code(err) != pg.CodeUndefinedTable {
		t.Errorf("got %v", err)
	}
	_, err = d.Begin(t.Context(), "", pg.Stmt{SQL: `SELECT 1::bigint WHERE false`, Dest: []any{new(int64)}})
	wantErr(t, err, pg.ErrNoRow)
	_, err = d.Begin(t.Context(), "", pg.Stmt{SQL: `SELECT 1`, Dest: []any{new(time.Time)}})
	if err == nil || errors.Is(err, pg.ErrTxLost) {
		t.Errorf("a scan into the wrong type: got %v, want an error that does not ask for another attempt", err)
	}
	_, err = d.Begin(t.Context(), "", pg.Stmt{SQL: `SELECT pg_terminate_backend(pg_backend_pid())`})
	wantErr(t, err, pg.ErrTxLost)
	tx := begin(t, d, "", pg.Stmt{SQL: `SELECT 1`})
	noErr(t, tx.Commit(t.Context()))
}

func seamIsolation[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, `ALTER DATABASE "`+db.Name+`" SET default_transaction_isolation = 'serializable'`)
	d := c.Open(t, db, 2).Driver
	for level, want := range map[pg.Isolation]string{
		"": "read committed", pg.ReadCommitted: "read committed",
		pg.RepeatableRead: "repeatable read", pg.Serializable: "serializable",
	} {
		var got string
		tx := begin(t, d, level, pg.Stmt{SQL: `SELECT current_setting('transaction_isolation')`, Dest: []any{&got}})
		tx.Rollback(t.Context())
		if got != want {
			t.Errorf("asked for %q, got %q, want %q", level, got, want)
		}
	}
}

// A refused last statement, or a refused COMMIT, is a definite rollback.
func seamCommitRefused[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects+`; CREATE TABLE parent (id int PRIMARY KEY);
		CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)`)
	d := c.Open(t, db, 1).Driver
	insert := pg.Stmt{SQL: `INSERT INTO effect VALUES ('a')`}
	for name, last := range map[string]string{
		"statement": `INSERT INTO effect VALUES (NULL)`,
		"COMMIT":    `INSERT INTO child VALUES (1)`,
	} {
		tx := begin(t, d, "", insert)
		err := tx.Commit(t.Context(), insert, pg.Stmt{SQL: last})
		if !pg.Rejected(err) || errors.Is(err, pg.ErrOutcomeUnknown) {
			t.Errorf("%s: got %v, want the server's refusal", name, err)
		}
	}
	wantInt(t, "effects", db.Int(t, `SELECT count(*) FROM effect`), 0)

	// The server answers COMMIT of a failed transaction with ROLLBACK, and no error.
	tx := begin(t, d, "", insert)
	_ = tx.Run(t.Context(), pg.Stmt{SQL: `SELECT 1/0`})
	if err := tx.Commit(t.Context()); !pg.Rejected(err) && !errors.Is(err, pg.ErrTxLost) || errors.Is(err, pg.ErrOutcomeUnknown) {
		t.Errorf("COMMIT of a failed transaction: got %v, want a definite rollback", err)
	}
	wantInt(t, "effects", db.Int(t, `SELECT count(*) FROM effect`), 0)
	noErr(t, begin(t, d, "", insert).Commit(t.Context(), insert))
	wantInt(t, "effects", db.Int(t, `SELECT count(*) FROM effect`), 2)
}

// A connection that died before COMMIT was sent is a rollback; one that dies
// while the last trip is under way leaves the outcome open, or a rollback where
// the driver sends COMMIT by itself and so knows that it did not.
func seamCommitLost[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects)
	d := c.Open(t, db, 1).Driver
	tx := begin(t, d, "", pg.Stmt{SQL: `INSERT INTO effect VALUES ('a')`})
	err := tx.Commit(t.Context(), pg.Stmt{SQL: `SELECT pg_terminate_backend(pg_backend_pid())`})
	if !errors.Is(err, pg.ErrOutcomeUnknown) && !errors.Is(err, pg.ErrTxLost) {
		t.Errorf("got %v, want an unknown outcome or a lost transaction", err)
	}
	pgtest.Eventually(t, "the pool recovers", func() bool {
		return d.Pool().Run(t.Context(), pg.Stmt{SQL: `SELECT 1`}) == nil
	})
	wantInt(t, "effects", db.Int(t, `SELECT count(*) FROM effect`), 0)
}

// The transaction that a handler got does not work once the call is over.
func seamHandleDies[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects)
	d := c.Open(t, db, 1).Driver
	for name, end := range map[string]func(tx pg.OwnedTx[TX]){
		"commit":   func(tx pg.OwnedTx[TX]) { noErr(t, tx.Commit(t.Context())) },
		"rollback": func(tx pg.OwnedTx[TX]) { tx.Rollback(t.Context()) },
		"abandon":  func(tx pg.OwnedTx[TX]) { tx.Abandon(t.Context()) },
	} {
		tx, err := d.Begin(t.Context(), "")
		noErr(t, err)
		handle := tx.Handle()
		end(tx)
		if err := c.Exec(t.Context(), handle, `INSERT INTO effect VALUES ('late')`); err == nil && name != "abandon" {
			t.Errorf("%s: a leaked transaction still works", name)
		}
	}
	tx := begin(t, d, "") // the connection that the leaked ones would have used
	tx.Rollback(t.Context())
	wantInt(t, "effects", db.Int(t, `SELECT count(*) FROM effect`), 0)
}

func seamDeadContext[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, effects)
	d := c.Open(t, db, 1).Driver
	dead, cancel := context.WithCancel(t.Context())
	cancel()
	insert := pg.Stmt{SQL: `INSERT INTO effect VALUES ('a')`}

	_, err := d.Begin(dead, "", insert)
	wantErr(t, err, context.Canceled)
	tx := begin(t, d, "", insert)
	tx.Rollback(dead)
	wantInt(t, "rolled back", db.Int(t, `SELECT count(*) FROM effect`), 0)
	tx = begin(t, d, "", insert)
	noErr(t, tx.Commit(dead, insert))
	wantInt(t, "committed", db.Int(t, `SELECT count(*) FROM effect`), 2)
}

// A ctx that ends while the server is busy with the first statements gives up at once,
// and the connection with it.
func seamPoolOfOne[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	d := c.Open(t, db, 1).Driver
	holder := begin(t, d, "")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := d.Begin(ctx, "")
	wantErr(t, err, pg.ErrUnavailable)
	wantErr(t, err, context.DeadlineExceeded)
	wantText(t, err, "all 1 connections of the pool are in use")
	holder.Rollback(t.Context())

	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	result := make(chan error, 1)
	go func() {
		_, err := d.Begin(ctx, "", pg.Stmt{SQL: `SELECT pg_sleep(600)`})
		result <- err
	}()
	pgtest.Eventually(t, "Begin is in its first statement", func() bool {
		return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid() AND state = 'active'`) == 1
	})
	cancel()
	select {
	case err := <-result:
		wantErr(t, err, context.Canceled)
	case <-time.After(pg.NetTimeout(t.Context()) / 2):
		t.Errorf("Begin did not give up when its ctx ended, but later: %v", <-result)
	}
	noErr(t, begin(t, d, "").Commit(t.Context()))
	db.Exec(t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()`)
}

func seamQueryStopsEarly[TX any](t *testing.T, c Client[TX]) {
	d := c.Open(t, pgtest.New(t), 1).Driver
	n := 0
	for _, err := range d.Pool().Query(t.Context(), `SELECT g FROM generate_series(1, 10000) g`) {
		noErr(t, err)
		if n++; n == 3 {
			break
		}
	}
	noErr(t, d.Pool().Run(t.Context(), pg.Stmt{SQL: `SELECT 1`})) // the only connection is free again
	for _, err := range d.Pool().Query(t.Context(), `SELECT 1 / (g - 3) FROM generate_series(1, 5) g`) {
		if err != nil {
			n = -1
		}
	}
	wantInt(t, "an error in the middle is reported", int64(n), -1)
}

// The network deadline is for the trip: waiting for a connection does not use it up.
func seamLongWait[TX any](t *testing.T, c Client[TX]) {
	d := c.Open(t, pgtest.New(t), 1).Driver
	holder := begin(t, d, "")
	const deadline = 2 * time.Second // a slow machine needs some of it for BEGIN
	ctx := pg.WithNetTimeout(t.Context(), deadline)
	result := make(chan error, 1)
	go func() {
		tx, err := d.Begin(ctx, "")
		if err == nil {
			tx.Rollback(t.Context())
		}
		result <- err
	}()
	<-time.After(deadline + 100*time.Millisecond)
	holder.Rollback(t.Context())
	noErr(t, <-result)
}

// A statement outside a transaction that outlasts the network deadline fails, and not as if the caller's ctx had ended, which has no end;
// and the connection that comes next has no deadline.
func seamNetTimeout[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	pool := c.Open(t, db, 3)
	keys, err := idem.New(pool.Driver, nil)
	noErr(t, err)
	sleep := func(seconds float64) pg.Stmt {
		return pg.Stmt{SQL: `SELECT pg_sleep($1::float8)::text`, Args: []any{seconds}, Dest: []any{new(string)}}
	}
	const limit = 500 * time.Millisecond
	ctx := pg.WithNetTimeout(t.Context(), limit)
	noErr(t, pool.Pool().Run(ctx, sleep(0)))
	noErr(t, pool.Pool().Run(t.Context(), sleep(2*limit.Seconds())))
	lock := begin(t, pool.Driver, "", pg.Stmt{SQL: `LOCK TABLE pgonce.idem_record IN ACCESS EXCLUSIVE MODE`})
	err = pool.Pool().Run(ctx, pg.Stmt{SQL: `SELECT count(*) FROM pgonce.idem_record`, Dest: []any{new(int64)}})
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run: got %v", err)
	}
	_, _, err = idem.Lookup[string](ctx, keys, idem.Op{Name: "refund.create"}.Key("m1", "r1"), idem.NoFingerprint())
	if !errors.Is(err, idem.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Lookup: got %v", err)
	}
	lock.Rollback(t.Context())
	noErr(t, pool.Pool().Run(t.Context(), sleep(2*limit.Seconds())))
}
