package dblock

// Leases: rows, one for each key, by its primary key. They run on whatever connection of the caller's pool is free,
// in transactions of their own, so nothing here outlives a transaction. What a crash of the server must not forget is
// flushed, whatever the role's synchronous_commit. All judge time by the server's clock.
const (
	// sqlLeaseFacts is what NewLeases must know: whether this can be written to, and by this role. Locks: none.
	sqlLeaseFacts = `
SELECT current_setting('server_version_num')::bigint, pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean,
       has_table_privilege('"pgonce"."lease"', 'INSERT') AND has_table_privilege('"pgonce"."lease"', 'UPDATE')
       AND has_table_privilege('"pgonce"."lease"', 'DELETE') AND has_table_privilege('"pgonce"."epoch"', 'INSERT')
       AND has_table_privilege('"pgonce"."epoch"', 'UPDATE') AND has_sequence_privilege('"pgonce"."fence"', 'USAGE')`

	// sqlLease takes the key $1, $2 if it has no row: the number of its token, or 0; the epoch, or 0 where it has to
	// be raised first; and where there is a row, for how many microseconds more it holds (at most 0: it may
	// be taken over; the TTL where it is not seen yet). $3 is the key's lock number, which keeps LockTx out until the row can be seen.
	//
	// One who finds a row has no xid and writes nothing. The number is drawn in RETURNING, when the row is ours:
	// before that there may have been a wait for somebody else's insert, and numbers would go backwards. The row is
	// committed and flushed after the number was drawn, and with it whatever the sequence has logged, so no crash
	// forgets the number. The epoch is compared with the server as it is in this very statement, which cannot
	// outlast a restart or a promotion; whoever raised the row has done so for another server than the one that this
	// statement's snapshot saw there, so then the comparison fails.
	//
	// Locks: one advisory, and the row, within the statement. It waits for an insert of the same row, at most
	// a second. Index: the primary keys.
	sqlLease = `
WITH pgonce_row AS MATERIALIZED (
    SELECT CASE WHEN expires_at > statement_timestamp() + ttl + interval '1 s' THEN 0
                ELSE (1000000 * date_part('epoch', expires_at - statement_timestamp()))::bigint END AS remains
    FROM "pgonce"."lease" WHERE space = $1::text AND id = $2::text),
pgonce_new AS (
    INSERT INTO "pgonce"."lease" (space, id, nonce, holder, ttl, acquired_at, expires_at)
    SELECT $1::text, $2::text, $4::bigint, $5::text, $6::bigint * interval '1 us',
           statement_timestamp(), statement_timestamp() + $6::bigint * interval '1 us'
    WHERE CASE WHEN EXISTS (SELECT FROM pgonce_row) THEN false
               WHEN set_config('lock_timeout', '1000', true) IS NULL THEN false
               WHEN set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true) IS NULL THEN false
               ELSE pg_try_advisory_xact_lock($3::bigint) END
    ON CONFLICT (space, id) DO NOTHING
    RETURNING nextval('"pgonce"."fence"') AS number)
SELECT coalesce(number, 0), coalesce((SELECT remains FROM pgonce_row), $6::bigint),
       CASE WHEN number IS NULL THEN 0 ELSE coalesce((
           SELECT base + timeline FROM "pgonce"."epoch"
           WHERE id = 1
             AND cluster = (SELECT system_identifier FROM pg_catalog.pg_control_system())
             AND database = (SELECT oid::bigint FROM pg_catalog.pg_database WHERE datname = current_database())
             AND sequence = '"pgonce"."fence"'::regclass::oid::bigint
             AND timeline = ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint), 0) END
FROM (SELECT) AS pgonce_one LEFT JOIN pgonce_new ON true`

	// sqlLeaseLimits bounds in ms for how long a row stays locked by somebody who is frozen while he takes it over. Locks: none.
	sqlLeaseLimits = `SELECT set_config('idle_in_transaction_session_timeout', $1::text, true)`

	// sqlLeaseLock locks the row of a key that seems to have expired. A fenced transaction of the holder has it FOR
	// KEY SHARE, and then, as when somebody else takes it over, there is no answer. Locks: the row, until the
	// transaction ends; it never waits. Index: the primary key.
	sqlLeaseLock = `
SELECT nonce FROM "pgonce"."lease"
WHERE space = $1::text AND id = $2::text AND (expires_at <= statement_timestamp() OR expires_at > statement_timestamp() + ttl)
FOR UPDATE SKIP LOCKED`

	// sqlLeaseExpire removes a row that is locked, if it has expired. It is sent when the lock has been answered, so its
	// snapshot and its clock are later than all that anybody did to the row. Whoever takes the key over inserts a row of
	// his own; to update this one would not do: it would change no key, so above READ COMMITTED a fence could be
	// had on the row's old version. Locks: none more. Index: the primary key.
	sqlLeaseExpire = `
DELETE FROM "pgonce"."lease" WHERE space = $1::text AND id = $2::text AND nonce = $3::bigint AND expires_at <= statement_timestamp()`

	// sqlLeaseRewind is for a row that is locked and claims to hold for longer than it can: the server's clock went
	// back. It gives the holder what he has at the most, since he may live, and by the next heartbeat this is what he has. Locks:
	// none more. Index: the primary key.
	sqlLeaseRewind = `
UPDATE "pgonce"."lease" SET expires_at = statement_timestamp() + ttl
WHERE space = $1::text AND id = $2::text AND nonce = $3::bigint AND expires_at > statement_timestamp() + ttl`

	// sqlLeaseRenew renews the leases $1, but for those that have expired: nothing brings these back. It answers with the
	// nonces of the renewed ones, and of those that somebody has locked, which are left out and not waited
	// for, so that one row does not hold the others up. A fence's lock does not conflict. Locks: the rows, FOR NO KEY
	// UPDATE. Index: the primary key.
	sqlLeaseRenew = `
WITH pgonce_set AS MATERIALIZED (
    SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true) AS done),
pgonce_want AS MATERIALIZED (
    SELECT space COLLATE "C" AS space, id COLLATE "C" AS id, nonce FROM json_to_recordset($1::text::json) AS want(space text, id text, nonce bigint)),
pgonce_mine AS MATERIALIZED (
    SELECT l.space, l.id, l.nonce FROM pgonce_want AS w JOIN "pgonce"."lease" AS l ON l.space = w.space AND l.id = w.id AND l.nonce = w.nonce
    WHERE l.expires_at > statement_timestamp() AND (SELECT done FROM pgonce_set) IS NOT NULL
    FOR NO KEY UPDATE OF l SKIP LOCKED),
pgonce_new AS (
    UPDATE "pgonce"."lease" AS l SET expires_at = statement_timestamp() + l.ttl
    FROM pgonce_mine AS m WHERE l.space = m.space AND l.id = m.id AND l.nonce = m.nonce
    RETURNING l.nonce)
SELECT (SELECT coalesce(json_agg(nonce), '[]')::text FROM pgonce_new),
       (SELECT coalesce(json_agg(l.nonce), '[]')::text FROM pgonce_want AS w
        JOIN "pgonce"."lease" AS l ON l.space = w.space AND l.id = w.id AND l.nonce = w.nonce
        WHERE l.expires_at > statement_timestamp() AND l.nonce NOT IN (SELECT nonce FROM pgonce_mine))`

	// sqlLeaseFree gives the leases $1 back: the nonces of the rows that are gone, and of those that somebody has locked,
	// which are marked. That is a fenced transaction, perhaps of the very caller who waits for this: a delete
	// would wait for it, an update that leaves the key as it is does not. Whoever takes over such a row waits for the fence. Locks: the
	// rows. It waits for somebody who takes a row over, at most a second. Index: the primary key.
	sqlLeaseFree = `
WITH pgonce_set AS MATERIALIZED (SELECT set_config('lock_timeout', '1000', true) AS done),
pgonce_want AS MATERIALIZED (
    SELECT space COLLATE "C" AS space, id COLLATE "C" AS id, nonce FROM json_to_recordset($1::text::json) AS want(space text, id text, nonce bigint)),
pgonce_mine AS MATERIALIZED (
    SELECT l.space, l.id, l.nonce FROM pgonce_want AS w JOIN "pgonce"."lease" AS l ON l.space = w.space AND l.id = w.id AND l.nonce = w.nonce
    WHERE (SELECT done FROM pgonce_set) IS NOT NULL
    FOR UPDATE OF l SKIP LOCKED),
pgonce_gone AS (
    DELETE FROM "pgonce"."lease" AS l USING pgonce_mine AS m WHERE l.space = m.space AND l.id = m.id AND l.nonce = m.nonce RETURNING l.nonce),
pgonce_mark AS (
    UPDATE "pgonce"."lease" AS l SET expires_at = 'epoch'
    FROM pgonce_want AS w WHERE l.space = w.space AND l.id = w.id AND l.nonce = w.nonce AND w.nonce NOT IN (SELECT nonce FROM pgonce_mine)
    RETURNING l.nonce)
SELECT (SELECT coalesce(json_agg(nonce), '[]')::text FROM pgonce_gone), (SELECT coalesce(json_agg(nonce), '[]')::text FROM pgonce_mark)`

	// sqlLeaseSweep removes what crashed processes have left, an hour after it has expired, at most a thousand rows.
	// Locks: the rows. Reads the whole table, which has one row for each lock that is held, and runs once an hour.
	sqlLeaseSweep = `
WITH pgonce_old AS MATERIALIZED (
    SELECT space, id, nonce FROM "pgonce"."lease" WHERE expires_at < statement_timestamp() - interval '1 hour'
    LIMIT 1000 FOR UPDATE SKIP LOCKED)
DELETE FROM "pgonce"."lease" AS l USING pgonce_old AS o WHERE l.space = o.space AND l.id = o.id AND l.nonce = o.nonce`

	// sqlLeaseFence keeps a lease's row from being taken over until the caller's transaction ends. No row: somebody
	// has taken it over, or it was given back. Locks: the row, FOR KEY SHARE, which heartbeats do not conflict with. It waits for somebody
	// who is just taking it over. Index: the primary key.
	sqlLeaseFence = `
SELECT nonce FROM "pgonce"."lease"
WHERE space = $1::text AND id = $2::text AND nonce = $3::bigint AND expires_at > 'epoch'
FOR KEY SHARE`

	// sqlLeaseTryTx takes the key's advisory lock in the caller's transaction, unless somebody has a lease; and says whether this is
	// a standby, and whether a later statement will see what was committed before it. Lock: one advisory,
	// exclusive, until the transaction ends; it never waits. Index: the primary key.
	sqlLeaseTryTx = `
SELECT pg_is_in_recovery(), current_setting('transaction_isolation') IN ('read committed', 'read uncommitted'),
       CASE WHEN pg_is_in_recovery() THEN false
            WHEN current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN false
            WHEN EXISTS (SELECT FROM "pgonce"."lease" WHERE space = $1::text AND id = $2::text AND expires_at > statement_timestamp()) THEN false
            ELSE pg_try_advisory_xact_lock($3::bigint) END`

	// sqlLeaseInspect is every row that keeps others out; durations in microseconds. Locks: none. Reads the whole table, which
	// has one row for each lock that is held.
	sqlLeaseInspect = `
SELECT space, id, nonce, holder, expires_at = 'epoch', (1000000 * date_part('epoch', statement_timestamp() - acquired_at))::bigint,
       greatest(0, (1000000 * date_part('epoch', expires_at - statement_timestamp()))::bigint)
FROM "pgonce"."lease" WHERE expires_at > statement_timestamp() OR expires_at = 'epoch'`

	// sqlLeaseLook is whether a key has a row, and as in sqlLease for how long. Locks: none. Index: the primary key.
	sqlLeaseLook = `
SELECT CASE WHEN expires_at > statement_timestamp() + ttl + interval '1 s' THEN 0
            ELSE (1000000 * date_part('epoch', expires_at - statement_timestamp()))::bigint END
FROM "pgonce"."lease" WHERE space = $1::text AND id = $2::text`
)
