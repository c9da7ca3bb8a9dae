package dblock

// Session advisory locks live on sessions of our own only (Driver.Session): these statements are the
// ones that may not run behind a pooler in transaction mode, and New refuses there. No statement reads
// or writes a table but sqlEpoch, sqlNewEpoch and sqlJoin, by the primary key of a table of one row.
//
// Keys travel as text arrays, which every client library can send. An answer counts the keys for which all is as one
// expects, and names the others, since the order in which unnest is evaluated is documented nowhere. The keys of a statement
// differ, so a count that fits says of each what became of it. MATERIALIZED keeps the planner from evaluating a lock function twice.
const (
	// sqlFacts is what New and every connect must know about the server: its room for locks is shared by all
	// clients. Locks: none.
	sqlFacts = `
SELECT pg_backend_pid(), current_setting('server_version_num')::bigint, pg_is_in_recovery(),
       current_setting('max_locks_per_transaction')::bigint
       * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint)`

	// sqlSettings makes a session ours. $1 is the TTL in ms: the server ends a session that has been silent
	// for so long, and with it its locks. $2 bounds what it waits for a lock, in ms. Nothing that the
	// role has set may cut a wait or a lock short. $3 is its name, for sqlInspect. Locks: none.
	sqlSettings = `
SELECT set_config('idle_session_timeout', $1::text, false), set_config('lock_timeout', $2::text, false),
       set_config('application_name', $3::text, false),
       set_config('statement_timeout', '0', false), set_config('idle_in_transaction_session_timeout', '0', false),
       set_config('default_transaction_read_only', 'off', false),
       set_config('default_transaction_isolation', 'read committed', false),
       set_config('synchronous_commit', 'on', false)`

	// sqlServerSettings is sqlSettings for what not every server has: $1 are names, $2 their values. What is missing, or not this role's to
	// set, is left alone. On a unix socket the tcp_ ones have no effect. tcp_user_timeout exists on Linux only; elsewhere the server would
	// log a line each time, and version() names what it was built for. Locks: none.
	sqlServerSettings = `
SELECT count(set_config(s.name, v.value, false))
FROM unnest($1::text::text[], $2::text::text[]) AS v(name, value) JOIN pg_catalog.pg_settings AS s ON s.name = v.name
WHERE s.context = 'user' AND (s.name <> 'tcp_user_timeout' OR version() LIKE '%linux%')`

	// sqlReady is the last of the settings. From here on the session writes nothing but numbers of the sequence, and
	// does not wait until they are on disk: see sqlJoin. And the server notices, while a statement waits, that its client is
	// gone, where its platform can: it refuses the setting elsewhere, and version() names what it was built for. Locks: none.
	sqlReady = `
SELECT set_config('synchronous_commit', 'off', false),
       CASE WHEN version() LIKE '%linux%' THEN set_config('client_connection_check_interval', '500', false) END`

	// sqlSlice bounds in ms what the session waits for a lock. Locks: none.
	sqlSlice = `SELECT set_config('lock_timeout', $1::text, false)`

	// sqlEpoch is the epoch of tokens, if its row was last used here. By the primary key.
	sqlEpoch = `
SELECT base + timeline FROM "pgonce"."epoch"
WHERE id = 1
  AND cluster = (SELECT system_identifier FROM pg_catalog.pg_control_system())
  AND database = (SELECT oid::bigint FROM pg_catalog.pg_database WHERE datname = current_database())
  AND sequence = '"pgonce"."fence"'::regclass::oid::bigint
  AND timeline = ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint`

	// sqlNewEpoch says that the row is used here. After a promotion the timeline has grown. In another
	// cluster, database or sequence, where the timeline may have begun anew and the sequence fallen back,
	// the old timeline goes into the base. So the sum grows in each case. By the primary key; waits for
	// another session that does the same.
	sqlNewEpoch = `
INSERT INTO "pgonce"."epoch" AS e (id, cluster, database, sequence, timeline, base)
SELECT 1, (SELECT system_identifier FROM pg_catalog.pg_control_system()),
       (SELECT oid::bigint FROM pg_catalog.pg_database WHERE datname = current_database()),
       '"pgonce"."fence"'::regclass::oid::bigint,
       ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint, 0
ON CONFLICT (id) DO UPDATE SET
    base = CASE WHEN e.cluster = EXCLUDED.cluster AND e.database = EXCLUDED.database AND e.sequence = EXCLUDED.sequence
                     AND e.timeline <= EXCLUDED.timeline
                THEN e.base ELSE e.base + e.timeline END,
    cluster = EXCLUDED.cluster, database = EXCLUDED.database, sequence = EXCLUDED.sequence, timeline = EXCLUDED.timeline`

	// sqlJoin makes the session one of those that are alive, which is what a shared lock on $2 says. The first of them
	// moves the sequence past all that a crash may have forgotten, and this is on disk before it has an answer.
	//
	// A crash ends every session. So whoever finds another one alive knows that there was none since that one, or one
	// that it found alive, has moved the sequence; and who finds nobody moves it. The lock $1 lets them come one
	// by one: one that dies half way leaves nobody alive behind. But one that is cancelled, or taken apart by the server, can be seen to
	// be alive for a moment before what it has moved is on disk. So the others write something, too, a row lock: its flush takes with it
	// whatever was logged before. What a crash can forget are the numbers
	// whose log records were not on disk, here those of less than a second; 67,108,864 would be
	// minutes of the most that a server can give out. setval does not meet another one here, and a nextval in between is
	// far below it, so the sequence never falls back. Locks: one advisory, for the statement; one advisory, shared, as long
	// as the session lives; for the first one ROW EXCLUSIVE on the sequence, for the others the row of "epoch", for the statement. By its
	// primary key.
	sqlJoin = `
WITH gate AS MATERIALIZED (SELECT pg_advisory_xact_lock($1::bigint)),
     first AS MATERIALIZED (SELECT pg_try_advisory_lock($2::bigint) AS first FROM gate),
     ahead AS MATERIALIZED (SELECT first, CASE WHEN first THEN setval('"pgonce"."fence"', nextval('"pgonce"."fence"') + 67108864) END AS number FROM first),
     flush AS MATERIALIZED (SELECT id FROM "pgonce"."epoch" WHERE id = 1 AND NOT (SELECT first FROM ahead) FOR NO KEY UPDATE)
SELECT pg_try_advisory_lock_shared($2::bigint), CASE WHEN first THEN pg_advisory_unlock($2::bigint) ELSE id IS NOT NULL END
FROM ahead LEFT JOIN flush ON true`

	// sqlAlive takes the session's liveness lock, which nobody else ever waits for. Lock: one
	// advisory, exclusive, as long as the session lives.
	sqlAlive = `SELECT pg_try_advisory_lock($1::bigint)`

	// sqlUnlock gives one key back: whether it was held. Locks: none.
	sqlUnlock = `SELECT pg_advisory_unlock($1::bigint)`

	// sqlBusyPID keeps a server process busy for a moment, and names it. Locks: none.
	sqlBusyPID = `SELECT pg_backend_pid() FROM pg_sleep(0.05)`

	// sqlTake tries to take keys: 1 taken, 0 held by somebody, -1 held up by a fenced transaction of a holder
	// before. $2 is the mask of the companion that all of those hold. The answer is how many were taken, and what became of each of the others. The token is drawn when all is
	// decided, so after the grant. Locks: one advisory for each key taken, until it is given back; it never waits.
	sqlTake = `
WITH got AS MATERIALIZED (
    SELECT k, CASE
        WHEN NOT pg_try_advisory_lock(k) THEN 0
        WHEN NOT pg_try_advisory_lock(k # $2::bigint) THEN CASE WHEN pg_advisory_unlock(k) THEN -1 END
        WHEN NOT pg_advisory_unlock(k # $2::bigint) THEN NULL
        ELSE 1 END AS got
    FROM unnest($1::text::bigint[]) AS want(k))
SELECT count(*) FILTER (WHERE got = 1), coalesce(string_agg(k || ':' || got, ',') FILTER (WHERE got < 1), ''),
       CASE WHEN bool_or(got = 1) THEN nextval('"pgonce"."fence"') ELSE 0 END
FROM got`

	// sqlTakeShared is sqlTake for shared locks. They exclude only exclusive ones, of which the companion's mask is $2.
	sqlTakeShared = `
WITH got AS MATERIALIZED (
    SELECT k, CASE
        WHEN NOT pg_try_advisory_lock_shared(k) THEN 0
        WHEN NOT pg_try_advisory_lock(k # $2::bigint) THEN CASE WHEN pg_advisory_unlock_shared(k) THEN -1 END
        WHEN NOT pg_advisory_unlock(k # $2::bigint) THEN NULL
        ELSE 1 END AS got
    FROM unnest($1::text::bigint[]) AS want(k))
SELECT count(*) FILTER (WHERE got = 1), coalesce(string_agg(k || ':' || got, ',') FILTER (WHERE got < 1), ''),
       CASE WHEN bool_or(got = 1) THEN nextval('"pgonce"."fence"') ELSE 0 END
FROM got`

	// sqlTakeOne is sqlTake for one key, exclusively: 0, -1, or the number of the token. $2 is its companion, whose
	// lock ends with the statement. Locks: one advisory, if it is taken; one more for the statement; it never waits.
	sqlTakeOne = `
SELECT CASE
    WHEN NOT pg_try_advisory_lock($1::bigint) THEN 0
    WHEN pg_try_advisory_xact_lock($2::bigint) THEN nextval('"pgonce"."fence"')
    WHEN pg_advisory_unlock($1::bigint) THEN -1 END`

	// sqlDrop gives keys back: how many, and 0 for each that was not held. Locks: none.
	sqlDrop = `
WITH gone AS MATERIALIZED (SELECT k, pg_advisory_unlock(k) AS gone FROM unnest($1::text::bigint[]) AS held(k))
SELECT count(*) FILTER (WHERE gone), coalesce(string_agg(k || ':0', ',') FILTER (WHERE NOT gone), '') FROM gone`

	// sqlDropShared is sqlDrop for shared locks. Locks: none.
	sqlDropShared = `
WITH gone AS MATERIALIZED (SELECT k, pg_advisory_unlock_shared(k) AS gone FROM unnest($1::text::bigint[]) AS held(k))
SELECT count(*) FILTER (WHERE gone), coalesce(string_agg(k || ':0', ',') FILTER (WHERE NOT gone), '') FROM gone`

	// sqlDropAll gives back all that the session holds. Locks: none.
	sqlDropAll = `SELECT pg_advisory_unlock_all()`

	// sqlPeek asks whether shared locks could be had besides those of other sessions: how many, and 0 for each where one is
	// queued for an exclusive lock. Lock: one advisory, shared, within the statement; it never waits.
	sqlPeek = `
WITH free AS MATERIALIZED (
    SELECT k, CASE WHEN NOT pg_try_advisory_lock_shared(k) THEN 0 WHEN pg_advisory_unlock_shared(k) THEN 1 END AS free
    FROM unnest($1::text::bigint[]) AS held(k))
SELECT count(*) FILTER (WHERE free = 1), coalesce(string_agg(k || ':0', ',') FILTER (WHERE free = 0), '') FROM free`

	// sqlQueue waits for one key, for as long as lock_timeout allows. Lock: one advisory, until it
	// is given back.
	sqlQueue       = `SELECT pg_advisory_lock($1::bigint)`
	sqlQueueShared = `SELECT pg_advisory_lock_shared($1::bigint)`

	// sqlHeld settles a wait that ended in an error: it may have been granted nevertheless. Locks: none.
	sqlHeld = `
SELECT count(*) FROM pg_catalog.pg_locks
WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted AND objsubid = 1
  AND (classid::bigint << 32) | objid::bigint = $1::bigint`

	// sqlSettle gives back whatever of the keys $1 this session holds. Locks: none.
	sqlSettle = `
WITH held AS MATERIALIZED (
    SELECT (classid::bigint << 32) | objid::bigint AS k, mode FROM pg_catalog.pg_locks
    WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted AND objsubid = 1)
SELECT count(CASE WHEN mode = 'ShareLock' THEN pg_advisory_unlock_shared(k) ELSE pg_advisory_unlock(k) END)
FROM held WHERE k = ANY ($1::text::bigint[])`

	// sqlOwn finds out, for a key that is held, whether a fenced transaction of a holder before runs, and draws the
	// token if none does. $1 is the companion. Lock: one advisory, within the statement; it never waits.
	sqlOwn = `
WITH own AS MATERIALIZED (
    SELECT CASE WHEN NOT pg_try_advisory_lock($1::bigint) THEN false WHEN pg_advisory_unlock($1::bigint) THEN true END AS free)
SELECT free, CASE WHEN free THEN nextval('"pgonce"."fence"') ELSE 0 END FROM own`

	// sqlInspect reads the advisory locks of this database that are named by one number, who has or wants them, and
	// what they say of themselves; durations in microseconds, -1 where the server does not say. It takes the locks of the
	// server's own lock table for a moment, once, and once more for each session that waits. Locks: none
	// beyond that. Tables: none; it reads shared memory.
	sqlInspect = `
SELECT coalesce(l.pid, 0)::bigint, (l.classid::bigint << 32) | l.objid::bigint, l.mode = 'ShareLock', l.granted,
       coalesce(a.application_name, ''),
       coalesce((1000000 * extract(epoch FROM clock_timestamp() - l.waitstart))::bigint, -1),
       coalesce(CASE a.state WHEN 'idle' THEN (1000000 * extract(epoch FROM clock_timestamp() - a.state_change))::bigint
                             WHEN 'active' THEN 0 END, -1),
       coalesce((1000000 * extract(epoch FROM clock_timestamp() - a.xact_start))::bigint, -1),
       CASE WHEN l.granted THEN '' ELSE array_to_string(pg_blocking_pids(l.pid), ',') END
FROM pg_catalog.pg_locks AS l LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())`

	// sqlFence keeps successors of a holder out until the caller's transaction ends. $1 is the companion for exclusive ones,
	// $2 that for shared ones, or $1 again, $3 the liveness lock of the session that holds the key. The companions come first: a
	// successor that finds his taken waits, and one that was there before has ended our session's hold, which the liveness lock
	// tells. Locks: two advisory, shared, until the transaction ends; it never waits.
	sqlFence = `
SELECT CASE WHEN NOT pg_try_advisory_xact_lock_shared($1::bigint) THEN 'busy'
            WHEN NOT pg_try_advisory_xact_lock_shared($2::bigint) THEN 'busy'
            WHEN pg_try_advisory_xact_lock_shared($3::bigint) THEN 'lost'
            ELSE 'ok' END`
)

