//go:build unix

package conformance

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/internal/pg"
)

func lockRowsSuites[TX any]() suites[TX] {
	return suites[TX]{
		"lock/RowsOrder":       lockRowsOrder[TX],
		"lock/RowsKeys":        lockRowsKeys[TX],
		"lock/RowsModes":       lockRowsModes[TX],
		"lock/RowsForeignKeys": lockRowsForeignKeys[TX],
		"lock/RowsRecheck":     lockRowsRecheck[TX],
		"lock/RowsMissing":     lockRowsMissing[TX],
		"lock/RowsNoWait":      lockRowsNoWait[TX],
		"lock/RowsSkipLocked":  lockRowsSkipLocked[TX],
		"lock/RowsEnds":        lockRowsEnds[TX],
		"lock/RowsShuffled":    lockRowsShuffled[TX],
		"lock/RowsUpgrade":     lockRowsUpgrade[TX],
		"lock/RowsBadTable":    lockRowsBadTable[TX],
		"lock/RowsAltered":     lockRowsAltered[TX],
	}
}

var accounts = dblock.Table{Name: "account"}

// newBooks is a desk with ten accounts.
func newBooks[TX any](t *testing.T, c Client[TX], conns int) *desk[TX] {
	t.Helper()
	d := newDesk(t, c, conns)
	d.db.Exec(t, `CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL DEFAULT 0); INSERT INTO account SELECT generate_series(1, 10)`)
	return d
}

// lock locks accounts.
func (d *desk[TX]) lock(ctx context.Context, tx TX, cfg *dblock.RowsConfig, ids ...int64) ([]int64, error) {
	return dblock.LockRowsTx(ctx, d.locks, tx, accounts, ids, cfg)
}

func wantKeys[K comparable](t *testing.T, got []K, err error, want ...K) {
	t.Helper()
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("locked %v (%v), want %v", got, err, want)
	}
}

// Each key once, in order; none, no question.
func lockRowsOrder[TX any](t *testing.T, c Client[TX]) {
	d := newBooks(t, c, 1)
	tx := d.open("")
	got, err := d.lock(t.Context(), tx, nil, 9, 10, 2, 9, 1)
	wantKeys(t, got, err, 1, 2, 9, 10)
	got, err = d.lock(t.Context(), tx, nil)
	wantKeys(t, got, err)
	noErr(t, d.Rollback(t.Context(), tx))
	got, err = d.lock(t.Context(), tx, nil)
	wantKeys(t, got, err)
}

type accountID [16]byte

