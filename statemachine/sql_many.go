package statemachine

// Statements on many rows, written as those of sql.go are.
const (
	// sqlMany is sqlFire and sqlFireHistory for many rows, which it locks in the order of their ids, so that no two of
	// these statements wait for each other. It returns a row (1) for each row of the table that it has
	// locked, one (2) for each that it has written to the history, to be put together with (1) by the entity, what it has found there of a
	// dedup id (3), one (5) for each id that names a row which another id does too, and a last one (4). A row that is moved is (2)
	// alone where nothing but a dedup id could keep the history from taking it, and the caller can tell the id by the entity (the marks of "alone"). Locks: the rows, FOR
	// NO KEY UPDATE. Indexes: as in sqlFireHistory.
	//
	// There is no join in it that a plan for few rows makes slow for many: each side is found by an index, or is small, or is put together
	// by the caller. What is the same for all rows is in sub-queries, which the server evaluates once; how many rows an id has
	// is counted for each only if there are more rows than ids.
	//
	// Without a history (2) is what is moved.
	//
	// $1 the ids as an array, $6 0 for no limit, the others as in sqlFireHistory.
	sqlMany = `
WITH pgonce_wait AS MATERIALIZED (
  SELECT pg_catalog.current_setting('lock_timeout') AS pgonce_was,
         pg_catalog.set_config('lock_timeout', (LEAST($6::bigint, NULLIF((1000 * extract(epoch FROM pg_catalog.current_setting('lock_timeout')::interval))::bigint, 0)))::text, true) AS pgonce_w
   WHERE $6::bigint > 0
), pgonce_ids AS MATERIALIZED (
  SELECT pgonce_i, pgonce_p, pg_catalog.row_number() OVER (PARTITION BY pgonce_i ORDER BY pgonce_p) AS pgonce_x
    FROM pg_catalog.unnest($1::text::bigint[]) WITH ORDINALITY AS pgonce_u(pgonce_i, pgonce_p)
), /*dedup*/pgonce_dup AS MATERIALIZED (
  SELECT pgonce_p AS pgonce_dp, event AS pgonce_de, from_state AS pgonce_df, to_state AS pgonce_dt, outcome AS pgonce_do,
         version AS pgonce_dv, seq AS pgonce_ds, at AS pgonce_da
    FROM pgonce_ids JOIN "pgonce"."transition" ON pgonce_x = 1 AND entity = pgonce_i::text AND machine = $7::text AND dedup = $11::text /*scoped*/
), /*end dedup*/pgonce_cur AS MATERIALIZED (
  SELECT pgonce_p, "state"::text COLLATE "C" AS pgonce_f, NULL::bigint /*version*/ AS pgonce_v, "id"::text AS pgonce_e,
         CASE WHEN false THEN 0 /*where*/ ELSE 0 END AS pgonce_g, CASE WHEN false THEN 0 /*match*/ ELSE 0 END AS pgonce_m
    FROM pgonce_ids JOIN "public"."orders" ON "id" = pgonce_i AND pgonce_x = 1
   WHERE /*dedup*/pgonce_p NOT IN (SELECT pgonce_dp FROM pgonce_dup) AND /*end dedup*/(SELECT pg_catalog.count(pgonce_w) FROM pgonce_wait) >= 0 /*scope*/
   ORDER BY "id" /*order*/
     FOR NO KEY UPDATE
), pgonce_rows AS MATERIALIZED (
  SELECT pgonce_p, pgonce_f, pgonce_v, pgonce_e, pgonce_g, pgonce_m,
         CASE WHEN (SELECT pg_catalog.count(*) > pg_catalog.count(DISTINCT pgonce_p) FROM pgonce_cur)
              THEN (SELECT pg_catalog.count(*) FROM pgonce_cur AS pgonce_same WHERE pgonce_same.pgonce_p = pgonce_row.pgonce_p) ELSE 1 END AS pgonce_n
    FROM pgonce_cur AS pgonce_row
), pgonce_plan AS MATERIALIZED (
  SELECT pgonce_p, pgonce_f, pgonce_v, pgonce_e, pgonce_n,
         ((SELECT $3::text::text[]))[pg_catalog.array_position((SELECT $2::text::text[]), pgonce_f)] AS pgonce_to,
         CASE WHEN pgonce_n > 1 THEN NULL
              WHEN pgonce_m <> 0 THEN pgonce_m
              WHEN pgonce_f = ANY ((SELECT $2::text::text[])::text[]) THEN pgonce_g
              WHEN pgonce_f = ANY ((SELECT $4::text::text[])::text[]) THEN
                   CASE WHEN true /*held*/AND (
                          SELECT event = $8::text AND to_state = pgonce_f FROM "pgonce"."transition"
                           WHERE entity = pgonce_e AND machine = $7::text AND outcome = 0 ORDER BY seq DESC LIMIT 1) /*end held*//*untold*/AND false /*end untold*/THEN 1 END
              WHEN pgonce_f = ANY ((SELECT $5::text::text[])::text[]) THEN 2 END AS pgonce_o
    FROM pgonce_rows
), pgonce_h AS (
  /*history*/INSERT INTO "pgonce"."transition" (version, outcome, entity, from_state, to_state, machine, event, actor, meta, dedup)
  /*end history*/SELECT pgonce_v + CASE pgonce_o WHEN 0 THEN 1 ELSE 0 END AS pgonce_hv, pgonce_o AS pgonce_ho, pgonce_e AS pgonce_he, pgonce_f AS pgonce_hf,
         CASE pgonce_o WHEN 0 THEN pgonce_to ELSE pgonce_f END AS pgonce_ht/*history*/, $7::text, $8::text, $9::text, $10::text::jsonb, /*dedup*/$11::text/*end dedup*//*no dedup NULL*//*end history*/
    FROM pgonce_plan
   WHERE pgonce_o = 0 /*dedup*/OR pgonce_o IN (1, 2)
  ON CONFLICT DO NOTHING /*end dedup*//*history*/
  RETURNING entity AS pgonce_he, from_state AS pgonce_hf, to_state AS pgonce_ht, outcome AS pgonce_ho, version AS pgonce_hv, seq AS pgonce_hs, at AS pgonce_ha/*end history*/
), pgonce_moved AS (
  UPDATE "public"."orders" SET "state" = pgonce_ht::text /*as state*/ /*set*/
    FROM pgonce_h
   WHERE "id" = pgonce_he::bigint /*id*/ AND pgonce_ho = 0 /*scope*/
  RETURNING "state"::text COLLATE "C" AS pgonce_t, pgonce_ht AS pgonce_tt
)
SELECT 1, pgonce_p, pgonce_n, pgonce_e, pgonce_f, CASE WHEN pgonce_o = 0 THEN pgonce_to END, pgonce_o, pgonce_v, NULL::bigint, NULL::timestamptz, NULL::text
  FROM pgonce_plan /*alone*/WHERE pgonce_o IS DISTINCT FROM 0 /*end alone*/
UNION ALL
SELECT 2, NULL, 1, pgonce_he, pgonce_hf, pgonce_ht, pgonce_ho, pgonce_hv - 1, /*history*/pgonce_hs, pgonce_ha/*end history*//*no history NULL, NULL*/, NULL FROM pgonce_h
/*dedup*/UNION ALL
SELECT 3, pgonce_dp, NULL, NULL, pgonce_df, pgonce_dt, pgonce_do, pgonce_dv, pgonce_ds, pgonce_da, pgonce_de FROM pgonce_dup
/*end dedup*/UNION ALL
SELECT 5, pgonce_p, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM pgonce_ids WHERE pgonce_x > 1
UNION ALL
SELECT 4, NULL, NULL, NULL, NULL, NULL,
       CASE WHEN (SELECT pg_catalog.count(*) FROM pgonce_h WHERE pgonce_ho = 0) <> (SELECT pg_catalog.count(*) FROM pgonce_moved WHERE pgonce_t = pgonce_tt)
            THEN ('pgonce: diverted one row of ' || (SELECT pg_catalog.count(*) FROM pgonce_ids))::int END,
       (SELECT pg_catalog.count(pg_catalog.set_config('lock_timeout', pgonce_was, true)) FROM pgonce_wait), NULL, NULL, NULL`

	// sqlDue locks rows whose time in state $1 is up, $2 being that time, and passes over those that somebody has locked. It
	// begins after the row of $4 and $5, and returns $3 of them at most, the oldest first. Locks: the rows, FOR NO KEY
	// UPDATE. Index: one on ("since", "id"), where there is one.
	sqlDue = `
SELECT "id"::text AS pgonce_e, "since"::text AS pgonce_s
  FROM "public"."orders"
 WHERE "state"::text COLLATE "C" = $1::text AND "since" <= pg_catalog.statement_timestamp() - $2::text::interval
       AND ("since", "id") > ($4::text::timestamptz, $5::text::bigint /*id*/) /*scope*/
 ORDER BY "since", "id"
 LIMIT $3::bigint
   FOR NO KEY UPDATE SKIP LOCKED`

	// sqlDueFirst is sqlDue from the beginning.
	sqlDueFirst = `
SELECT "id"::text AS pgonce_e, "since"::text AS pgonce_s
  FROM "public"."orders"
 WHERE "state"::text COLLATE "C" = $1::text AND "since" <= pg_catalog.statement_timestamp() - $2::text::interval /*scope*/
 ORDER BY "since", "id"
 LIMIT $3::bigint
   FOR NO KEY UPDATE SKIP LOCKED`

	// sqlDueAmong is sqlDue for rows that were due a moment ago, $3 being their ids.
	sqlDueAmong = `
SELECT "id"::text AS pgonce_e, "since"::text AS pgonce_s
  FROM "public"."orders"
 WHERE "id" = ANY ($3::text::bigint[]) AND "state"::text COLLATE "C" = $1::text
       AND "since" <= pg_catalog.statement_timestamp() - $2::text::interval /*scope*/
 ORDER BY "since", "id"
   FOR NO KEY UPDATE SKIP LOCKED`
)
