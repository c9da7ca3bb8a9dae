package statemachine

// sqlMove is what most calls need: an event with one source and no conditions, which finds its row
// there, or where the event leads. It knows no conflict: where it can neither move the row nor answer without a lock, the last
// column is empty, nothing was done, and sqlFire or sqlFireHistory decides.
//
// Why it never moves a row that those would not: they lock the row and ask for its state; an UPDATE that has to wait asks again, for the state of the version
// that it has waited for, before it moves it. Why it never answers a repeat that those would not: the condition in the last column is theirs, on the same snapshot.
// What it has waited for in vain was in the source in its snapshot, so the last column is empty.
//
// What it has moved counts only with its row of the history, in the target, and of an only row: a trigger may have diverted either of them (22P02), and the
// id may have rows in other states, which are not moved here and would be there (21000, by the sub-select). Both fail the statement.
//
// Locks: the row, FOR NO KEY UPDATE, if it is moved, or was waited for. Indexes: the one of "id", twice; the primary key of "transition" for the last move.
//
// $1 id, $2 the source, $3 the target, $4 states where it is ignored, $5 how long to wait, $6 machine, $7 event, $8 actor, $9 meta.
const sqlMove = `
WITH /*wait*/pgonce_wait AS MATERIALIZED (
  SELECT pg_catalog.set_config('lock_timeout', CASE pg_catalog.current_setting('lock_timeout') WHEN '0' THEN $5::bigint::text
                 ELSE LEAST($5::bigint, (1000 * extract(epoch FROM pg_catalog.current_setting('lock_timeout')::interval))::bigint)::text END, true) AS pgonce_w
), /*end wait*/pgonce_moved AS (
  UPDATE "public"."orders" SET "state" = $3::text::text /*as state*/ /*set*/
   WHERE "id" = $1::bigint AND "state"::text COLLATE "C" = $2::text /*scope*/ /*wait*/AND (SELECT pgonce_w FROM pgonce_wait) IS NOT NULL /*end wait*/
  RETURNING "state"::text COLLATE "C" AS pgonce_t, "id"::text AS pgonce_e, NULL::bigint /*version*/ AS pgonce_v
), pgonce_h AS (
  /*history*/INSERT INTO "pgonce"."transition" (version, machine, entity, event, from_state, to_state, actor, meta)
  SELECT pgonce_v, $6::text, pgonce_e, $7::text, $2::text, COALESCE(pgonce_t, ''), $8::text, $9::text::jsonb FROM pgonce_moved
  RETURNING to_state AS pgonce_ht, version AS pgonce_hv, seq AS pgonce_hs, at AS pgonce_ha/*end history*//*no history SELECT COALESCE(pgonce_t, '') AS pgonce_ht, pgonce_v AS pgonce_hv, NULL::bigint AS pgonce_hs, NULL::timestamptz AS pgonce_ha FROM pgonce_moved*/
)
SELECT pgonce_ht, pgonce_hv - 1, pgonce_hs, pgonce_ha,
       (SELECT CASE WHEN pgonce_ht = $3::text THEN NULL
                    WHEN EXISTS (SELECT FROM pgonce_moved) THEN ('pgonce: diverted ' || "id"::text)::int::text
                    WHEN ("state"::text COLLATE "C" = $3::text /*last*/AND $3::text = (
                            SELECT CASE event WHEN $7::text THEN to_state END FROM "pgonce"."transition"
                             WHERE entity = $1::bigint::text AND machine = $6::text AND outcome = 0 ORDER BY seq DESC LIMIT 1) /*end last*//*ignores*/OR "state"::text COLLATE "C" = ANY ($4::text[])/*end ignores*/)
                         AND pg_catalog.current_setting('transaction_isolation') = 'read committed'
                    THEN COALESCE((NULL::bigint /*version*/)::text, '') || ':' || "state"::text ELSE '' END
          FROM "public"."orders" WHERE "id" = $1::bigint /*scope*/)
  FROM (SELECT 1) AS pgonce_one LEFT JOIN pgonce_h ON true`
