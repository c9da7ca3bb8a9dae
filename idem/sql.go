package idem

// Every statement on the table names one key, by the primary key's index. So it touches one row,
// and one shard where the table is distributed by scope. The others touch no table of ours.
const (
	// sqlGuard takes the key's lock if it is free, and says which of the server's processes has it then, or 0. Lock: one
	// advisory, exclusive, until the transaction ends. It never waits.
	//
	// For this transaction only, the server also learns to notice a client that is gone:
	// in a statement, by looking at the socket every $3 ms, and between statements after $2
	// ms. A shorter limit of the role stands; 0 means that it has none, which is the rule, and cheap. The last column is the limit, in
	// ms. A CASE, and nothing else in SQL, is evaluated in its order: the role's limit is read before it is replaced.
	sqlGuard = `
SELECT CASE WHEN pg_try_advisory_xact_lock($1::bigint) THEN pg_backend_pid() ELSE 0 END, now(),
       pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on',
       CASE WHEN set_config('client_connection_check_interval', $3::text, true) IS NULL THEN 0
            WHEN current_setting('idle_in_transaction_session_timeout') <> '0'
            THEN (1000 * extract(epoch FROM set_config('idle_in_transaction_session_timeout', least($2::text::bigint,
                     (1000 * extract(epoch FROM current_setting('idle_in_transaction_session_timeout')::interval))::bigint)::text, true)::interval))::bigint
            WHEN set_config('idle_in_transaction_session_timeout', $2::text, true) IS NULL THEN 0
            ELSE $2::text::bigint END`

	// sqlProbeCheck asks whether the server's platform can look at its sockets; where it
	// cannot, this fails with 22023. It is a transaction of its own, so nothing is set.
	sqlProbeCheck = `SELECT set_config('client_connection_check_interval', $1::text, true)`

	// sqlLookup must be a statement of its own after sqlGuard. In one statement both would
	// see the snapshot of before the lock, and so could miss a record that was
	// committed while the lock was still held. Without a result, it is not kept any more. Locks: ACCESS SHARE. No xid,
	// no WAL.
	sqlLookup = `
SELECT state, fp_ver, fp, created_at, CASE WHEN replay_until > statement_timestamp() THEN result END
FROM "pgonce"."idem_record"
WHERE scope = $1::text AND digest = $2::bytea`

	// sqlWhose is sqlLookup for those who have to know whether the record is their own: with the number of the attempt.
	sqlWhose = `
SELECT state, fp_ver, fp, created_at, CASE WHEN replay_until > statement_timestamp() THEN result END, attempt
FROM "pgonce"."idem_record"
WHERE scope = $1::text AND digest = $2::bytea`

	// sqlInsert writes the finished record. The primary key is the arbiter: whatever
	// else went wrong, a second record for the key cannot commit. created_at becomes
	// NULL, which the column refuses, when this is not the transaction that took
	// the key's lock. A negative duration means for ever.
	sqlInsert = `
INSERT INTO "pgonce"."idem_record"
       (attempt, created_at, replay_until, remember_until, state, fp_ver, scope, digest, op, id, fp, result)
VALUES ($1::bigint, CASE WHEN now() = $2::timestamptz THEN now() END,
        CASE WHEN $3::float8 < 0 THEN 'infinity' ELSE statement_timestamp() + make_interval(secs => $3::float8) END,
        CASE WHEN $4::float8 < 0 THEN 'infinity' ELSE statement_timestamp() + make_interval(secs => $4::float8) END,
        $5::smallint, $6::smallint, $7::text, $8::bytea, $9::text, $10::text, $11::bytea, $12::bytea)`

	// sqlInsertSettled decides a key without an effect: refused for good, or unknown. If
	// somebody else has decided the key meanwhile, theirs stands, and there is no row to return. It waits
	// for a transaction that has inserted the key's record and not ended yet, as any INSERT does.
	sqlInsertSettled = `
INSERT INTO "pgonce"."idem_record"
       (attempt, created_at, replay_until, remember_until, state, fp_ver, scope, digest, op, id, fp, result)
VALUES ($1::bigint, statement_timestamp(),
        CASE WHEN $2::float8 < 0 THEN 'infinity' ELSE statement_timestamp() + make_interval(secs => $2::float8) END,
        CASE WHEN $3::float8 < 0 THEN 'infinity' ELSE statement_timestamp() + make_interval(secs => $3::float8) END,
        $4::smallint, $5::smallint, $6::text, $7::bytea, $8::text, $9::text, $10::bytea, $11::bytea)
ON CONFLICT (scope, digest) DO NOTHING
RETURNING created_at`

	// sqlAwaitLock waits until the transaction that held the key's lock is over, for as long
	// as sqlLockTimeout allows. Lock: one advisory, shared, until the transaction ends.
	sqlAwaitLock = `SELECT pg_advisory_xact_lock_shared($1::bigint)`

	// sqlLock waits for the key's lock, for as long as sqlLockTimeout allows, so that
	// sqlGuard finds it taken by its own transaction. Lock: one advisory, exclusive, until the
	// transaction ends.
	sqlLock = `SELECT pg_advisory_xact_lock($1::bigint)`

	// sqlLockTimeout bounds, in ms, what the statements after it wait, by this alone and not by a
	// statement_timeout of the role; makes the server notice, while they wait, that the client is gone; and says
	// whether this is a standby, whose answers prove nothing.
	sqlLockTimeout = `
SELECT set_config('lock_timeout', $1::text, true), set_config('statement_timeout', '0', true),
       set_config('client_connection_check_interval', $2::text, true), pg_is_in_recovery()`

	// sqlKeepTimeouts and sqlRestoreTimeouts bracket sqlLockTimeout where a handler's
	// statements come after it in the same transaction: they are to wait as their role has it.
	sqlKeepTimeouts = `
SELECT set_config('pgonce.lock_timeout', current_setting('lock_timeout'), true),
       set_config('pgonce.statement_timeout', current_setting('statement_timeout'), true)`
	sqlRestoreTimeouts = `
SELECT set_config('lock_timeout', current_setting('pgonce.lock_timeout'), true),
       set_config('statement_timeout', current_setting('pgonce.statement_timeout'), true)`

	// sqlTerminate ends the backend of a lost connection of ours, so that its transaction
	// is over. It must be that very transaction: the pid alone may be somebody else's by
	// now, or behind a pooler. And it must not wait for replication: ending that wait
	// would make a commit visible that no standby has. Locks: none.
	sqlTerminate = `
SELECT count(pg_terminate_backend(a.pid))
FROM pg_catalog.pg_stat_activity a
WHERE a.pid = $1::bigint AND a.xact_start = $2::timestamptz
  AND a.wait_event IS DISTINCT FROM 'SyncRep'
  AND EXISTS (SELECT FROM pg_catalog.pg_locks l
              WHERE l.pid = a.pid AND l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                AND l.classid::bigint = ($3::bigint >> 32) & 4294967295 AND l.objid::bigint = $3::bigint & 4294967295)`

	// sqlXID gives the transaction its number, which the INSERT would do later, so that
	// its fate can be asked for when a handler has ended it.
	sqlXID = `SELECT pg_current_xact_id()::text`

	// sqlXIDIfNew is sqlXID for a key that has no record, and empty for one that has. By the primary
	// key's index.
	sqlXIDIfNew = `
SELECT CASE WHEN pg_is_in_recovery() OR EXISTS (SELECT FROM "pgonce"."idem_record" WHERE scope = $1::text AND digest = $2::bytea)
       THEN '' ELSE pg_current_xact_id()::text END`

	// sqlGuardTx is sqlGuard for a transaction of the caller's, where nothing is set. Lock: one
	// advisory, exclusive, until that transaction ends. It never waits.
	sqlGuardTx = `
SELECT CASE WHEN pg_try_advisory_xact_lock($1::bigint) THEN pg_backend_pid() ELSE 0 END, now(),
       pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on'`

	sqlSavepoint  = `SAVEPOINT pgonce_idem`
	sqlRelease    = `RELEASE SAVEPOINT pgonce_idem`
	sqlRollbackTo = `ROLLBACK TO SAVEPOINT pgonce_idem`

	// sqlSeen inserts a record without a result if the key's lock is free and there is none yet.
	// Lock: one advisory, exclusive, until the transaction ends. It never waits.
	sqlSeen = `
INSERT INTO "pgonce"."idem_record"
       (attempt, created_at, replay_until, remember_until, state, fp_ver, scope, digest, op, id)
SELECT $2::bigint, now(),
       CASE WHEN $3::float8 < 0 THEN 'infinity' ELSE statement_timestamp() + make_interval(secs => $3::float8) END,
       CASE WHEN $4::float8 < 0 THEN 'infinity' ELSE statement_timestamp() + make_interval(secs => $4::float8) END,
       $5::smallint, $6::smallint, $7::text, $8::bytea, $9::text, $10::text
WHERE pg_try_advisory_xact_lock($1::bigint)
ON CONFLICT (scope, digest) DO NOTHING`

	// sqlFate is what became of a transaction. Empty when it is too old to tell.
	sqlFate = `SELECT coalesce(pg_xact_status($1::text::xid8), '')`

	// sqlSameTx tells whether this is still the transaction that began at $1. Locks: none.
	sqlSameTx = `SELECT now() = $1::timestamptz`
)
