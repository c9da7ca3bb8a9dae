package idem

// Keys that are executed in steps. Portable as those of sql.go are.
const (
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

	// sqlLease reads who owns a key, since when it is under way and for how long its owner is alive (0: it is not), and
	// whether the completer may take it. Locks: ACCESS SHARE. By both primary keys.
	sqlLease = `
SELECT l.nonce, l.worker, l.state, l.attempts, l.fp_ver, l.fp, l.created_at, l.request,
       extract(epoch FROM statement_timestamp() - l.created_at)::float8,
       coalesce((SELECT extract(epoch FROM w.alive_until - statement_timestamp())::float8
                 FROM "pgonce"."idem_worker" w WHERE w.id = l.worker AND w.alive_until > statement_timestamp()), 0),
       l.not_before <= statement_timestamp()
FROM "pgonce"."idem_lease" l
WHERE l.scope = $1::text AND l.digest = $2::bytea`

	// sqlTakeLock locks a lease that somebody has left, and gives up at once when somebody else is at it. Lock: the
	// lease's row, until the transaction ends. By primary key.
	sqlTakeLock = `
SELECT l.nonce FROM "pgonce"."idem_lease" l
WHERE l.scope = $1::text AND l.digest = $2::bytea AND l.nonce = $3::bigint
FOR UPDATE SKIP LOCKED`

	// sqlTake makes a lease that somebody has left that of the attempt $4. It comes after sqlTakeLock, as a statement
	// of its own, so that it judges by a snapshot of after that lock. $7 is for how long the completer leaves it alone, or NULL if that
	// stays as it is. By primary key.
	sqlTake = `
UPDATE "pgonce"."idem_lease" l
SET nonce = $4::bigint, worker = $5::bigint, attempts = attempts + $6::int,
    not_before = coalesce(statement_timestamp() + make_interval(secs => $7::float8), l.not_before)
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
	// What is stored is of one step and goes forward only: over another step's row, what is done, or a later round, name becomes
	// NULL, which the column refuses. So neither a function that goes on after a lost answer nor a lost statement that comes late takes anything back.
	sqlStore = `
WITH pgonce_mine AS (
    SELECT l.nonce FROM "pgonce"."idem_lease" l
    WHERE l.scope = $1::text AND l.digest = $2::bytea AND l.nonce = $3::bigint
    FOR NO KEY UPDATE)
INSERT INTO "pgonce"."idem_step" AS s (at, ord, round, state, scope, digest, name, result)
SELECT statement_timestamp(), $4::int, $7::int, $6::smallint, $1::text, $2::bytea, $5::text, $8::bytea FROM pgonce_mine
ON CONFLICT (scope, digest, ord) DO UPDATE SET at = EXCLUDED.at, round = EXCLUDED.round, state = EXCLUDED.state, result = EXCLUDED.result,
    name = CASE WHEN s.name = EXCLUDED.name AND s.round <= EXCLUDED.round AND (s.state <> 2 OR EXCLUDED.state = 2) THEN EXCLUDED.name END`

	// sqlOwn locks the lease of the attempt $3, if it is its own still, until the transaction ends. Behind a
	// take-over it waits, and finds another nonce. By primary key.
	sqlOwn = `
SELECT l.nonce FROM "pgonce"."idem_lease" l
WHERE l.scope = $1::text AND l.digest = $2::bytea AND l.nonce = $3::bigint
FOR NO KEY UPDATE`

	// sqlStoreTx stores a step in the transaction that has begun with sqlOwn. In any other, at becomes NULL, which
	// the column refuses. Over any row but that of the same step, cleared by a person, name does. So what is done is not done again.
	sqlStoreTx = `
INSERT INTO "pgonce"."idem_step" AS s (at, ord, round, state, scope, digest, name, result)
VALUES (CASE WHEN now() = $6::timestamptz THEN statement_timestamp() END, $3::int, $5::int, 2, $1::text, $2::bytea, $4::text, $7::bytea)
ON CONFLICT (scope, digest, ord) DO UPDATE SET at = EXCLUDED.at, round = EXCLUDED.round, state = EXCLUDED.state, result = EXCLUDED.result,
    name = CASE WHEN s.name = EXCLUDED.name AND s.round <= EXCLUDED.round AND s.state = 3 THEN EXCLUDED.name END`

	// sqlStep reads the state of one step, if it is the one of that name. By primary key.
	sqlStep = `SELECT state FROM "pgonce"."idem_step" WHERE scope = $1::text AND digest = $2::bytea AND ord = $3::int AND name = $4::text`

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
       $6::smallint, fp_ver, scope, digest, op, coalesce(id, ''), fp, $7::bytea
FROM pgonce_gone`

	// sqlLeave leaves a lease to whoever wants it, and to the completer after $4 seconds, or, if that is NULL, when it would
	// have come. By primary key.
	sqlLeave = `
UPDATE "pgonce"."idem_lease" l
SET worker = 0, not_before = coalesce(statement_timestamp() + make_interval(secs => $4::float8), l.not_before), last_error = $5::text
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

	// sqlResolveRecord gives a key that is blocked the answer that a person has decided on, and puts the decision on record. By the primary
	// key. Lock: the record's row. No row is returned, and none written, for a key that is not blocked.
	sqlResolveRecord = `
WITH pgonce_known AS (
    UPDATE "pgonce"."idem_record"
    SET state = $3::smallint, result = $4::bytea,
        replay_until = CASE WHEN $5::float8 < 0 THEN 'infinity' ELSE statement_timestamp() + make_interval(secs => $5::float8) END,
        remember_until = CASE WHEN $6::float8 < 0 THEN 'infinity' ELSE statement_timestamp() + make_interval(secs => $6::float8) END
    WHERE scope = $1::text AND digest = $2::bytea AND state = 3
    RETURNING scope, digest, op, id)
INSERT INTO "pgonce"."idem_resolution" (round, outcome, scope, digest, op, id, step, actor, reason, result)
SELECT 0, $7::smallint, scope, digest, op, nullif(id, ''), '', $8::text, $9::text, $10::bytea
FROM pgonce_known`

	// sqlResolution puts a person's decision on record.
	sqlResolution = `
INSERT INTO "pgonce"."idem_resolution" (round, outcome, scope, digest, op, id, step, actor, reason, result)
VALUES ($1::int, $2::smallint, $3::text, $4::bytea, $5::text, $6::text, $7::text, $8::text, $9::text, $10::bytea)`
)