// In the caller's transaction: nothing that these set or take outlives it. But for sqlLockRows they touch
// no table.
const (
	// sqlTryTx takes the key's lock if it is free, and says whether this is a standby, which has locks of its
	// own. CASE keeps the order: first the key, then its companion, by which transactions hold it
	// that are fenced for a tenure that is over. Locks: two advisory, exclusive, until the transaction ends. It
	// never waits.
	sqlTryTx = `
SELECT pg_is_in_recovery(),
       CASE WHEN pg_is_in_recovery() THEN false
            WHEN NOT pg_try_advisory_xact_lock($1::bigint) THEN false
            ELSE pg_try_advisory_xact_lock($2::bigint) END`

	// sqlTrySharedTx is sqlTryTx for a shared lock, without the companion. Lock: one advisory, shared,
	// until the transaction ends. It never waits.
	sqlTrySharedTx = `
SELECT pg_is_in_recovery(),
       CASE WHEN pg_is_in_recovery() THEN false ELSE pg_try_advisory_xact_lock_shared($1::bigint) END`

	// sqlProbeTx tells whether a companion is free. It comes in a savepoint that is rolled back, which lets go
	// of it. Lock: one advisory, exclusive, for one round trip. It never waits.
	sqlProbeTx = `SELECT pg_try_advisory_xact_lock($1::bigint)`

	// sqlWaitTx waits for a key and its companion, for as long as sqlLimit allows: in one statement, so that
	// statement_timeout bounds both. CASE keeps their order. Locks: two advisory, exclusive, until
	// the transaction ends.
	sqlWaitTx = `
SELECT CASE WHEN pg_advisory_xact_lock($1::bigint) IS NULL THEN false
            ELSE pg_advisory_xact_lock($2::bigint) IS NOT NULL END`

	// sqlAwaitTx waits for one number, as sqlWaitTx does, in a savepoint that is rolled back. Lock: one advisory,
	// exclusive, for one round trip.
	sqlAwaitTx = `SELECT pg_advisory_xact_lock($1::bigint)`

	// sqlWaitSharedTx is sqlWaitTx for a shared lock, without the companion. Lock: one advisory, shared, until the
	// transaction ends.
	sqlWaitSharedTx = `SELECT pg_advisory_xact_lock_shared($1::bigint)`

	sqlSavepoint  = `SAVEPOINT pgonce_lock`
	sqlRelease    = `RELEASE SAVEPOINT pgonce_lock`
	sqlRollbackTo = `ROLLBACK TO SAVEPOINT pgonce_lock`

	// sqlLimit bounds what follows: each wait for a lock, and each statement, by $1 ms. The caller's own
	// limits are kept for sqlUnlimit, which is told by the WHERE that they have been before they
	// are replaced. With $2 above 0 the wait is cut into slices that are $2 ms longer
	// than it takes the server to find a deadlock: shorter ones would hide every deadlock for ever.
	//
	// The server also looks at its socket while it waits, or else the waiter of a process that was killed would stay in the
	// queue, with all that its transaction holds. Only where it can: it refuses the setting elsewhere, and
	// version() names the platform it was built for.
	sqlLimit = `
SELECT set_config('lock_timeout', (CASE WHEN $2::bigint > 0 THEN
           least($1::bigint, $2::bigint + (1000 * extract(epoch FROM current_setting('deadlock_timeout')::interval))::bigint)
           ELSE $1::bigint END)::text, true),
       set_config('statement_timeout', ($1::bigint)::text, true),
       CASE WHEN c = '0' AND version() LIKE '%linux%' THEN set_config('client_connection_check_interval', '500', true) ELSE c END
FROM (SELECT set_config('pgonce.kept_lock_timeout', current_setting('lock_timeout'), true) AS l,
             set_config('pgonce.kept_statement_timeout', current_setting('statement_timeout'), true) AS s,
             set_config('pgonce.kept_check_interval', current_setting('client_connection_check_interval'), true) AS c OFFSET 0) AS pgonce_kept
WHERE l IS NOT NULL AND s IS NOT NULL AND c IS NOT NULL`

	// sqlUnlimit puts the caller's own limits back.
	sqlUnlimit = `
SELECT set_config('lock_timeout', current_setting('pgonce.kept_lock_timeout'), true),
       set_config('statement_timeout', current_setting('pgonce.kept_statement_timeout'), true),
       set_config('client_connection_check_interval', current_setting('pgonce.kept_check_interval'), true)`

	// sqlLockRows locks rows of a user's table in the order of their keys and returns these as a
	// JSON array. It is written for "public"."orders" with its column "id" (bigint), so that it can be
	// read, run and tested as it stands; [Table] puts in names, type and mode. Locks: the rows, and
	// ROW SHARE on the table. Index: the one of "id".
	//
	// ORDER BY is below the locking: rows are sorted first and locked one after the other. So
	// callers that lock by the same column meet in one order and cannot wait for each other in a circle.
	sqlLockRows = `
SELECT coalesce(json_agg(pgonce_key)::text, '[]')
FROM (SELECT "id"::text AS pgonce_key FROM "public"."orders" WHERE "id" = ANY ($1::text::bigint[]) ORDER BY "id" FOR NO KEY UPDATE) AS pgonce_locked`
)
