//go:build unix

package conformance

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/pgonce/pgonce/internal/fault"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

// A role whose transactions are SERIALIZABLE by default: what a race costs there is tried again by Fire.
func machineSerializableRole[TX any](t *testing.T, c Client[TX]) {
	for _, level := range []string{"repeatable read", "serializable"} {
		db := pgtest.New(t)
		db.Exec(t, items+`; INSERT INTO item SELECT g FROM generate_series(1, 3) g; ALTER DATABASE "`+db.Name+`" SET default_transaction_isolation = '`+level+`'`)
		b := bind(t, c.Open(t, db, 6), flow, sm.Table{Name: "item"})
		noErr(t, b.Validate(t.Context()))
		holder := db.Pool(t)
		other, err := holder.Begin(t.Context())
		noErr(t, err)
		_, err = other.Exec(t.Context(), `UPDATE item SET note = 'n'`)
		noErr(t, err)
		var wg sync.WaitGroup
		for id := range int64(3) {
			for _, opts := range [][]sm.Option{nil, {sm.Dedup("d")}} {
				wg.Go(func() {
					if _, err := b.Fire(t.Context(), id+1, goEvent, opts...); err != nil {
						t.Errorf("%s: %v", level, err)
					}
				})
			}
		}
		pgtest.Eventually(t, "all wait", func() bool {
			return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 6
		})
		noErr(t, other.Commit(t.Context()))
		wg.Wait()
		wantInt(t, "moves", db.Int(t, `SELECT count(*) FROM pgonce.transition WHERE outcome = 0`), 3)
	}
}

// No refusal spoils the caller's transaction: what it wrote before, and what it writes after, is committed.
func machineRefusalKeepsTx[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	y.insert(1, inA)
	y.insert(2, inX)
	y.insert(3, "unknown")
	y.want(1, goEvent, sm.Applied, inA, inT, sm.Dedup("used"))
	for _, level := range []pg.Isolation{pg.ReadCommitted, pg.RepeatableRead, pg.Serializable} {
		tx := y.tx(level)
		for _, tc := range []struct {
			id   int64
			ev   sm.Event[itemState]
			opts []sm.Option
			want error
		}{
			{2, goEvent, nil, sm.ErrConflict},
			{2, goEvent, []sm.Option{sm.Dedup("new")}, sm.ErrConflict},
			{9, goEvent, nil, sm.ErrNotFound},
			{3, goEvent, nil, sm.ErrUnknownState},
			{1, archive, []sm.Option{sm.Where("NOT ok")}, sm.ErrGuard},
			{1, goEvent, []sm.Option{sm.Match("NOT ok")}, sm.ErrConflict},
			{1, archive, []sm.Option{sm.Dedup("used")}, sm.ErrDedupReused},
			{1, archive, []sm.Option{sm.Where("true); DROP TABLE item; --")}, sm.ErrInvalid},
			{1, archive, []sm.Option{sm.Set("none", 1)}, sm.ErrInvalid},
			{1, archive, []sm.Option{sm.Dedup("\x00")}, sm.ErrInvalid},
			{1, sm.NewEvent[itemState]("other"), nil, sm.ErrInvalid},
		} {
			_, err := y.items.FireTx(t.Context(), tx.Handle(), tc.id, tc.ev, tc.opts...)
			wantErr(t, err, tc.want)
			noErr(t, tx.Run(t.Context(), pg.Stmt{SQL: `INSERT INTO child VALUES (1)`}))
		}
		noErr(t, tx.Commit(t.Context()))
	}
	wantInt(t, "what the transactions wrote beside it", y.int(`SELECT count(*) FROM child`), 33)
	y.wantHistory(1, "go:a>t")
}

// What FireTx answers is as provisional as its transaction: rolled back, nothing has happened.
func machineProvisionalUntilCommit[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	y.insert(1, inA)
	for _, commit := range []bool{false, true} {
		tx := y.tx(pg.ReadCommitted)
		for i, want := range []sm.Outcome{sm.Applied, sm.AlreadyApplied, sm.AlreadyApplied} {
			opts := []sm.Option{sm.Dedup("d")}
			if i == 2 {
				opts = nil
			}
			res, err := y.items.FireTx(t.Context(), tx.Handle(), 1, goEvent, opts...)
			if err != nil || res.Outcome != want {
				t.Errorf("got %+v, %v", res, err)
			}
		}
		y.wantState(1, inA) // to everybody else
		y.wantHistory(1)
		if commit {
			noErr(t, tx.Commit(t.Context()))
		} else {
			tx.Rollback(t.Context())
		}
	}
	y.wantState(1, inT)
	y.wantHistory(1, "go:a>t")
}

