package pgerr

import "github.com/jackc/pgx/v5"

// WithoutCancel runs a trip that may commit, and sees to it that pgx cannot have the server cancel it.
//
// pgx answers every end of a trip that is none of the server's (a deadline, a connection that is cut) with a cancel request, on a connection
// of its own. A COMMIT that waits for a synchronous standby is ended by that: it becomes visible, and so is replayed and
// acknowledged, though no standby has it; a promotion takes it back. There is no setting against it, so the request
// is spoiled: while the trip is under way the key that it has to show is a wrong one, and the server ignores it. A
// statement whose client is gone is ended by client_connection_check_interval and the limits that it has.
//
// The key is not put back on a connection that is closed: pgx may be sending it just then.
func WithoutCancel(conn *pgx.Conn, trip func()) {
	key := conn.PgConn().SecretKey() // pgx's own bytes: TestCommitThatWaitsForAStandby sees to it that they are
	invert(key)
	defer func() {
		if !conn.IsClosed() {
			invert(key)
		}
	}()
	trip()
}

func invert(key []byte) {
	for i := range key {
		key[i] = ^key[i]
	}
}
