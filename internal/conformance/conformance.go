//go:build unix

// Package conformance holds every driver to the same behaviour: one suite, run for each
// client library and, on pgx, for each way it can talk to the server.
package conformance

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// Client is a client library under test.
type Client[TX any] struct {
	// Open connects to db with a pool of at most conns connections.
	Open func(t *testing.T, db *pgtest.DB, conns int) Pool[TX]

	// Exec runs a statement in the handler's transaction, as a user's code would.
	Exec func(ctx context.Context, tx TX, sql string, args ...any) error

	// LeaveOpen starts a query that returns rows and does not read them.
	LeaveOpen func(ctx context.Context, tx TX, sql string) error

	// Commit and Rollback end the handler's transaction, as a user's code must not.
	Commit, Rollback func(ctx context.Context, tx TX) error

	// Guarded says that the handler's transaction refuses Commit and Rollback.
	Guarded bool

	// BeginsReadWrite says that its BEGIN names READ WRITE, which overrides a role or a database
	// whose transactions are read-only by default. A standby it cannot override.
	BeginsReadWrite bool

	// Only runs the suites whose name begins so, Without leaves some out: what does not hold by way of this client.
	Only    string
	Without []string
}

// Pool is a driver over a client library's pool, and the pool's own way to begin.
type Pool[TX any] struct {
	pg.Driver[TX]

	// BeginTx opens a transaction as a user's code would.
	BeginTx func(ctx context.Context, level pg.Isolation) (TX, error)
}

// suites are the tests of one package, by the names that docs/guarantees.md uses.
type suites[TX any] map[string]func(*testing.T, Client[TX])

// Run runs every suite, unless the client says otherwise.
func Run[TX any](t *testing.T, c Client[TX]) {
	t.Helper()
	all := suites[TX]{}
	for _, suites := range []suites[TX]{seamSuites[TX](), idemSuites[TX](), stepsSuites[TX](), machineSuites[TX](), machineTriggerSuites[TX](), lockSuites[TX](), lockTxSuites[TX](), lockRowsSuites[TX](), leaseSuites[TX]()} {
		maps.Copy(all, suites)
	}
	for _, name := range c.Without {
		if all[name] == nil {
			t.Errorf("there is no suite %s to leave out", name)
		}
		delete(all, name)
	}
	for name, suite := range all {
		if !strings.HasPrefix(name, c.Only) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			suite(t, c)
		})
	}
}

func seamSuites[TX any]() suites[TX] {
	return suites[TX]{
		"seam/Values":             seamValues[TX],
		"seam/NoRow":              seamNoRow[TX],
		"seam/NetTimeout":         seamNetTimeout[TX],
		"seam/RunAllStops":        seamRunAllStops[TX],
		"seam/ErrorFields":        seamErrorFields[TX],
		"seam/CallersTransaction": seamCallersTransaction[TX],
		"seam/FailedBegin":        seamFailedBegin[TX],
		"seam/Isolation":          seamIsolation[TX],
		"seam/CommitRefused":      seamCommitRefused[TX],
		"seam/CommitLost":         seamCommitLost[TX],
		"seam/HandleDies":         seamHandleDies[TX],
		"seam/DeadContext":        seamDeadContext[TX],
		"seam/PoolOfOne":          seamPoolOfOne[TX],
		"seam/LongWait":           seamLongWait[TX],
		"seam/QueryStopsEarly":    seamQueryStopsEarly[TX],
		"seam/Session":            seamSession[TX],
		"seam/SilentNetwork":      seamSilentNetwork[TX],
		"seam/SilentRows":         seamSilentRows[TX],
		"seam/SlowReader":         seamSlowReader[TX],
		"seam/ReaderGivesUp":      seamReaderGivesUp[TX],
	}
}

