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
SELECT pg_try_advisory_xact_lock($1::bigint), now(), pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on'`

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

	// sqlWorkerNew says that this process is alive for $2 seconds. Index: the primary key.
	sqlWorkerNew = `
INSERT INTO "pgonce"."idem_worker" (id, alive_until)
VALUES ($1::bigint, statement_timestamp() + make_interval(secs => $2::float8))`

	// sqlWorkerBeat says so again, unless that comes too late. Lock: the worker's row. If it has to
	// wait for sqlWorkerBury, it finds the row buried and changes nothing. The time is that of before the wait,
	// so it never promises more than the process counts on. By primary key.
	sqlWorkerBeat = `
UPDATE "pgonce"."idem_worker" SET alive_until = statement_timestamp() + make_interval(secs => $2::float8)
WHERE id = $1::bigint AND alive_until > statement_timestamp()`

	// sqlWorkerBury makes sure that a worker whose time is over stays dead: a heartbeat under way either comes
	// first, and then this changes nothing, or finds that it is too late. Lock: the worker's row. By primary key.
	sqlWorkerBury = `
UPDATE "pgonce"."idem_worker" SET alive_until = '-infinity'
WHERE id = $1::bigint AND alive_until <= statement_timestamp() AND alive_until > '-infinity'`

	// sqlWorkersForget deletes the rows of processes that are long gone. A process that slept for so
	// long finds no row, and so that it has lost everything. Scans the table, which has a row for each start of a process.
	sqlWorkersForget = `
DELETE FROM "pgonce"."idem_worker" w
WHERE w.alive_until < statement_timestamp() - interval '1 day'
  AND NOT EXISTS (SELECT FROM "pgonce"."idem_lease" l WHERE l.worker = w.id)`

	// sqlClaim takes a key that nobody executes. Locks: one advisory, exclusive, until the transaction ends, which
	// keeps Do away; it never waits for it. It waits for a transaction that inserts or deletes the
	// same lease, as any INSERT does; a record that this one leaves is not in its snapshot, so sqlLookup has to come after it
	// as a statement of its own. A finished key takes no xid and writes nothing.
	sqlClaim = `
INSERT INTO "pgonce"."idem_lease"
       (nonce, worker, created_at, not_before, attempts, state, fp_ver, scope, digest, op, id, fp, request)
SELECT $2::bigint, $3::bigint, statement_timestamp(), statement_timestamp() + make_interval(secs => $4::float8), 0, 1,
       $5::smallint, $6::text, $7::bytea, $8::text, $9::text, $10::bytea, $11::bytea
WHERE NOT EXISTS (SELECT FROM "pgonce"."idem_record" r WHERE r.scope = $6::text AND r.digest = $7::bytea)
  AND pg_try_advisory_xact_lock($1::bigint)
ON CONFLICT (scope, digest) DO NOTHING
RETURNING created_at`

	// sqlLease reads who owns a key. Locks: ACCESS SHARE. By both primary keys.
	sqlLease = `
SELECT l.nonce, l.worker, l.state, l.attempts, l.fp_ver, l.fp, l.created_at, l.request,
       EXISTS (SELECT FROM "pgonce"."idem_worker" w WHERE w.id = l.worker AND w.alive_until > statement_timestamp())
FROM "pgonce"."idem_lease" l
WHERE l.scope = $1::text AND l.digest = $2::bytea`

	// sqlTakeLock locks a lease that somebody has left, and gives up at once when somebody else is at it. Lock: the
	// lease's row, until the transaction ends. By primary key.
	sqlTakeLock = `
SELECT l.nonce FROM "pgonce"."idem_lease" l
WHERE l.scope = $1::text AND l.digest = $2::bytea AND l.nonce = $3::bigint
FOR UPDATE SKIP LOCKED`

	// sqlTake makes a lease that somebody has left that of the attempt $4. It comes after sqlTakeLock, as a statement
	// of its own, so that it judges by a snapshot of after that lock. By primary key.
	sqlTake = `
UPDATE "pgonce"."idem_lease" l
SET nonce = $4::bigint, worker = $5::bigint, attempts = attempts + $6::int,
    not_before = statement_timestamp() + make_interval(secs => $7::float8)
WHERE l.scope = $1::text AND l.digest = $2::bytea AND l.nonce = $3::bigint AND l.state = 1
  AND NOT EXISTS (SELECT FROM "pgonce"."idem_worker" w WHERE w.id = l.worker AND w.alive_until > statement_timestamp())`

	// sqlDie gives a lease up that somebody has left. As sqlTake.
	sqlDie = `
UPDATE "pgonce"."idem_lease" l SET state = 2, worker = 0
WHERE l.scope = $1::text AND l.digest = $2::bytea AND l.nonce = $3::bigint AND l.state = 1
  AND NOT EXISTS (SELECT FROM "pgonce"."idem_worker" w WHERE w.id = l.worker AND w.alive_until > statement_timestamp())`

	// sqlSteps reads what is stored of a key's steps, by the first two columns of the primary key.
	sqlSteps = `
SELECT ord, name, state, round, result FROM "pgonce"."idem_step"
WHERE scope = $1::text AND digest = $2::bytea
ORDER BY ord`

	// sqlStore stores a step, or its mark, for the attempt that owns the lease, and for nobody else. Lock: the lease's
	// row; behind a take-over it waits, and finds another nonce. Again is the same as once. By primary keys.
	sqlStore = `
WITH pgonce_mine AS (
    SELECT l.nonce FROM "pgonce"."idem_lease" l
    WHERE l.scope = $1::text AND l.digest = $2::bytea AND l.nonce = $3::bigint
    FOR NO KEY UPDATE)
INSERT INTO "pgonce"."idem_step" (at, ord, round, state, scope, digest, name, result)
SELECT statement_timestamp(), $4::int, $7::int, $6::smallint, $1::text, $2::bytea, $5::text, $8::bytea FROM pgonce_mine
ON CONFLICT (scope, digest, ord) DO UPDATE SET at = EXCLUDED.at, round = EXCLUDED.round, state = EXCLUDED.state, result = EXCLUDED.result`

	// sqlOwn locks the lease of the attempt $3, if it is its own still, until the transaction ends. Behind a
	// take-over it waits, and finds another nonce. By primary key.
	sqlOwn = `
SELECT l.nonce FROM "pgonce"."idem_lease" l
WHERE l.scope = $1::text AND l.digest = $2::bytea AND l.nonce = $3::bigint
FOR NO KEY UPDATE`

	// sqlStoreTx stores a step in the transaction that has begun with sqlOwn. In any other, at becomes NULL, which
	// the column refuses.
	sqlStoreTx = `
INSERT INTO "pgonce"."idem_step" (at, ord, round, state, scope, digest, name, result)
VALUES (CASE WHEN now() = $6::timestamptz THEN statement_timestamp() END, $3::int, $5::int, 2, $1::text, $2::bytea, $4::text, $7::bytea)
ON CONFLICT (scope, digest, ord) DO UPDATE SET at = EXCLUDED.at, round = EXCLUDED.round, state = EXCLUDED.state, result = EXCLUDED.result`

	// sqlStep reads the state of one step. By primary key.
	sqlStep = `SELECT state FROM "pgonce"."idem_step" WHERE scope = $1::text AND digest = $2::bytea AND ord = $3::int`

	// sqlFinish puts the record in the place of the lease and its steps, for the attempt that owns the lease.
	// Locks: the lease's row; behind a take-over it waits, and finds another nonce. The record's primary key is the arbiter.
	sqlFinish = `
WITH pgonce_gone AS (
    DELETE FROM "pgonce"."idem_lease" l
    WHERE l.scope = $1::text AND l.digest = $2::bytea AND l.nonce = $3::bigint
    RETURNING l.created_at, l.fp_ver, l.scope, l.digest, l.op, l.id, l.fp), pgonce_steps AS (
    DELETE FROM "pgonce"."idem_step" s
    WHERE s.scope = $1::text AND s.digest = $2::bytea AND EXISTS (SELECT FROM pgonce_gone))
INSERT INTO "pgonce"."idem_record"
       (attempt, created_at, replay_until, remember_until, state, fp_ver, scope, digest, op, id, fp, result)
SELECT $3::bigint, created_at,
       CASE WHEN $4::float8 < 0 THEN 'infinity' ELSE statement_timestamp() + make_interval(secs => $4::float8) END,
       CASE WHEN $5::float8 < 0 THEN 'infinity' ELSE statement_timestamp() + make_interval(secs => $5::float8) END,
       $6::smallint, fp_ver, scope, digest, op, id, fp, $7::bytea
FROM pgonce_gone`

	// sqlLeave leaves a lease to whoever wants it, and to the completer after $4 seconds. By primary key.
	sqlLeave = `
UPDATE "pgonce"."idem_lease" l
SET worker = 0, not_before = statement_timestamp() + make_interval(secs => $4::float8), last_error = $5::text
WHERE l.scope = $1::text AND l.digest = $2::bytea AND l.nonce = $3::bigint`

	// sqlDrop deletes the lease of an attempt that has called nobody, if none before it has. By primary keys.
	sqlDrop = `
DELETE FROM "pgonce"."idem_lease" l
WHERE l.scope = $1::text AND l.digest = $2::bytea AND l.nonce = $3::bigint
  AND NOT EXISTS (SELECT FROM "pgonce"."idem_step" s WHERE s.scope = $1::text AND s.digest = $2::bytea)`

	// sqlDropStale deletes a lease and steps whose key has a record: remains of a race that both had lost. By primary keys.
	sqlDropStale = `
WITH pgonce_gone AS (
    DELETE FROM "pgonce"."idem_lease" l
    WHERE l.scope = $1::text AND l.digest = $2::bytea AND l.nonce = $3::bigint
      AND EXISTS (SELECT FROM "pgonce"."idem_record" r WHERE r.scope = $1::text AND r.digest = $2::bytea)
    RETURNING l.nonce)
DELETE FROM "pgonce"."idem_step" s
WHERE s.scope = $1::text AND s.digest = $2::bytea AND EXISTS (SELECT FROM pgonce_gone)`

	// sqlAbandoned lists keys of an operation that nobody executes and whose time has come. Locks: ACCESS SHARE. It scans
	// the table, which holds only what is under way.
	sqlAbandoned = `
SELECT l.scope, l.id
FROM "pgonce"."idem_lease" l
WHERE l.op = $1::text AND l.state = 1 AND l.id IS NOT NULL AND l.not_before <= statement_timestamp()
  AND NOT EXISTS (SELECT FROM "pgonce"."idem_worker" w WHERE w.id = l.worker AND w.alive_until > statement_timestamp())
ORDER BY l.not_before
LIMIT $2::int`

	// sqlStuck lists keys that need a person: dead ones, and those with a call of unknown outcome. It scans as
	// sqlAbandoned does.
	sqlStuck = `
SELECT l.scope, l.op, coalesce(l.id, ''), l.state = 2, l.attempts, l.created_at, coalesce(l.last_error, ''), coalesce(s.name, ''), coalesce(s.round, 0)
FROM "pgonce"."idem_lease" l
LEFT JOIN "pgonce"."idem_step" s ON s.scope = l.scope AND s.digest = l.digest AND s.state = 1
WHERE (l.state = 2 OR s.state = 1)
  AND NOT EXISTS (SELECT FROM "pgonce"."idem_worker" w WHERE w.id = l.worker AND w.alive_until > statement_timestamp())
ORDER BY l.created_at
LIMIT $1::int`

	// sqlResolveLock locks the lease that a person decides about. It waits for a take-over or a step under way. Lock: the lease's
	// row, until the transaction ends. By primary key.
	sqlResolveLock = `
SELECT l.nonce FROM "pgonce"."idem_lease" l
WHERE l.scope = $1::text AND l.digest = $2::bytea
FOR UPDATE`

	// sqlRevive gives a key to the completer again, under a nonce that nobody has, so that whoever still believes to own
	// it does not. Lock and index as sqlResolveLock.
	sqlRevive = `
UPDATE "pgonce"."idem_lease" l SET nonce = $4::bigint, worker = 0, state = 1, attempts = 0, not_before = statement_timestamp()
WHERE l.scope = $1::text AND l.digest = $2::bytea AND l.nonce = $3::bigint`

	// sqlResolveStep decides a step whose call may have happened. By primary key; the lease is locked.
	sqlResolveStep = `
UPDATE "pgonce"."idem_step" s
SET state = $4::smallint, round = round + $5::int, result = $6::bytea, at = statement_timestamp()
WHERE s.scope = $1::text AND s.digest = $2::bytea AND s.name = $3::text AND s.state = 1
RETURNING s.round`

	// sqlResolution puts a person's decision on record.
	sqlResolution = `
INSERT INTO "pgonce"."idem_resolution" (round, outcome, scope, digest, op, id, step, actor, reason, result)
VALUES ($1::int, $2::smallint, $3::text, $4::bytea, $5::text, $6::text, $7::text, $8::text, $9::text, $10::bytea)`

	// sqlPurgeState is whose turn the purge is, and in how many seconds there is something to do.
	// Locks: ACCESS SHARE.
	sqlPurgeState = `
SELECT worker, (extract(epoch FROM (next_at - statement_timestamp())))::float8, pass, block
FROM "pgonce"."idem_purge" WHERE id = 1`

	// sqlPurgeTake takes the purge's turn, for one batch, and says how many pages the table has. No row when
	// somebody else has it. Lock: the row of idem_purge, until the transaction ends; the statements after it wait for $1 ms
	// for rows that others hold. A purger that vanishes lets go after $2 ms, or $3 ms in a statement.
	sqlPurgeTake = `
SELECT block, pass, worker, (extract(epoch FROM (next_at - statement_timestamp())))::float8,
       pg_relation_size('"pgonce"."idem_record"') / current_setting('block_size')::bigint,
       set_config('lock_timeout', $1::text, true), set_config('statement_timeout', '0', true),
       set_config('idle_in_transaction_session_timeout', $2::text, true),
       set_config('client_connection_check_interval', $3::text, true)
FROM "pgonce"."idem_purge" WHERE id = 1
FOR UPDATE SKIP LOCKED`

	// sqlPurgeDelete forgets the keys in a range of pages whose time is over, by the server's clock. Locks: those rows.
	// By a TID range scan, so no index has to know the time. $1 and $2 are row addresses.
	sqlPurgeDelete = `
DELETE FROM "pgonce"."idem_record"
WHERE ctid >= $1::text::tid AND ctid < $2::text::tid
  AND remember_until <= statement_timestamp() AND replay_until <= statement_timestamp() AND state <> 3`

	// sqlPurgeClear drops results in a range of pages. Of each page it takes as many rows as their new versions
	// find room for in the fifth that fillfactor leaves ($3 bytes), so that all of them are HOT updates: no index is
	// written to, and the old versions go without a VACUUM. The rest is for the next transaction. Locks: those rows. The condition
	// stands twice, since a row can change between the subquery and its lock.
	sqlPurgeClear = `
UPDATE "pgonce"."idem_record" SET result = NULL
WHERE ctid = ANY (ARRAY(
        SELECT pgonce_due.place FROM (
            SELECT r.ctid AS place, row_number() OVER pgonce_page AS nth,
                   sum(128 + octet_length(r.scope) + octet_length(r.op) + coalesce(octet_length(r.id), 0)) OVER pgonce_page AS room
            FROM "pgonce"."idem_record" r
            WHERE r.ctid >= $1::text::tid AND r.ctid < $2::text::tid
              AND r.replay_until <= statement_timestamp() AND r.result IS NOT NULL AND r.state <> 3
            WINDOW pgonce_page AS (PARTITION BY split_part(r.ctid::text, ',', 1) ORDER BY r.ctid)) AS pgonce_due
        WHERE pgonce_due.nth = 1 OR pgonce_due.room <= $3::bigint))
  AND replay_until <= statement_timestamp() AND result IS NOT NULL AND state <> 3`

	// sqlPurgeLook counts the rows in a range of pages, and those that sqlPurgeClear has left for later. Locks: ACCESS SHARE.
	sqlPurgeLook = `
SELECT count(*), count(*) FILTER (WHERE replay_until <= statement_timestamp() AND result IS NOT NULL AND state <> 3)
FROM "pgonce"."idem_record"
WHERE ctid >= $1::text::tid AND ctid < $2::text::tid`

	// sqlPurgeAdvance says how far the purge is: at page $1 after $2 more passes, and that $3 has the turn, in $4 seconds.
	// Lock: the row of idem_purge, which sqlPurgeTake has locked.
	sqlPurgeAdvance = `
UPDATE "pgonce"."idem_purge"
SET block = $1::bigint, pass = pass + $2::bigint, worker = $3::bigint,
    next_at = statement_timestamp() + make_interval(secs => $4::float8),
    began_at = CASE WHEN $5::bool THEN statement_timestamp() ELSE began_at END,
    finished_at = CASE WHEN $2::bigint > 0 THEN statement_timestamp() ELSE finished_at END,
    cleared = cleared + $6::bigint, deleted = deleted + $7::bigint
WHERE id = 1`

	// sqlPurgeLeave gives the turn up, for whoever comes first. Lock: the row of idem_purge.
	sqlPurgeLeave = `UPDATE "pgonce"."idem_purge" SET worker = 0 WHERE id = 1 AND worker = $1::bigint`

	// sqlInspect is a record for people, with whoever holds the key's lock. A time without end is NULL. By the primary key's
	// index; pg_locks is read without disturbing anybody. Locks: ACCESS SHARE.
	sqlInspect = `
SELECT r.state, r.attempt, r.fp_ver, r.digest, r.op, r.id, r.created_at,
       CASE WHEN isfinite(r.replay_until) THEN r.replay_until END, CASE WHEN isfinite(r.remember_until) THEN r.remember_until END,
       octet_length(r.result), r.replay_until <= statement_timestamp(), r.remember_until <= statement_timestamp()
FROM "pgonce"."idem_record" r
WHERE r.scope = $1::text AND r.digest = $2::bytea`

	// sqlLockHeld says whether somebody holds the key's lock. It takes none: a try would make a caller of Do meet it.
	sqlLockHeld = `
SELECT EXISTS (SELECT FROM pg_catalog.pg_locks l
               WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.mode = 'ExclusiveLock'
                 AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())
                 AND l.classid::bigint = ($1::bigint >> 32) & 4294967295 AND l.objid::bigint = $1::bigint & 4294967295)`

	// sqlList is a page of a scope's records after a digest. By the primary key's index, in its order. Locks: ACCESS SHARE.
	sqlList = `
SELECT r.state, r.attempt, r.fp_ver, r.digest, r.op, r.id, r.created_at,
       CASE WHEN isfinite(r.replay_until) THEN r.replay_until END, CASE WHEN isfinite(r.remember_until) THEN r.remember_until END,
       octet_length(r.result), r.replay_until <= statement_timestamp(), r.remember_until <= statement_timestamp()
FROM "pgonce"."idem_record" r
WHERE r.scope = $1::text AND r.digest > $2::bytea
  AND ($3::text = '' OR r.op = $3::text) AND ($4::smallint = 0 OR r.state = $4::smallint)
ORDER BY r.digest
LIMIT $5::bigint`

	// sqlForget deletes a record and writes down that it did, in one statement: none without the other. By the primary
	// key's index. Lock: the row; it waits for a purge that is at it, as any DELETE does.
	sqlForget = `
WITH pgonce_gone AS (
    DELETE FROM "pgonce"."idem_record" WHERE scope = $1::text AND digest = $2::bytea
    RETURNING attempt, created_at, replay_until, remember_until, octet_length(result) AS size, state, scope, digest, op, id)
INSERT INTO "pgonce"."idem_forgotten"
       (forgotten_at, attempt, created_at, replay_until, remember_until, result_bytes, state, scope, digest, op, id, by, application, reason)
SELECT statement_timestamp(), attempt, created_at, replay_until, remember_until, size, state, scope, digest, op, id,
       session_user, current_setting('application_name'), $3::text
FROM pgonce_gone`
)
