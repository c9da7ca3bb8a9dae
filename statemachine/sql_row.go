package statemachine

// Statements beside those that fire events, written as those of sql.go are.
const (
	// sqlLock locks one row for a guard in Go, and reads it. Locks: the row, FOR NO KEY UPDATE. Index: the
	// one of "id".
	//
	// $1 id, $2 how long to wait for it in ms, or 0 to leave that to the transaction.
	sqlLock = `
WITH pgonce_wait AS MATERIALIZED (
  SELECT pg_catalog.current_setting('lock_timeout') AS pgonce_was,
         pg_catalog.set_config('lock_timeout', (LEAST($2::bigint, NULLIF((1000 * extract(epoch FROM pg_catalog.current_setting('lock_timeout')::interval))::bigint, 0)))::text, true) AS pgonce_w
   WHERE $2::bigint > 0
), pgonce_cur AS MATERIALIZED (
  SELECT "state"::text COLLATE "C" AS pgonce_f
    FROM "public"."orders"
   WHERE "id" = $1::bigint AND (SELECT pg_catalog.count(pgonce_w) FROM pgonce_wait) >= 0 /*scope*/
     FOR NO KEY UPDATE
)
SELECT (SELECT pg_catalog.count(*) FROM pgonce_cur), (SELECT pg_catalog.min(pgonce_f) FROM pgonce_cur),
       (SELECT pg_catalog.count(pg_catalog.set_config('lock_timeout', pgonce_was, true)) FROM pgonce_wait)`

	// sqlKnown asks whether a dedup id has been answered. Locks: none. Index: transition_dedup.
	//
	// $1 id, $2 machine, $3 dedup id.
	sqlKnown = `
SELECT pg_catalog.count(*)
  FROM "pgonce"."transition"
 WHERE entity = $1::bigint::text AND machine = $2::text AND dedup = $3::text`

	// sqlCreate inserts a row and the beginning of its history. Locks: none beyond those of an INSERT, which waits for another
	// one of the same id. Index: the one of "id".
	//
	// $1 id, $2 state, $3 how long to wait in ms, or 0.
	sqlCreate = `
WITH pgonce_wait AS MATERIALIZED (
  SELECT pg_catalog.current_setting('lock_timeout') AS pgonce_was,
         pg_catalog.set_config('lock_timeout', (LEAST($3::bigint, NULLIF((1000 * extract(epoch FROM pg_catalog.current_setting('lock_timeout')::interval))::bigint, 0)))::text, true) AS pgonce_w
   WHERE $3::bigint > 0
), pgonce_new AS (
  INSERT INTO "public"."orders" ("id", "state" /*columns*/)
  SELECT $1::bigint, $2::text::text /*as state*/ /*values*/ WHERE (SELECT pg_catalog.count(pgonce_w) FROM pgonce_wait) >= 0
  ON CONFLICT DO NOTHING
  RETURNING "state"::text COLLATE "C" AS pgonce_t, NULL::bigint /*version*/ AS pgonce_v, "id"::text AS pgonce_e
)
SELECT pgonce_t, pgonce_v, NULL::bigint, NULL::timestamptz,
       CASE WHEN (pgonce_t = $2::text) IS NOT TRUE AND pgonce_e IS NOT NULL THEN ('pgonce: diverted ' || pgonce_e)::int END,
       (SELECT pg_catalog.count(pg_catalog.set_config('lock_timeout', pgonce_was, true)) FROM pgonce_wait)
  FROM (SELECT 1) AS pgonce_one LEFT JOIN pgonce_new ON true`

	// sqlCreateHistory is sqlCreate with a history.
	//
	// $4 machine, $5 event, $6 actor, $7 meta.
	sqlCreateHistory = `
WITH pgonce_wait AS MATERIALIZED (
  SELECT pg_catalog.current_setting('lock_timeout') AS pgonce_was,
         pg_catalog.set_config('lock_timeout', (LEAST($3::bigint, NULLIF((1000 * extract(epoch FROM pg_catalog.current_setting('lock_timeout')::interval))::bigint, 0)))::text, true) AS pgonce_w
   WHERE $3::bigint > 0
), pgonce_new AS (
  INSERT INTO "public"."orders" ("id", "state" /*columns*/)
  SELECT $1::bigint, $2::text::text /*as state*/ /*values*/ WHERE (SELECT pg_catalog.count(pgonce_w) FROM pgonce_wait) >= 0
  ON CONFLICT DO NOTHING
  RETURNING "state"::text COLLATE "C" AS pgonce_t, NULL::bigint /*version*/ AS pgonce_v, "id"::text AS pgonce_e
), pgonce_h AS (
  INSERT INTO "pgonce"."transition" (version, machine, entity, event, from_state, to_state, actor, meta)
  SELECT pgonce_v, $4::text, pgonce_e, $5::text, '', pgonce_t, $6::text, $7::text::jsonb
    FROM pgonce_new
  RETURNING seq AS pgonce_hs, at AS pgonce_ha
)
SELECT pgonce_t, pgonce_v, pgonce_hs, pgonce_ha,
       CASE WHEN (pgonce_t = $2::text) IS NOT TRUE AND pgonce_e IS NOT NULL THEN ('pgonce: diverted ' || pgonce_e)::int END,
       (SELECT pg_catalog.count(pg_catalog.set_config('lock_timeout', pgonce_was, true)) FROM pgonce_wait)
  FROM (SELECT 1) AS pgonce_one LEFT JOIN pgonce_new ON true LEFT JOIN pgonce_h ON true`

	// sqlCreated reads a row that was there when it was to be created. Locks: none. Index: the one of "id".
	//
	// $1 id.
	sqlCreated = `
SELECT "state"::text COLLATE "C", NULL::bigint /*version*/, CASE WHEN false THEN 0 /*match*/ ELSE 0 END
  FROM "public"."orders"
 WHERE "id" = $1::bigint /*scope*/`

	// sqlCreation reads how a row was created. Locks: none. Index: the primary key.
	//
	// $1 id, $2 machine, $3 event.
	sqlCreation = `
SELECT to_state, seq, at, version
  FROM "pgonce"."transition"
 WHERE entity = $1::bigint::text AND machine = $2::text AND event = $3::text AND outcome = 0
 ORDER BY seq DESC
 LIMIT 1`

	// sqlUnadopted locks rows after the one of $2, in the order of their ids, $1 of them at most (an int8, since $1::bigint is written
	// for an id). Locks: the rows, FOR NO KEY UPDATE. Index: the one of "id".
	sqlUnadopted = `
SELECT "id"::text AS pgonce_e, "state"::text COLLATE "C" AS pgonce_f
  FROM "public"."orders"
 WHERE "id" > $2::text::bigint /*id*/ /*scope*/
 ORDER BY "id"
 LIMIT $1::int8
   FOR NO KEY UPDATE`

	// sqlUnadoptedFirst is sqlUnadopted from the beginning.
	sqlUnadoptedFirst = `
SELECT "id"::text AS pgonce_e, "state"::text COLLATE "C" AS pgonce_f
  FROM "public"."orders"
 WHERE true /*scope*/
 ORDER BY "id"
 LIMIT $1::int8
   FOR NO KEY UPDATE`

	// sqlAdopt begins the history of those rows that have none and are in a known state. The rows are
	// locked since the statement before, so nobody can begin it at the same time. Locks: none beyond those of an INSERT. Index: the
	// one of "id", and the primary key.
	//
	// $1 the ids as an array, $2 states, $3 machine, $4 event, $5 actor.
	sqlAdopt = `
INSERT INTO "pgonce"."transition" (version, machine, entity, event, from_state, to_state, actor)
SELECT NULL::bigint /*version*/, $3::text, "id"::text, $4::text, '', "state"::text, $5::text
  FROM "public"."orders" AS pgonce_r
 WHERE "id" = ANY ($1::text::bigint[]) AND "state"::text COLLATE "C" = ANY ($2::text::text[])
       AND NOT EXISTS (SELECT FROM "pgonce"."transition" AS pgonce_t WHERE pgonce_t.entity = pgonce_r."id"::text AND pgonce_t.machine = $3::text AND pgonce_t.outcome = 0)
 ORDER BY pgonce_r."id"`

	// sqlState reads a row's state. Locks: none. Index: the one of "id".
	sqlState = `
SELECT "state"::text COLLATE "C"
  FROM "public"."orders"
 WHERE "id" = $1::bigint /*scope*/`

	// sqlHistory reads a row's history. Locks: none. Index: the primary key.
	//
	// $1 id, $2 machine.
	sqlHistory = `
SELECT seq, at, event, from_state, to_state, outcome, COALESCE(version, 0), COALESCE(dedup, ''), COALESCE(actor, ''), COALESCE(meta::text, '')
  FROM "pgonce"."transition"
 WHERE entity = $1::bigint::text AND machine = $2::text /*scoped*/
 ORDER BY seq`

	// sqlBreaks compares each row's history with itself and with the row: a move that does not begin where the one before
	// ended (1), a row that is not where its last move ended (2), a row without a history that is not in an
	// initial state (3). All of it is one snapshot. Locks: none. Reads the whole table and all of the machine's
	// history.
	//
	// $1 machine, $2 initial states.
	sqlBreaks = `
WITH pgonce_chain AS (
  SELECT entity AS pgonce_e, seq AS pgonce_s, at AS pgonce_a, event AS pgonce_v, from_state AS pgonce_f, to_state AS pgonce_t,
         pg_catalog.lag(to_state) OVER (PARTITION BY entity ORDER BY seq) AS pgonce_b,
         pg_catalog.lead(seq) OVER (PARTITION BY entity ORDER BY seq) IS NULL AS pgonce_z
    FROM "pgonce"."transition"
   WHERE machine = $1::text AND outcome = 0
), pgonce_row AS (
  SELECT "id"::text COLLATE "C" AS pgonce_i, "state"::text COLLATE "C" AS pgonce_c
    FROM "public"."orders"
   WHERE true /*scope*/
)
SELECT 1, pgonce_e, pgonce_s, pgonce_a, pgonce_v, pgonce_b, pgonce_f
  FROM pgonce_chain JOIN pgonce_row ON pgonce_i = pgonce_e
 WHERE pgonce_b <> pgonce_f AND pgonce_f <> ''
UNION ALL
SELECT 2, pgonce_e, pgonce_s, pgonce_a, pgonce_v, pgonce_t, COALESCE(pgonce_c, '')
  FROM pgonce_chain JOIN pgonce_row ON pgonce_i = pgonce_e
 WHERE pgonce_z AND NOT COALESCE(pgonce_c = pgonce_t, false)
UNION ALL
SELECT 3, pgonce_i, 0, NULL, '', '', COALESCE(pgonce_c, '')
  FROM pgonce_row
 WHERE (pgonce_c = ANY ($2::text::text[])) IS NOT TRUE AND NOT EXISTS (SELECT FROM pgonce_chain WHERE pgonce_e = pgonce_i)
 ORDER BY 2, 3, 1`
)