// FireTx asks nobody but its own connection, its first call included: there may be no other. And it sees what
// its transaction has done.
func machinePoolOfOne[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 1)
	tx := y.tx(pg.ReadCommitted)
	noErr(t, tx.Run(t.Context(), pg.Stmt{SQL: `INSERT INTO item (id) VALUES (1)`}))
	res, err := y.items.FireTx(t.Context(), tx.Handle(), 1, goEvent, sm.Dedup("d"))
	if err != nil || !res.Applied() {
		t.Errorf("got %+v, %v", res, err)
	}
	_, err = y.items.FireTx(t.Context(), tx.Handle(), 1, away, sm.Dedup("e"))
	wantErr(t, err, sm.ErrConflict)
	noErr(t, tx.Commit(t.Context()))
	y.want(1, goEvent, sm.AlreadyApplied, inA, inT, sm.Dedup("d"))
	_, err = y.fire(1, away, sm.Dedup("e")) // which takes a transaction of its own
	wantErr(t, err, sm.ErrConflict)
}

// The connection is lost with the answer: nobody knows, and the caller is told so. Firing again with the
// same id settles it.
func machineLostAnswer[TX any](t *testing.T, c Client[TX]) {
	for _, kind := range []fault.Kind{fault.MuteNext, fault.CutAnswer} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			db.Exec(t, items+`; INSERT INTO item VALUES (1)`)
			proxy := fault.New(t, db.URL)
			b := bind(t, c.Open(t, db.Via(proxy.URL()), 1), flow, sm.Table{Name: "item"})
			noErr(t, b.Validate(t.Context()))
			ctx := pg.WithNetTimeout(t.Context(), time.Second)
			_, err := b.Fire(ctx, 2, goEvent, sm.Dedup("d")) // has the statement prepared
			wantErr(t, err, sm.ErrNotFound)
			proxy.Arm(db.Int(t, `SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle' AND query LIKE '%pgonce_dup%'`), kind)
			_, err = b.Fire(ctx, 1, goEvent, sm.Dedup("d"))
			wantErr(t, err, sm.ErrUnknownOutcome)
			moved := db.Int(t, `SELECT count(*) FROM item WHERE state = 't'`)
			res, err := b.Fire(t.Context(), 1, goEvent, sm.Dedup("d"))
			if err != nil || res.Applied() != (moved == 0) || kind == fault.MuteNext && moved != 0 {
				t.Errorf("got %+v, %v, after %d moves whose answer was lost", res, err, moved)
			}
			wantInt(t, "moves", db.Int(t, `SELECT count(*) FROM pgonce.transition`), 1)
		})
	}
}

// A backend is terminated: before the caller's transaction comes to an end, which is the end of that; and while Fire waits,
// which is an unknown outcome.
func machineBackendKilled[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	y.insert(1, inA)
	noErr(t, y.items.Validate(t.Context()))
	const kill = `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle' AND `
	tx := y.tx(pg.ReadCommitted)
	_, err := y.items.FireTx(t.Context(), tx.Handle(), 1, goEvent)
	noErr(t, err)
	wantInt(t, "killed", y.int(kill+`state = 'idle in transaction'`), 1)
	_, err = y.items.FireTx(t.Context(), tx.Handle(), 1, archive)
	wantErr(t, err, sm.ErrUnavailable)
	if errors.Is(err, sm.ErrUnknownOutcome) {
		t.Errorf("nothing of a transaction without COMMIT is left: %v", err)
	}
	tx.Rollback(t.Context())
	y.wantState(1, inA)

	other := y.hold(`SELECT FROM item WHERE id = 1 FOR UPDATE`)
	done := y.background(func() (itemResult, error) { return y.fire(1, goEvent) })
	if early := y.awaitBlocked(done); early != nil {
		t.Errorf("it did not wait: %+v", *early)
	}
	wantInt(t, "killed", y.int(kill+`wait_event_type = 'Lock'`), 1)
	wantErr(t, (<-done).err, sm.ErrUnknownOutcome)
	noErr(t, other.Rollback(t.Context()))
	y.wantState(1, inA)
}

