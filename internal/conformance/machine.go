//go:build unix

package conformance

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

func machineSuites[TX any]() suites[TX] {
	return suites[TX]{
		"machine/TruthTable":             machineTruthTable[TX],
		"machine/LockHoldsARepeat":       machineLockHoldsARepeat[TX],
		"machine/SameDeliveryInFlight":   machineSameDeliveryInFlight[TX],
		"machine/SameDeliveryMovedOn":    machineSameDeliveryMovedOn[TX],
		"machine/Storm":                  machineStorm[TX],
		"machine/CycleStorm":             machineCycleStorm[TX],
		"machine/DoubleCallback":         machineDoubleCallback[TX],
		"machine/ConflictTellsWhere":     machineConflictTellsWhere[TX],
		"machine/MissingRow":             machineMissingRow[TX],
		"machine/UnknownState":           machineUnknownState[TX],
		"machine/LateRepeatOnACycle":     machineLateRepeatOnACycle[TX],
		"machine/NilAnswersAreRecorded":  machineNilAnswersAreRecorded[TX],
		"machine/DedupReused":            machineDedupReused[TX],
		"machine/Superseded":             machineSuperseded[TX],
		"machine/SelfTransition":         machineSelfTransition[TX],
		"machine/SharedTarget":           machineSharedTarget[TX],
		"machine/SharedTargetInFlight":   machineSharedTargetInFlight[TX],
		"machine/CreatedInTheTarget":     machineCreatedInTheTarget[TX],
		"machine/SerializableRole":       machineSerializableRole[TX],
		"machine/RefusalKeepsTx":         machineRefusalKeepsTx[TX],
		"machine/ProvisionalUntilCommit": machineProvisionalUntilCommit[TX],
		"machine/PoolOfOne":              machinePoolOfOne[TX],
		"machine/LostAnswer":             machineLostAnswer[TX],
		"machine/BackendKilled":          machineBackendKilled[TX],
		"machine/ContextEnds":            machineContextEnds[TX],
		"machine/HistoryOrder":           machineHistoryOrder[TX],
		"machine/SilentNetwork":          machineSilentNetwork[TX],
		"machine/Ids":                    machineIDs[TX],
		"machine/Names":                  machineNames[TX],
		"machine/StateTypes":             machineStateTypes[TX],
		"machine/Partitioned":            machinePartitioned[TX],
		"machine/Sets":                   machineSets[TX],
		"machine/Guards":                 machineGuards[TX],
		"machine/GuardUnderRace":         machineGuardUnderRace[TX],
		"machine/Version":                machineVersion[TX],
		"machine/Diverted":               machineDiverted[TX],
		"machine/Constraint":             machineConstraint[TX],
		"machine/Busy":                   machineBusy[TX],
		"machine/WaitIsBounded":          machineWaitIsBounded[TX],
		"machine/ReadOnly":               machineReadOnly[TX],
		"machine/NoHistory":              machineNoHistory[TX],
		"machine/NotUnique":              machineNotUnique[TX],
		"machine/TableChanges":           machineTableChanges[TX],
		"machine/Forbidden":              machineForbidden[TX],
		"machine/ManyPartition":          machineManyPartition[TX],
		"machine/ManyDedup":              machineManyDedup[TX],
		"machine/ManyDedupOfNothing":     machineManyDedupOfNothing[TX],
		"machine/DedupAfterNone":         machineDedupAfterNone[TX],
		"machine/ManySharedTarget":       machineManySharedTarget[TX],
		"machine/ManyStorm":              machineManyStorm[TX],
		"machine/ManyLocksInOrder":       machineManyLocksInOrder[TX],
		"machine/ManyLocksAnyPlan":       machineManyLocksAnyPlan[TX],
		"machine/ManyRefusedByServer":    machineManyRefusedByServer[TX],
		"machine/ManyBusy":               machineManyBusy[TX],
		"machine/ManyIds":                machineManyIDs[TX],
		"machine/GuardInGo":              machineGuardInGo[TX],
		"machine/GuardHoldsTheRow":       machineGuardHoldsTheRow[TX],
		"machine/Create":                 machineCreate[TX],
		"machine/CreateOtherwise":        machineCreateOtherwise[TX],
		"machine/AdoptAmongOthers":       machineAdoptAmongOthers[TX],
		"machine/Adopt":                  machineAdopt[TX],
		"machine/VerifyHistory":          machineVerifyHistory[TX],
		"machine/StateAndHistory":        machineStateAndHistory[TX],
		"machine/Scope":                  machineScope[TX],
		"machine/LockTimeout":            machineLockTimeout[TX],
		"machine/Sweep":                  machineSweep[TX],
		"machine/Sweepers":               machineSweepers[TX],
		"machine/SweepPoison":            machineSweepPoison[TX],
		"machine/ReversalAndRequire":     machineReversalAndRequire[TX],
		"machine/TwoOnOneRow":            machineTwoOnOneRow[TX],
	}
}

// itemState is the state of the rows that these tests move.
type itemState string

// The machine of these tests: go leads from a and b to t, which nothing else does.
const (
	inA, inB, inT, inX, inL itemState = "a", "b", "t", "x", "late"
)

var (
	prepare = sm.NewEvent[itemState]("prepare")
	goEvent = sm.NewEvent[itemState]("go")
	away    = sm.NewEvent[itemState]("away")
	archive = sm.NewEvent[itemState]("archive")

	flow = sm.MustNew("flow", sm.Initial(inA), sm.Final(inX, inL),
		sm.From(inA).On(prepare).To(inB), sm.From(inA, inB).On(goEvent).To(inT), sm.From(inA, inB).On(away).To(inX),
		sm.From(inT).On(archive).To(inL), sm.From(inL).Ignore(goEvent))
)

