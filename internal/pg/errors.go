package pg

import (
	"errors"
	"fmt"
	"strings"
)

// Facts that drivers report. The packages export those that a user can act on
// under their own names.
var (
	// ErrNoRow means that a statement with Dest returned no row.
	ErrNoRow = errors.New("no row")

	// ErrUnavailable means that no connection could be had. Nothing was done.
	ErrUnavailable = errors.New("database unavailable")

	// ErrNotSent means that the client library has refused an argument: the statement was not sent, and the connection is good.
	ErrNotSent = errors.New("argument cannot be sent")

	// ErrTxLost means that a transaction is gone with its connection and that its
	// COMMIT was never sent: everything in it is rolled back.
	ErrTxLost = errors.New("transaction lost with its connection")

	// ErrTxEnded means that the transaction had ended before we ended it.
	ErrTxEnded = errors.New("transaction had already ended")

	// ErrTxBusy means that a result was left open on the transaction, so that it
	// could take no further statement. It was rolled back.
	ErrTxBusy = errors.New("transaction still busy: rows or batch results were left open")

	// ErrOutcomeUnknown means that the answer to COMMIT never came.
	ErrOutcomeUnknown = errors.New("outcome of commit unknown")
)

// The SQLSTATE codes that the packages decide by.
const (
	CodeInvalidValue     = "22023"
	CodeNotNull          = "23502"
	CodeUnique           = "23505"
	CodeSerialization    = "40001"
	CodeDeadlock         = "40P01"
	CodeUndefinedTable   = "42P01"
	CodeNoSuchSchema     = "3F000"
	CodeNoPrivilege      = "42501"
	CodeFailedTx         = "25P02"
	CodeStalePlan        = "0A000"
	CodeNoSuchStatement  = "26000"
	CodeSameStatement    = "42P05"
	CodeProtocol         = "08P01" // also what PgBouncer sends for errors of its own
	CodeLockTimeout      = "55P03"
	CodeQueryCanceled    = "57014"
	CodeOutOfMemory      = "53200"
	CodeNoSavepoint      = "3B001"
	CodeNoTx             = "25P01"
	CodeReadOnlyTx       = "25006"
	CodeTooManyClients   = "53300"
	CodeAdminShutdown    = "57P01"
	CodeCrashShutdown    = "57P02"
	CodeCannotConnectNow = "57P03"
	CodeIdleSession      = "57P05"
	CodeIdleInTx         = "25P03"
	CodeTxTimeout        = "25P04"
)

// Error is an error of the server, free of the client library's own type. It
// unwraps to that type, so the caller's errors.As keeps working.
type Error struct {
	Code       string // SQLSTATE
	Fatal      bool   // the server has closed the connection
	Schema     string
	Table      string
	Column     string
	Constraint string
	Detail     string
	Err        error
}

func (e *Error) Error() string {
	text := e.Err.Error()
	switch {
	case e.Code == CodeNoSuchStatement, e.Code == CodeSameStatement,
		e.Code == CodeProtocol && strings.Contains(text, "prepared statement"):
		return text + preparedHint
	case e.Code == CodeStalePlan && strings.Contains(text, "cached plan"):
		return text + planHint
	}
	return text
}

func (e *Error) Unwrap() error { return e.Err }

// What helps where statements are prepared on one server connection and executed on another.
const (
	preparedHint = ": behind a pooler in transaction mode prepared statements need PgBouncer 1.21 or newer with max_prepared_statements set; " +
		"otherwise connect with default_query_exec_mode=exec (pgx) or binary_parameters=yes (lib/pq)"
	planHint = ": PgBouncer keeps statements that it has prepared before a migration until RECONNECT is said on its admin console"
)

// Code is the SQLSTATE in err, or "" when err is not an answer of the server.
func Code(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}

// Rejected reports whether the server has refused a statement and is still
// there: the transaction can only be rolled back, the connection is good.
func Rejected(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && !e.Fatal
}

// IsFatal decides whether the server has closed the connection. The severity is
// translated by lc_messages and not every client library reports the plain one, so
// the codes that are only ever sent with FATAL count too.
func IsFatal(severity, code string) bool {
	switch severity {
	case "FATAL", "PANIC":
		return true
	}
	switch code {
	case CodeAdminShutdown, CodeCrashShutdown, CodeCannotConnectNow, CodeIdleSession,
		CodeIdleInTx, CodeTxTimeout, CodeTooManyClients:
		return true
	}
	return false
}

// CommitError says what the failure of the trip that carried COMMIT means: a definite
// rollback when the server has refused, and otherwise that nobody knows.
func CommitError(err error) error {
	if err == nil || Rejected(err) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
}