// The end of ctx before anything was sent, and while the statement waits for the row.
func machineContextEnds[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	y.insert(1, inA)
	noErr(t, y.items.Validate(t.Context()))
	dead, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := y.items.Fire(dead, 1, goEvent)
	wantErr(t, err, context.Canceled)
	if errors.Is(err, sm.ErrUnknownOutcome) {
		t.Errorf("nothing was sent: %v", err)
	}
	y.wantState(1, inA)

	other := y.hold(`SELECT FROM item WHERE id = 1 FOR UPDATE`)
	ctx, cancel := context.WithCancel(t.Context())
	done := y.background(func() (itemResult, error) { return y.items.Fire(ctx, 1, goEvent, sm.Dedup("d")) })
	if early := y.awaitBlocked(done); early != nil {
		t.Errorf("it did not wait: %+v", *early)
	}
	cancel()
	got := <-done
	if pg.Code(got.err) != pg.CodeQueryCanceled { // a client library that waits for the server's word knows better
		wantErr(t, got.err, sm.ErrUnknownOutcome)
	}
	wantErr(t, got.err, context.Canceled)
	noErr(t, other.Commit(t.Context()))
	_, err = y.fire(1, goEvent, sm.Dedup("d"))
	noErr(t, err)
	y.wantHistory(1, "go:a>t")
	pgtest.Eventually(t, "no transaction is open", func() bool {
		return y.int(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()`) == 0
	})
}

// The history's numbers rise, and its times are those of the move, not of the statement that waited for it.
func machineHistoryOrder[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 2)
	y.insert(1, inA)
	first := y.want(1, prepare, sm.Applied, inA, inB)
	other := y.hold(`SELECT FROM item WHERE id = 1 FOR UPDATE`)
	done := y.background(func() (itemResult, error) { return y.fire(1, goEvent) })
	if early := y.awaitBlocked(done); early != nil {
		t.Errorf("it did not wait: %+v", *early)
	}
	var before time.Time
	noErr(t, other.QueryRow(t.Context(), `SELECT clock_timestamp()`).Scan(&before))
	noErr(t, other.Commit(t.Context()))
	second := <-done
	noErr(t, second.err)
	if second.res.Seq <= first.Seq || second.res.At.Before(before) {
		t.Errorf("first %+v, second %+v, which had the row after %v", first, second.res, before)
	}
	y.wantHistory(1, "prepare:a>b", "go:b>t")
}

func machineBusy[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, items+`; INSERT INTO item VALUES (1); ALTER DATABASE "`+db.Name+`" SET lock_timeout = '20ms'`)
	d := c.Open(t, db, 2)
	b := bind(t, d, flow, sm.Table{Name: "item"})
	holder := begin(t, d, "", pg.Stmt{SQL: `SELECT FROM item FOR UPDATE`})
	_, err := b.Fire(t.Context(), 1, goEvent)
	wantErr(t, err, sm.ErrBusy)
	tx := begin(t, d, "")
	_, err = b.FireTx(t.Context(), tx.Handle(), 1, goEvent)
	wantErr(t, err, sm.ErrBusy)
	tx.Rollback(t.Context())
	holder.Rollback(t.Context())
	_, err = b.Fire(t.Context(), 1, goEvent)
	noErr(t, err)
}

// Fire does not wait for longer than it can be told what became of it; and it leaves no setting behind. FireTx
// waits as its transaction says.
func machineWaitIsBounded[TX any](t *testing.T, c Client[TX]) {
	y := newYard(t, c, 1)
	y.insert(1, inA)
	noErr(t, y.items.Validate(t.Context()))
	other := y.hold(`SELECT FROM item FOR UPDATE`)
	for _, opts := range [][]sm.Option{nil, {sm.Dedup("d")}} {
		_, err := y.items.Fire(pg.WithNetTimeout(t.Context(), 4500*time.Millisecond), 1, goEvent, opts...)
		wantErr(t, err, sm.ErrBusy)
	}
	var setting string
	show := pg.Stmt{SQL: `SELECT current_setting('lock_timeout')`, Dest: []any{&setting}}
	noErr(t, y.d.Pool().Run(t.Context(), show))
	if setting != "0" {
		t.Errorf("Fire has left lock_timeout = %s", setting)
	}
	tx := y.tx(pg.ReadCommitted)
	done := y.background(func() (itemResult, error) { return y.items.FireTx(t.Context(), tx.Handle(), 1, goEvent) })
	if early := y.awaitBlocked(done); early != nil {
		t.Errorf("it did not wait: %+v", *early)
	}
	noErr(t, other.Commit(t.Context()))
	noErr(t, (<-done).err)
	noErr(t, tx.Run(t.Context(), show))
	if setting != "0" {
		t.Errorf("FireTx has left lock_timeout = %s", setting)
	}
	noErr(t, tx.Commit(t.Context()))
}

func machineReadOnly[TX any](t *testing.T, c Client[TX]) {
	db := pgtest.New(t)
	db.Exec(t, items+`; INSERT INTO item VALUES (1); ALTER DATABASE "`+db.Name+`" SET default_transaction_read_only = on`)
	b := bind(t, c.Open(t, db, 1), flow, sm.Table{Name: "item"})
	_, err := b.Fire(t.Context(), 1, goEvent)
	wantErr(t, err, sm.ErrReadOnly)
}