const items = `
CREATE TABLE item (id bigint PRIMARY KEY, state text DEFAULT 'a', ok boolean NOT NULL DEFAULT true, note text,
	amount bigint NOT NULL DEFAULT 100, refunded bigint NOT NULL DEFAULT 0, at timestamptz, meta jsonb, version int NOT NULL DEFAULT 0);
CREATE TABLE child (item bigint NOT NULL REFERENCES item)`

type itemResult = sm.Result[itemState]

// yard is a binding of a machine on a database with items.
type yard[TX any] struct {
	Client[TX]
	t     *testing.T
	db    *pgtest.DB
	d     pg.Driver[TX]
	items *sm.Binding[int64, itemState, TX]
	admin *pgxpool.Pool // what happens behind the library's back
}

func newYard[TX any](t *testing.T, c Client[TX], conns int) *yard[TX] {
	t.Helper()
	return newYardOf(t, c, conns, flow, sm.Table{Name: "item"})
}

func newYardOf[TX any](t *testing.T, c Client[TX], conns int, m *sm.Machine[itemState], table sm.Table) *yard[TX] {
	t.Helper()
	db := pgtest.New(t)
	db.Exec(t, items)
	y := &yard[TX]{Client: c, t: t, db: db, d: c.Open(t, db, conns), admin: db.Pool(t)}
	y.items = bind(t, y.d, m, table)
	return y
}

func bind[TX any](t *testing.T, d pg.Driver[TX], m *sm.Machine[itemState], table sm.Table) *sm.Binding[int64, itemState, TX] {
	t.Helper()
	b, err := sm.Bind[int64](m, d, table)
	noErr(t, err)
	return b
}

// sql runs a statement behind the library's back.
func (y *yard[TX]) sql(sql string, args ...any) {
	y.t.Helper()
	_, err := y.admin.Exec(y.t.Context(), sql, args...)
	noErr(y.t, err)
}

func (y *yard[TX]) int(sql string, args ...any) (n int64) {
	y.t.Helper()
	noErr(y.t, y.admin.QueryRow(y.t.Context(), sql, args...).Scan(&n))
	return n
}

func (y *yard[TX]) insert(id int64, state itemState) {
	y.t.Helper()
	y.sql(`INSERT INTO item (id, state) VALUES ($1, $2)`, id, string(state))
}

func (y *yard[TX]) wantState(id int64, want itemState) {
	y.t.Helper()
	var got itemState
	noErr(y.t, y.admin.QueryRow(y.t.Context(), `SELECT state FROM item WHERE id = $1`, id).Scan(&got))
	if got != want {
		y.t.Errorf("row %d is in %q, want %q", id, got, want)
	}
}

// wantHistory compares the rows of an item's history, each as "event:from>to" with its outcome if that is
// not 0.
func (y *yard[TX]) wantHistory(id int64, want ...string) {
	y.t.Helper()
	rows, _ := y.admin.Query(y.t.Context(), `SELECT event || ':' || from_state || '>' || to_state || CASE outcome WHEN 0 THEN '' ELSE ' ' || outcome END
		FROM pgonce.transition WHERE entity = $1 ORDER BY seq`, fmt.Sprint(id))
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	noErr(y.t, err)
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		y.t.Errorf("history of row %d: %q, want %q", id, got, want)
	}
}

func (y *yard[TX]) fire(id int64, ev sm.Event[itemState], opts ...sm.Option) (itemResult, error) {
	return y.items.Fire(y.t.Context(), id, ev, opts...)
}

// want fires outside of transactions and compares the answer.
func (y *yard[TX]) want(id int64, ev sm.Event[itemState], outcome sm.Outcome, from, to itemState, opts ...sm.Option) itemResult {
	y.t.Helper()
	res, err := y.fire(id, ev, opts...)
	if err != nil || res.Outcome != outcome || res.From != from || res.To != to {
		y.t.Errorf("row %d, %q: got %v %q>%q, %v; want %v %q>%q", id, ev.Name(), res.Outcome, res.From, res.To, err, outcome, from, to)
	}
	return res
}

// waiting says whether somebody waits for a lock.
func (y *yard[TX]) waiting() bool {
	return y.int(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) > 0
}

// answer is what a caller in the background got.
type answer struct {
	res itemResult
	err error
}

// background fires in a goroutine of its own.
func (y *yard[TX]) background(fire func() (itemResult, error)) <-chan answer {
	done := make(chan answer, 1)
	go func() {
		res, err := fire()
		done <- answer{res, err}
	}()
	return done
}

// awaitBlocked waits until the caller in the background waits for the row; early is its answer, if it does not.
func (y *yard[TX]) awaitBlocked(done <-chan answer) (early *answer) {
	y.t.Helper()
	pgtest.Eventually(y.t, "the caller waits", func() bool {
		select {
		case a := <-done:
			early = &a
			return true
		default:
			return y.waiting()
		}
	})
	return early
}

// hold opens a transaction behind the library's back that the test ends.
func (y *yard[TX]) hold(sql string, args ...any) pgx.Tx {
	y.t.Helper()
	tx, err := y.admin.Begin(y.t.Context())
	noErr(y.t, err)
	_, err = tx.Exec(y.t.Context(), sql, args...)
	noErr(y.t, err)
	return tx
}

// tx opens a transaction of the caller's and takes its snapshot.
func (y *yard[TX]) tx(level pg.Isolation) pg.OwnedTx[TX] {
	y.t.Helper()
	return begin(y.t, y.d, level, pg.Stmt{SQL: `SELECT 1`})
}