func idemSuites[TX any]() suites[TX] {
	return suites[TX]{
		"idem/NewAndRepeat":         idemNewAndRepeat[TX],
		"idem/Mismatch":             idemMismatch[TX],
		"idem/Separate":             idemSeparate[TX],
		"idem/InFlight":             idemInFlight[TX],
		"idem/Storm":                idemStorm[TX],
		"idem/HandlerFails":         idemHandlerFails[TX],
		"idem/HandlerPanics":        idemHandlerPanics[TX],
		"idem/HandlerEnds":          idemHandlerEnds[TX],
		"idem/HandlerEndsByVerb":    idemHandlerEndsByVerb[TX],
		"idem/HandlerHidesEnd":      idemHandlerHidesEnd[TX],
		"idem/BlockingFails":        idemBlockingFails[TX],
		"idem/HandlerLeavesRole":    idemHandlerLeavesRole[TX],
		"idem/FreshValue":           idemFreshValue[TX],
		"idem/StaleConnections":     idemStaleConnections[TX],
		"idem/StalePlan":            idemStalePlan[TX],
		"idem/SilentNetwork":        idemSilentNetwork[TX],
		"idem/SilentReads":          idemSilentReads[TX],
		"idem/HandlerSpoils":        idemHandlerSpoils[TX],
		"idem/HandlerRetried":       idemHandlerRetried[TX],
		"idem/MaxHandler":           idemMaxHandler[TX],
		"idem/StricterRole":         idemStricterRole[TX],
		"idem/HostVanishes":         idemHostVanishes[TX],
		"idem/ServerLimits":         idemServerLimits[TX],
		"idem/ContextEnds":          idemContextEnds[TX],
		"idem/BackendKilled":        idemBackendKilled[TX],
		"idem/CommitAnswerLost":     idemCommitAnswerLost[TX],
		"idem/Expiry":               idemExpiry[TX],
		"idem/Purge":                idemPurge[TX],
		"idem/PurgeShared":          idemPurgeShared[TX],
		"idem/PurgeExcludes":        idemPurgeExcludes[TX],
		"idem/PurgeSkips":           idemPurgeSkips[TX],
		"idem/PurgeKilled":          idemPurgeKilled[TX],
		"idem/PurgeAnywhere":        idemPurgeAnywhere[TX],
		"idem/Maintain":             idemMaintain[TX],
		"idem/Inspect":              idemInspect[TX],
		"idem/List":                 idemList[TX],
		"idem/Forget":               idemForget[TX],
		"idem/RowSecurity":          idemRowSecurity[TX],
		"idem/NewerSchema":          idemNewerSchema[TX],
		"idem/ReadOnly":             idemReadOnly[TX],
		"idem/Results":              idemResults[TX],
		"idem/Races":                idemRaces[TX],
		"idem/Waits":                idemWaits[TX],
		"idem/WaitEnds":             idemWaitEnds[TX],
		"idem/WaitersTakeOver":      idemWaitersTakeOver[TX],
		"idem/WaitersAreFew":        idemWaitersAreFew[TX],
		"idem/WaitKeepsTimeouts":    idemWaitKeepsTimeouts[TX],
		"idem/PatientStorm":         idemPatientStorm[TX],
		"idem/Isolation":            idemIsolation[TX],
		"idem/ForeignLock":          idemForeignLock[TX],
		"idem/StoreDown":            idemStoreDown[TX],
		"idem/RefusalsTouchNothing": idemRefusalsTouchNothing[TX],
		"idem/RecordVanishes":       idemRecordVanishes[TX],
		"idem/Final":                idemFinal[TX],
		"idem/NotFinal":             idemNotFinal[TX],
		"idem/FinalAfter":           idemFinalAfter[TX],
		"idem/FinalRaces":           idemFinalRaces[TX],
		"idem/Nested":               idemNested[TX],
		"idem/TxNewAndRepeat":       txNewAndRepeat[TX],
		"idem/TxHandlerFails":       txHandlerFails[TX],
		"idem/TxHandlerPanics":      txHandlerPanics[TX],
		"idem/TxInFlight":           txInFlight[TX],
		"idem/TxFinal":              txFinal[TX],
		"idem/TxOldSnapshot":        txOldSnapshot[TX],
		"idem/TxSavepoints":         txSavepoints[TX],
		"idem/TxHandlerEnds":        txHandlerEnds[TX],
		"idem/TxReadOnly":           txReadOnly[TX],
		"idem/TxMisuse":             txMisuse[TX],
		"idem/TxSeen":               txSeen[TX],
		"idem/TxSeveralKeys":        txSeveralKeys[TX],
		"idem/Events":               idemEvents[TX],
		"idem/HandlerQuotes":        idemHandlerQuotes[TX],
		"idem/TxHandlerLeavesOpen":  txHandlerLeavesOpen[TX],
		"idem/TxHandlerHidesEnd":    txHandlerHidesEnd[TX],
		"idem/TxOneAtATime":         txOneAtATime[TX],
		"idem/Reentrant":            idemReentrant[TX],
		"idem/StaleWait":            idemStaleWait[TX],
		"idem/FinalWithoutValue":    idemFinalWithoutValue[TX],
		"idem/OwnCopies":            idemOwnCopies[TX],
		"idem/InnerLostRace":        idemInnerLostRace[TX],
		"idem/ServerGone":           idemServerGone[TX],
		"idem/UserConstraint":       idemUserConstraint[TX],
		"idem/HTTPHandle":           httpHandle[TX],
		"idem/HTTPMiddleware":       httpMiddleware[TX],
	}
}

