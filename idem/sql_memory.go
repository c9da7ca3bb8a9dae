package idem

// What is remembered, for how long, and what people ask about it. Portable as those of sql.go are.
const (
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
SELECT statement_timestamp(), attempt, created_at, replay_until, remember_until, size, state, scope, digest, op, nullif(id, ''),
       session_user, current_setting('application_name'), $3::text
FROM pgonce_gone`
)
