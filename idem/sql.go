package idem

// Every statement on the table names one key, by the primary key's index. So it touches one row,
// and one shard where the table is distributed by scope. The others touch no table of ours.
const (
	// sqlGuard takes the key's lock if it is free. Lock: one advisory, exclusive, until
	// the transaction ends. It never waits.
	//
	// For this transaction only, the server also learns to notice a client that is gone:
	// in a statement, by looking at the socket every $3 ms, and between statements after $2
	// seconds. A shorter limit of the role stands; 0 means that it has none.
	sqlGuard = `
SELECT pg_try_advisory_xact_lock($1::bigint), now(), pg_backend_pid(),
       pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on',
       (1000 * extract(epoch FROM set_config('idle_in_transaction_session_timeout', (1000 * least($2::float8,
           nullif(extract(epoch FROM current_setting('idle_in_transaction_session_timeout')::interval), 0)))::bigint::text, true)::interval))::bigint,
       set_config('client_connection_check_interval', $3::text, true)`

	// sqlProbeCheck asks whether the server's platform can look at its sockets; where it
	// cannot, this fails with 22023. It is a transaction of its own, so nothing is set.
	sqlProbeCheck = `SELECT set_config('client_connection_check_interval', $1::text, true)`

	// sqlLookup must be a statement of its own after sqlGuard. In one statement both would
	// see the snapshot of before the lock, and so could miss a record that was
	// committed while the lock was still held. Locks: ACCESS SHARE. No xid, no WAL.
	sqlLookup = `
SELECT attempt, state, fp_ver, fp, created_at, replay_until > statement_timestamp(),
       CASE WHEN replay_until > statement_timestamp() THEN result END
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

	// sqlInsertUnknown blocks a key whose handler ended its transaction, for ever. If
	// somebody else has decided the key meanwhile, theirs stands.
	sqlInsertUnknown = `
INSERT INTO "pgonce"."idem_record"
       (attempt, created_at, replay_until, remember_until, state, fp_ver, scope, digest, op, id, fp)
VALUES ($1::bigint, statement_timestamp(), 'infinity', 'infinity', 3, $2::smallint, $3::text, $4::bytea, $5::text, $6::text, $7::bytea)
ON CONFLICT (scope, digest) DO NOTHING`

	// sqlAwaitLock waits until the transaction that held the key's lock is over, for as long
	// as sqlLockTimeout allows. Lock: one advisory, shared, until the transaction ends.
	sqlAwaitLock = `SELECT pg_advisory_xact_lock_shared($1::bigint)`

	// sqlLockTimeout bounds, in ms, what the statements after it wait; and says whether this
	// is a standby, whose answers prove nothing.
	sqlLockTimeout = `SELECT set_config('lock_timeout', $1::text, true), pg_is_in_recovery()`

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

	// sqlFate is what became of a transaction. Empty when it is too old to tell.
	sqlFate = `SELECT coalesce(pg_xact_status($1::text::xid8), '')`

	// sqlSameTx tells whether this is still the transaction that began at $1. Locks: none.
	sqlSameTx = `SELECT now() = $1::timestamptz`
)