// Keys of every type come back as they were given, whatever is in them, under names that need quotes.
func lockRowsKeys[TX any](t *testing.T, c Client[TX]) {
	d := newDesk(t, c, 1)
	d.db.Exec(t, `CREATE SCHEMA "Sales"; CREATE TABLE "Sales"."Or""der" ("Small" smallint, "Int" int, "Uuid" uuid, "Text" text, "Varchar" varchar(40), key text)`)
	texts := []string{"", " ", `"`, `'`, `\`, `{a,b}`, `NULL`, "a\nb", "ü\U0001f600", `\"`, `$1`, "é,", "x'; DROP TABLE effect; --"}
	tx := d.open("")
	for i, text := range texts {
		d.exec(tx, fmt.Sprintf(`INSERT INTO "Sales"."Or""der" VALUES (%d, %d, '00000000-0000-0000-0000-%012x', E'%s')`,
			i, -i, i, strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`).Replace(text)))
	}
	d.exec(tx, `UPDATE "Sales"."Or""der" SET "Varchar" = "Text", key = "Text"`)
	table := func(id string) dblock.Table { return dblock.Table{Name: `Sales.Or"der`, ID: id} }
	for _, id := range []string{"Text", "Varchar", "key"} {
		got, err := dblock.LockRowsTx(t.Context(), d.locks, tx, table(id), texts, nil)
		slices.Sort(got)
		wantKeys(t, got, err, slices.Sorted(slices.Values(texts))...)
	}
	small, err := dblock.LockRowsTx(t.Context(), d.locks, tx, table("Small"), []int16{3, 1}, nil)
	wantKeys(t, small, err, 1, 3)
	ints, err := dblock.LockRowsTx(t.Context(), d.locks, tx, table("Int"), []int{-3, -1}, nil)
	wantKeys(t, ints, err, -3, -1)
	a, b := accountID{15: 1}, accountID{15: 12}
	ids, err := dblock.LockRowsTx(t.Context(), d.locks, tx, table("Uuid"), []accountID{b, a}, nil)
	wantKeys(t, ids, err, a, b)
}

// The modes are those of the server, and the rows are locked in them.
func lockRowsModes[TX any](t *testing.T, c Client[TX]) {
	d := newBooks(t, c, 2)
	modes := []dblock.RowMode{dblock.ForKeyShare, dblock.ForShare, dblock.ForNoKeyUpdate, dblock.ForUpdate}
	for i, first := range modes {
		for j, second := range modes {
			free := i+j < 3 && (i < 2 || j == 0) && (j < 2 || i == 0) // by the table in Postgres' manual
			holder, tx := d.open(""), d.open("")
			_, err := d.lock(t.Context(), holder, &dblock.RowsConfig{Mode: first}, 1)
			noErr(t, err)
			_, err = d.lock(t.Context(), tx, &dblock.RowsConfig{Mode: second, Wait: dblock.NoWait}, 1)
			wantLocked(t, fmt.Sprintf("%v, then %v", first, second), err, free)
			noErr(t, d.Rollback(t.Context(), holder))
			noErr(t, d.Rollback(t.Context(), tx))
		}
	}
}

// The default does not keep anybody from inserting rows that refer to those that are locked.
func lockRowsForeignKeys[TX any](t *testing.T, c Client[TX]) {
	d := newBooks(t, c, 2)
	d.db.Exec(t, `CREATE TABLE entry (account bigint REFERENCES account)`)
	for mode, free := range map[dblock.RowMode]bool{dblock.ForNoKeyUpdate: true, dblock.ForUpdate: false} {
		holder, child := d.open(""), d.open("")
		cfg := &dblock.RowsConfig{Mode: mode}
		if mode == dblock.ForNoKeyUpdate {
			cfg = nil
		}
		_, err := d.lock(t.Context(), holder, cfg, 1)
		noErr(t, err)
		d.exec(child, `SELECT set_config('lock_timeout', '50ms', true)`)
		if err := d.Exec(t.Context(), child, `INSERT INTO entry VALUES (1)`); (err == nil) != free {
			t.Errorf("%v: the child got %v", mode, err)
		}
		noErr(t, d.Rollback(t.Context(), holder))
		noErr(t, d.Rollback(t.Context(), child))
	}
}

// A row is judged as it is after the wait for it. Above READ COMMITTED one that has changed is the end of the
// transaction.
func lockRowsRecheck[TX any](t *testing.T, c Client[TX]) {
	for level, change := range map[pg.Isolation]string{
		pg.ReadCommitted:  `DELETE FROM account WHERE id = 2; UPDATE account SET id = 30 WHERE id = 3; UPDATE account SET balance = 1 WHERE id = 4`,
		pg.RepeatableRead: `UPDATE account SET balance = 1 WHERE id = 2`,
		pg.Serializable:   `UPDATE account SET balance = 1 WHERE id = 2`,
	} {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			d := newBooks(t, c, 2)
			holder, tx := d.open(""), d.open(level)
			for _, sql := range strings.Split(change, ";") {
				d.exec(holder, sql)
			}
			type answer struct {
				ids []int64
				err error
			}
			result := make(chan answer, 1)
			go func() {
				ids, err := d.lock(t.Context(), tx, nil, 1, 2, 3, 4, 5)
				result <- answer{ids, err}
			}()
			d.waiters(1)
			noErr(t, d.Commit(t.Context(), holder))
			got := <-result
			if level != pg.ReadCommitted {
				wantErr(t, got.err, dblock.ErrRetryTx)
				d.exec(tx, `INSERT INTO effect VALUES ('it is not aborted')`)
				return
			}
			missing, ok := errors.AsType[*dblock.RowMissingError](got.err)
			if !ok || !slices.Equal(missing.Keys, []string{"2", "3"}) {
				t.Errorf("missing is %v", got.err)
			}
			wantKeys(t, got.ids, nil, 1, 4, 5)
		})
	}
}

// Rows that are not there are told, and the other ones are locked.
func lockRowsMissing[TX any](t *testing.T, c Client[TX]) {
	d := newBooks(t, c, 2)
	tx, other := d.open(""), d.open("")
	got, err := d.lock(t.Context(), tx, nil, 99, 1, 98)
	wantErr(t, err, dblock.ErrRowMissing)
	wantKeys(t, got, nil, 1)
	missing, ok := errors.AsType[*dblock.RowMissingError](err)
	if !ok || !slices.Equal(missing.Keys, []string{"99", "98"}) || missing.Table != `"public"."account"` {
		t.Errorf("got %+v", missing)
	}
	_, err = d.lock(t.Context(), other, &dblock.RowsConfig{Wait: dblock.NoWait}, 1)
	wantLocked(t, "the row that is there", err, false)
	d.exec(other, `INSERT INTO account VALUES (99)`) // nobody is kept from it
	got, err = d.lock(t.Context(), tx, nil, 97)
	wantErr(t, err, dblock.ErrRowMissing)
	wantKeys(t, got, nil)
}

// NoWait locks all or nothing, and the transaction survives.
func lockRowsNoWait[TX any](t *testing.T, c Client[TX]) {
	d := newBooks(t, c, 3)
	holder, tx, third := d.open(""), d.open(""), d.open("")
	noWait := &dblock.RowsConfig{Wait: dblock.NoWait}
	_, err := d.lock(t.Context(), holder, nil, 3)
	noErr(t, err)
	d.exec(tx, `INSERT INTO effect VALUES ('before')`)
	got, err := d.lock(t.Context(), tx, noWait, 1, 2, 3, 4)
	wantLocked(t, "one is locked", err, false)
	wantKeys(t, got, nil)
	got, err = d.lock(t.Context(), third, noWait, 1, 2)
	wantKeys(t, got, err, 1, 2)
	noErr(t, d.Commit(t.Context(), third))
	got, err = d.lock(t.Context(), tx, noWait, 2, 1)
	wantKeys(t, got, err, 1, 2)
	noErr(t, d.Commit(t.Context(), tx))
	wantInt(t, "effects", d.db.Int(t, `SELECT count(*) FROM effect`), 1)
}

// SkipLocked returns what it has locked. A row that is locked and one that is missing look the same.
func lockRowsSkipLocked[TX any](t *testing.T, c Client[TX]) {
	d := newBooks(t, c, 2)
	holder, tx := d.open(""), d.open("")
	_, err := d.lock(t.Context(), holder, nil, 3, 4)
	noErr(t, err)
	got, err := d.lock(t.Context(), tx, &dblock.RowsConfig{Wait: dblock.SkipLocked}, 5, 4, 3, 2, 99)
	wantKeys(t, got, err, 2, 5)
	got, err = d.lock(t.Context(), tx, &dblock.RowsConfig{Wait: dblock.SkipLocked}, 3, 99)
	wantKeys(t, got, err)
}

// A wait that is given up has locked nothing, also of the rows that it had got before.
func lockRowsEnds[TX any](t *testing.T, c Client[TX]) {
	d := newBooks(t, c, 3)
	holder, tx, third := d.open(""), d.open(""), d.open("")
	_, err := d.lock(t.Context(), holder, nil, 3)
	noErr(t, err)
	d.exec(tx, `SELECT set_config('lock_timeout', '7s', true)`)
	for name, ctx := range map[string]func() (context.Context, context.CancelFunc){
		"deadline": func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), 50*time.Millisecond)
		},
		"cancel": func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				d.waiters(1)
				cancel()
			}()
			return ctx, cancel
		},
	} {
		ctx, cancel := ctx()
		got, err := d.lock(ctx, tx, nil, 1, 2, 3)
		wantErr(t, err, dblock.ErrNotAcquired)
		wantErr(t, err, ctx.Err())
		if len(got) > 0 {
			t.Errorf("%s: got %v", name, got)
		}
		cancel()
	}
	if s := d.text(tx, `SELECT current_setting('lock_timeout')`); s != "7s" {
		t.Errorf("lock_timeout is %s", s)
	}
	got, err := d.lock(t.Context(), third, &dblock.RowsConfig{Wait: dblock.NoWait}, 1, 2)
	wantKeys(t, got, err, 1, 2)
}