func stepsSuites[TX any]() suites[TX] {
	return suites[TX]{
		"idem/StepsNewAndRepeat":       stepsNewAndRepeat[TX],
		"idem/StepsGoOn":               stepsGoOn[TX],
		"idem/StepsNothingCalled":      stepsNothingCalled[TX],
		"idem/StepsFinal":              stepsFinal[TX],
		"idem/StepsInFlight":           stepsInFlight[TX],
		"idem/StepsStorm":              stepsStorm[TX],
		"idem/StepsSlowBank":           stepsSlowBank[TX],
		"idem/StepsLeaseLost":          stepsLeaseLost[TX],
		"idem/StepsHeartbeatFindsLoss": stepsHeartbeatFindsLoss[TX],
		"idem/StepsCompleter":          stepsCompleter[TX],
		"idem/StepsCompletersRace":     stepsCompletersRace[TX],
		"idem/StepsDead":               stepsDead[TX],
		"idem/StepsBackOff":            stepsBackOff[TX],
		"idem/StepsSchedule":           stepsSchedule[TX],
		"idem/StepsImpatient":          stepsImpatient[TX],
		"idem/StepsCompleterMisuse":    stepsCompleterMisuse[TX],
		"idem/StepsCommitLost":         stepsCommitLost[TX],
		"idem/StepsTimeoutAfterPaying": stepsTimeoutAfterPaying[TX],
		"idem/StepsNeverHappened":      stepsNeverHappened[TX],
		"idem/StepsUnsure":             stepsUnsure[TX],
		"idem/StepsResolve":            stepsResolve[TX],
		"idem/StepsResolveMisuse":      stepsResolveMisuse[TX],
		"idem/StepsResolveTakesAway":   stepsResolveTakesAway[TX],
		"idem/StepsResolveEnds":        stepsResolveEnds[TX],
		"idem/StepsForget":             stepsForget[TX],
		"idem/ResolveBlocked":          idemResolveBlocked[TX],
		"idem/StepsRowSecurity":        stepsRowSecurity[TX],
		"idem/TwoReleases":             idemTwoReleases[TX],
		"idem/StepsChanged":            stepsChanged[TX],
		"idem/StepsMisuse":             stepsMisuse[TX],
		"idem/StepsTxHandlers":         stepsTxHandlers[TX],
		"idem/StepsOneOfManyFails":     stepsOneOfManyFails[TX],
		"idem/StepsLoserBeforeTheEnd":  stepsLoserBeforeTheEnd[TX],
	}
}

// effects is the table that handlers write to. One row is one effect.
const effects = `CREATE TABLE effect (name text NOT NULL)`

// begin opens an owned transaction that the test rolls back if it forgets to end it.
func begin[TX any](t *testing.T, d pg.Driver[TX], level pg.Isolation, first ...pg.Stmt) pg.OwnedTx[TX] {
	t.Helper()
	tx, err := d.Begin(t.Context(), level, first...)
	if err != nil {
		t.Fatalf("begin: %v", err)
	}
	t.Cleanup(func() { tx.Rollback(context.Background()) })
	return tx
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got error %v, want %v", err, want)
	}
}

func wantText(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("got error %v, want one that says %q", err, text)
	}
}

func wantInt(t *testing.T, what string, got, want int64) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %d, want %d", what, got, want)
	}
}

func noErr(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