// Callers that lock the same rows, each in an order of its own, do not wait for each other in a circle, and no
// update is lost.
func lockRowsShuffled[TX any](t *testing.T, c Client[TX]) {
	const callers, rounds = 5, 12
	d := newBooks(t, c, callers)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	for n := range callers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(n)))
			for range rounds {
				ids := make([]int64, 0, 6)
				for _, i := range random.Perm(10)[:6] {
					ids = append(ids, int64(i+1))
				}
				tx, err := d.pool.BeginTx(t.Context(), "")
				if err != nil {
					t.Error(err)
					return
				}
				got, err := d.lock(t.Context(), tx, nil, ids...)
				slices.Sort(ids)
				if err != nil || !slices.Equal(got, ids) {
					t.Errorf("seed %d: locked %v (%v), want %v", seed, got, err, ids)
				}
				for _, id := range got {
					var balance int64
					err = errors.Join(
						d.pool.Tx(tx).Run(t.Context(), pg.Stmt{SQL: fmt.Sprintf(`SELECT balance FROM account WHERE id = %d`, id), Dest: []any{&balance}}),
						d.Exec(t.Context(), tx, fmt.Sprintf(`UPDATE account SET balance = %d WHERE id = %d`, balance+1, id)))
					if err != nil {
						t.Error(err)
					}
				}
				if err := d.Commit(t.Context(), tx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	wantInt(t, "sum of all balances", d.db.Int(t, `SELECT sum(balance) FROM account`), callers*rounds*6)
}

// Two transactions share a row and both want it for update: the server breaks the circle.
func lockRowsUpgrade[TX any](t *testing.T, c Client[TX]) {
	d := newBooks(t, c, 2)
	type outcome struct {
		tx  TX
		err error
	}
	results := make(chan outcome, 2)
	txs := []TX{d.open(""), d.open("")}
	for _, tx := range txs {
		_, err := d.lock(t.Context(), tx, &dblock.RowsConfig{Mode: dblock.ForShare}, 1)
		noErr(t, err)
	}
	for _, tx := range txs {
		go func() {
			_, err := d.lock(t.Context(), tx, nil, 1)
			results <- outcome{tx, err}
		}()
	}
	loser := <-results
	wantErr(t, loser.err, dblock.ErrDeadlock)
	wantErr(t, loser.err, dblock.ErrRetryTx)
	noErr(t, d.Rollback(t.Context(), loser.tx))
	noErr(t, (<-results).err)
}

// What cannot be locked is an error that says so, and the transaction survives.
func lockRowsBadTable[TX any](t *testing.T, c Client[TX]) {
	d := newBooks(t, c, 1)
	tx := d.open("")
	d.exec(tx, `INSERT INTO effect VALUES ('before')`)
	var none TX
	for says, call := range map[string]struct {
		tx    TX
		table dblock.Table
		key   string
		cfg   *dblock.RowsConfig
	}{
		`"public.nowhere" does not exist`: {tx, dblock.Table{Name: "nowhere"}, "1", nil},
		`column "nothing" does not exist`: {tx, dblock.Table{Name: "account", ID: "nothing"}, "1", nil},
		`operator does not exist`:         {tx, accounts, "1", nil},
		`name is empty`:                   {tx, dblock.Table{}, "1", nil},
		`more than one dot`:               {tx, dblock.Table{Name: "a.b.c"}, "1", nil},
		`not valid text`:                  {tx, accounts, "a\x00", nil},
		`mode 7`:                          {tx, accounts, "1", &dblock.RowsConfig{Mode: 7}},
		`wait -1`:                         {tx, accounts, "1", &dblock.RowsConfig{Wait: -1}},
		`nil transaction`:                 {none, accounts, "1", nil},
	} {
		got, err := dblock.LockRowsTx(t.Context(), d.locks, call.tx, call.table, []string{call.key}, call.cfg)
		wantText(t, err, says)
		switch says {
		case `name is empty`, `more than one dot`, `not valid text`, `mode 7`, `wait -1`:
			wantErr(t, err, dblock.ErrInvalidTable)
		}
		if len(got) > 0 {
			t.Errorf("locked %v", got)
		}
	}
	noErr(t, d.Commit(t.Context(), tx))
	wantInt(t, "effects", d.db.Int(t, `SELECT count(*) FROM effect`), 1)
}

// A table that is being altered is waited for as long as ctx allows, by NoWait too, and the transaction survives: the
// statement is not even prepared outside of the savepoint.
func lockRowsAltered[TX any](t *testing.T, c Client[TX]) {
	for _, wait := range []dblock.RowWait{dblock.Wait, dblock.NoWait, dblock.SkipLocked} {
		d := newBooks(t, c, 2)
		holder, tx := d.open(""), d.open("")
		d.exec(holder, `ALTER TABLE account ADD COLUMN note text`)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err := d.lock(ctx, tx, &dblock.RowsConfig{Wait: wait}, 1)
		cancel()
		wantErr(t, err, dblock.ErrNotAcquired)
		noErr(t, d.Commit(t.Context(), holder))
		got, err := d.lock(t.Context(), tx, &dblock.RowsConfig{Wait: wait}, 1)
		wantKeys(t, got, err, 1)
	}
}
