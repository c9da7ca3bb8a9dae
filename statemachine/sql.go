package statemachine

// Statements on a user's table are written for "public"."orders" with its columns "id" (bigint)
// and "state" (text), so that they can be read, run and tested as they stand. [layout.render]
// puts in the table's own names and types, and the caller's expressions where a comment
// marks their place. What stands between the two marks of a name is left out for a call that has no use for it ([parts]): the
// server prepares and runs no more than it must.
//
// Every condition on the row is evaluated in pgonce_cur, on the version that is locked. One
// in the UPDATE would be tested on the version of before the wait first.
const (
	// sqlFire decides and moves one row, without a history. Locks: the row, FOR NO KEY UPDATE,
	// unless it answers without. Index: the one of "id".
	//
	// pgonce_o is what is decided: an outcome as it is stored; below zero, the number of a Match that does not hold; from 10,
	// the number of a Where, 10 being the version's. NULL is a refusal by the state alone.
	//
	// pgonce_cur passes over a row that can be answered without a lock: in the statement's snapshot it is where
	// the event leads, or where it is ignored. The column after the fixed ones has its state, from the same snapshot. It is empty for a row that was not passed over
	// in the snapshot and is, in the version that could be locked after a wait: then nothing is known, and it takes
	// another statement.
	//
	// If an id has more rows than one, all of them are moved, the sub-select of pgonce_moved fails (21000), and the statement
	// with it.
	//
	// $1 id, $2 sources, $3 targets, $4 states where it has been applied, $5 states where it is
	// ignored, $6 how long to wait for the lock in ms. A shorter limit of the role stands. In a transaction of the caller's the limit of before is put
	// back by the statement itself (the marks of "restore"), at its end; if it fails, by the end of what it has failed.
	sqlFire = `
WITH /*restore*/pgonce_wait AS MATERIALIZED (
  SELECT pg_catalog.current_setting('lock_timeout') AS pgonce_was,
         pg_catalog.set_config('lock_timeout', (LEAST($6::bigint, NULLIF((1000 * extract(epoch FROM pg_catalog.current_setting('lock_timeout')::interval))::bigint, 0)))::text, true) AS pgonce_w
), /*end restore*/pgonce_cur AS MATERIALIZED (
  SELECT "state"::text COLLATE "C" AS pgonce_f, NULL::bigint /*version*/ AS pgonce_v, "id"::text AS pgonce_e,
         CASE WHEN false THEN 0 /*match*/
              WHEN "state"::text COLLATE "C" = ANY ($2::text[]) THEN CASE WHEN false THEN 0 /*where*/ ELSE 0 END
              WHEN "state"::text COLLATE "C" = ANY ($4::text[]) THEN 1
              WHEN "state"::text COLLATE "C" = ANY ($5::text[]) THEN 2 END AS pgonce_o
    FROM "public"."orders"
   WHERE "id" = $1::bigint /*scope*/ /*restore*/AND (SELECT pg_catalog.count(pgonce_w) FROM pgonce_wait) >= 0 /*end restore*//*wait*/
     AND pg_catalog.set_config('lock_timeout', CASE pg_catalog.current_setting('lock_timeout') WHEN '0' THEN $6::bigint::text
                 ELSE LEAST($6::bigint, (1000 * extract(epoch FROM pg_catalog.current_setting('lock_timeout')::interval))::bigint)::text END, true) IS NOT NULL /*end wait*//*unlocked*/
     AND (("state"::text COLLATE "C" = ANY ($4::text[]) OR "state"::text COLLATE "C" = ANY ($5::text[]))
          AND pg_catalog.current_setting('transaction_isolation') = 'read committed' /*matches*/) IS NOT TRUE /*end unlocked*/
     FOR NO KEY UPDATE
), pgonce_to AS MATERIALIZED (
  SELECT ($3::text[])[pg_catalog.array_position($2::text[], pgonce_f)] AS pgonce_ht FROM pgonce_cur WHERE pgonce_o = 0
), pgonce_moved AS (
  UPDATE "public"."orders" SET "state" = pgonce_ht::text /*as state*/ /*set*/
    FROM pgonce_to
   WHERE "id" = $1::bigint /*scope*/
  RETURNING "state"::text COLLATE "C" AS pgonce_t
)
SELECT pgonce_e IS NOT NULL, pgonce_f, pgonce_o, pgonce_v,
       CASE WHEN pgonce_ht IS NOT NULL THEN CASE (SELECT pgonce_t FROM pgonce_moved) WHEN pgonce_ht THEN pgonce_ht ELSE ('pgonce: diverted ' || pgonce_e)::int::text END END,
       NULL::bigint, NULL::timestamptz/*unlocked*/,
       CASE WHEN pgonce_e IS NULL THEN (
         SELECT CASE WHEN ("state"::text COLLATE "C" = ANY ($4::text[]) OR "state"::text COLLATE "C" = ANY ($5::text[]))
                          AND pg_catalog.current_setting('transaction_isolation') = 'read committed' /*matches*/
                     THEN COALESCE((NULL::bigint /*version*/)::text, '') || ':' || "state"::text ELSE '' END
           FROM "public"."orders" WHERE "id" = $1::bigint /*scope*/) END/*end unlocked*//*restore*/,
       (SELECT pg_catalog.count(pg_catalog.set_config('lock_timeout', pgonce_was, true)) FROM pgonce_wait)/*end restore*/
  FROM (SELECT 1) AS pgonce_one LEFT JOIN pgonce_cur ON true LEFT JOIN pgonce_to ON true`

	// sqlFireHistory is sqlFire with a history. The row of the history comes
	// first and the move depends on it, so a dedup id is used once whatever else goes wrong:
	// its unique index is the arbiter. Without an id nothing can be in its way. Indexes of "transition": transition_dedup to look an id up, the
	// primary key for the last move.
	//
	// pgonce_last is the target of the row's last move, if this event has made it: a state to which other events lead too does not tell. It is
	// trusted in two cases only: without a lock, where the row and its history are read in one
	// snapshot; and when this transaction has held the row's lock since before
	// the statement (the marks of "held"). Otherwise the statement may have waited for the lock, and the history is older than the row ("untold").
	//
	// $7 machine, $8 event, $9 actor, $10 meta, $11 dedup id.
	sqlFireHistory = `
WITH /*restore*/pgonce_wait AS MATERIALIZED (
  SELECT pg_catalog.current_setting('lock_timeout') AS pgonce_was,
         pg_catalog.set_config('lock_timeout', (LEAST($6::bigint, NULLIF((1000 * extract(epoch FROM pg_catalog.current_setting('lock_timeout')::interval))::bigint, 0)))::text, true) AS pgonce_w
), /*end restore*//*dedup*/pgonce_dup AS MATERIALIZED (
  SELECT event AS pgonce_de, from_state AS pgonce_df, to_state AS pgonce_dt, outcome AS pgonce_do,
         version AS pgonce_dv, seq AS pgonce_ds, at AS pgonce_da
    FROM "pgonce"."transition"
   WHERE entity = $1::bigint::text AND machine = $7::text AND dedup = $11::text /*scoped*/
), /*end dedup*//*last*/pgonce_last AS MATERIALIZED (
  SELECT CASE event WHEN $8::text THEN to_state END AS pgonce_lt
    FROM "pgonce"."transition"
   WHERE entity = $1::bigint::text AND machine = $7::text AND outcome = 0
   ORDER BY seq DESC LIMIT 1
), /*end last*/pgonce_cur AS MATERIALIZED (
  SELECT "state"::text COLLATE "C" AS pgonce_f, NULL::bigint /*version*/ AS pgonce_v, "id"::text AS pgonce_e,
         CASE WHEN false THEN 0 /*match*/
              WHEN "state"::text COLLATE "C" = ANY ($2::text[]) THEN CASE WHEN false THEN 0 /*where*/ ELSE 0 END
              WHEN "state"::text COLLATE "C" = ANY ($4::text[]) THEN
                   CASE WHEN true /*held*/AND "state"::text COLLATE "C" = (SELECT pgonce_lt FROM pgonce_last) /*end held*//*untold*/AND false /*end untold*/THEN 1 END
              WHEN "state"::text COLLATE "C" = ANY ($5::text[]) THEN 2 END AS pgonce_o
    FROM "public"."orders"
   WHERE "id" = $1::bigint /*scope*/ /*dedup*/AND NOT EXISTS (SELECT FROM pgonce_dup) /*end dedup*//*restore*/AND (SELECT pg_catalog.count(pgonce_w) FROM pgonce_wait) >= 0 /*end restore*//*wait*/
     AND pg_catalog.set_config('lock_timeout', CASE pg_catalog.current_setting('lock_timeout') WHEN '0' THEN $6::bigint::text
                 ELSE LEAST($6::bigint, (1000 * extract(epoch FROM pg_catalog.current_setting('lock_timeout')::interval))::bigint)::text END, true) IS NOT NULL /*end wait*//*unlocked*/
     AND (("state"::text COLLATE "C" = ANY ($4::text[]) /*last*/AND "state"::text COLLATE "C" = (SELECT pgonce_lt FROM pgonce_last) /*end last*/OR "state"::text COLLATE "C" = ANY ($5::text[]))
          AND pg_catalog.current_setting('transaction_isolation') = 'read committed' /*matches*/) IS NOT TRUE /*end unlocked*/
     FOR NO KEY UPDATE
), pgonce_h AS (
  INSERT INTO "pgonce"."transition" (version, outcome, machine, entity, event, from_state, to_state, actor, meta, dedup)
  SELECT pgonce_v + CASE pgonce_o WHEN 0 THEN 1 ELSE 0 END, pgonce_o, $7::text, pgonce_e, $8::text, pgonce_f,
         CASE pgonce_o WHEN 0 THEN ($3::text[])[pg_catalog.array_position($2::text[], pgonce_f)] ELSE pgonce_f END,
         $9::text, $10::text::jsonb, /*dedup*/$11::text/*end dedup*//*no dedup NULL*/
    FROM pgonce_cur
   WHERE pgonce_o = 0 /*dedup*/OR pgonce_o IN (1, 2)
  ON CONFLICT DO NOTHING /*end dedup*/
  RETURNING outcome AS pgonce_ho, to_state AS pgonce_ht, seq AS pgonce_hs, at AS pgonce_ha
), pgonce_moved AS (
  UPDATE "public"."orders" SET "state" = pgonce_ht::text /*as state*/ /*set*/
    FROM pgonce_h
   WHERE "id" = $1::bigint /*scope*/ AND pgonce_ho = 0
  RETURNING "state"::text COLLATE "C" AS pgonce_t
)
SELECT pgonce_e IS NOT NULL, pgonce_f, pgonce_o, pgonce_v,
       CASE WHEN pgonce_ho = 0 THEN CASE (SELECT pgonce_t FROM pgonce_moved) WHEN pgonce_ht THEN pgonce_ht ELSE ('pgonce: diverted ' || pgonce_e)::int::text END ELSE pgonce_ht END,
       pgonce_hs, pgonce_ha/*unlocked*/,
       CASE WHEN pgonce_e IS NULL THEN (
         SELECT CASE WHEN ("state"::text COLLATE "C" = ANY ($4::text[]) /*last*/AND "state"::text COLLATE "C" = (SELECT pgonce_lt FROM pgonce_last) /*end last*/OR "state"::text COLLATE "C" = ANY ($5::text[]))
                          AND pg_catalog.current_setting('transaction_isolation') = 'read committed' /*matches*/
                     THEN COALESCE((NULL::bigint /*version*/)::text, '') || ':' || "state"::text ELSE '' END
           FROM "public"."orders" WHERE "id" = $1::bigint /*scope*/) END/*end unlocked*//*dedup*/,
       pgonce_de, pgonce_df, pgonce_dt, pgonce_do, pgonce_dv, pgonce_ds, pgonce_da/*end dedup*//*restore*/,
       (SELECT pg_catalog.count(pg_catalog.set_config('lock_timeout', pgonce_was, true)) FROM pgonce_wait)/*end restore*/
  FROM (SELECT 1) AS pgonce_one /*dedup*/LEFT JOIN pgonce_dup ON true /*end dedup*/LEFT JOIN pgonce_cur ON true LEFT JOIN pgonce_h ON true`

	// sqlColumns describes a table's columns: name, type (what a domain is made of), the type's category, and
	// whether it is a table. Locks: ACCESS SHARE on the catalog.
	sqlColumns = `
SELECT a.attname::text, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.typname),
       t.typcategory::text, c.relkind IN ('r', 'p')
  FROM pg_catalog.pg_namespace s
  JOIN pg_catalog.pg_class c ON c.relnamespace = s.oid
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
  JOIN pg_catalog.pg_type d ON d.oid = a.atttypid
  JOIN pg_catalog.pg_type t ON t.oid = CASE d.typtype WHEN 'd' THEN d.typbasetype ELSE d.oid END
  JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
 WHERE s.nspname = $1::text AND c.relname = $2::text AND a.attnum > 0 AND NOT a.attisdropped`

	// sqlFacts is what Verify has to know of the state and id columns and of this role's rights: whether the state can be
	// NULL, is generated; whether an index keeps the id unique; what this role lacks; whether triggers are
	// off in this session. Locks: ACCESS SHARE on the catalog. $1 schema, $2 table, $3 id, $4 state, $5 version or '', $6 the library's schema, or '' without a
	// history, $7 since or ''.
	sqlFacts = `
SELECT NOT (s.attnotnull OR y.typnotnull), s.attgenerated <> '',
       EXISTS (SELECT FROM pg_catalog.pg_index x
                WHERE x.indrelid = c.oid AND x.indisunique AND x.indisvalid AND x.indpred IS NULL AND x.indexprs IS NULL
                  AND x.indnkeyatts = 1 AND x.indkey[0] = i.attnum),
       pg_catalog.concat_ws(', ',
         CASE WHEN NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE') THEN pg_catalog.format('USAGE ON SCHEMA %I', n.nspname) END,
         CASE WHEN NOT (pg_catalog.has_column_privilege(c.oid, i.attnum, 'SELECT') AND pg_catalog.has_column_privilege(c.oid, s.attnum, 'SELECT')
                        AND COALESCE(pg_catalog.has_column_privilege(c.oid, v.attnum, 'SELECT'), true)) THEN pg_catalog.format('SELECT ON %I.%I', n.nspname, c.relname) END,
         CASE WHEN NOT (pg_catalog.has_column_privilege(c.oid, s.attnum, 'UPDATE')
                        AND COALESCE(pg_catalog.has_column_privilege(c.oid, v.attnum, 'UPDATE'), true)
                        AND COALESCE(pg_catalog.has_column_privilege(c.oid, w.attnum, 'UPDATE'), true))
              THEN pg_catalog.format('UPDATE (%s) ON %I.%I', pg_catalog.concat_ws(', ', pg_catalog.quote_ident(s.attname), pg_catalog.quote_ident(v.attname), pg_catalog.quote_ident(w.attname)), n.nspname, c.relname) END,
         CASE WHEN NOT pg_catalog.has_schema_privilege(l.oid, 'USAGE') THEN pg_catalog.format('USAGE ON SCHEMA %I', l.nspname) END,
         CASE WHEN NOT (pg_catalog.has_table_privilege(h.oid, 'SELECT') AND pg_catalog.has_table_privilege(h.oid, 'INSERT')) THEN pg_catalog.format('SELECT, INSERT ON %I.transition', l.nspname) END),
       pg_catalog.has_column_privilege(c.oid, s.attnum, 'SELECT') AND pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
       pg_catalog.current_setting('session_replication_role'), pg_catalog.quote_ident(s.attname)
  FROM pg_catalog.pg_namespace n
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid
  JOIN pg_catalog.pg_attribute i ON i.attrelid = c.oid AND i.attname = $3::text
  JOIN pg_catalog.pg_attribute s ON s.attrelid = c.oid AND s.attname = $4::text
  JOIN pg_catalog.pg_type y ON y.oid = s.atttypid
  LEFT JOIN pg_catalog.pg_attribute v ON v.attrelid = c.oid AND v.attname = $5::text
  LEFT JOIN pg_catalog.pg_attribute w ON w.attrelid = c.oid AND w.attname = $7::text
  LEFT JOIN pg_catalog.pg_namespace l ON l.nspname = $6::text
  LEFT JOIN pg_catalog.pg_class h ON h.relnamespace = l.oid AND h.relname = 'transition'
 WHERE n.nspname = $1::text AND c.relname = $2::text`

	// sqlTriggers lists the triggers of a table and of its partitions and heirs, each of which comes at least once; on Postgres 14 what a partition has of its parent is internal. Locks: ACCESS SHARE
	// on the catalog. $1 schema, $2 table.
	sqlTriggers = `
WITH RECURSIVE pgonce_tree AS (
  SELECT c.oid AS pgonce_rel, 0 AS pgonce_level
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
   WHERE n.nspname = $1::text AND c.relname = $2::text
  UNION ALL
  SELECT i.inhrelid, pgonce_level + 1
    FROM pgonce_tree JOIN pg_catalog.pg_inherits i ON i.inhparent = pgonce_rel
)
SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), pgonce_level::bigint,
       COALESCE(t.tgname::text, ''), COALESCE(t.tgenabled::text, ''), COALESCE(t.tgtype, 0)::bigint, COALESCE(pg_catalog.array_length(t.tgattr::int2[], 1), 0)::bigint,
       COALESCE(fn.nspname::text, ''), COALESCE(f.proname::text, ''),
       COALESCE(pg_catalog.substring(pg_catalog.pg_get_triggerdef(t.oid), ' WHEN \((.*)\) EXECUTE FUNCTION '), '')
  FROM pgonce_tree
  JOIN pg_catalog.pg_class c ON c.oid = pgonce_rel
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_trigger t ON t.tgrelid = c.oid AND (NOT t.tgisinternal OR t.tgparentid <> 0)
  LEFT JOIN pg_catalog.pg_proc f ON f.oid = t.tgfoid
  LEFT JOIN pg_catalog.pg_namespace fn ON fn.oid = f.pronamespace
 ORDER BY pgonce_level, n.nspname COLLATE "C", c.relname COLLATE "C", t.tgname COLLATE "C"`

	// sqlMade is what the migration of TriggerSQL has made beside the triggers: the function's text and comment, and the
	// constraints' comments and whether they are valid and enforced. Empty where there is none. Locks: ACCESS SHARE on the catalog. $1 schema,
	// $2 table, $3 function, $4 and $5 constraints.
	sqlMade = `
SELECT COALESCE(f.prosrc, ''), COALESCE(pg_catalog.obj_description(f.oid, 'pg_proc'), ''),
       COALESCE(pg_catalog.obj_description(k.oid, 'pg_constraint'), ''), COALESCE(k.convalidated, false),
       COALESCE(pg_catalog.to_jsonb(k) ->> 'conenforced', 'true') = 'true',
       COALESCE(pg_catalog.obj_description(r.oid, 'pg_constraint'), ''), COALESCE(r.convalidated, false),
       COALESCE(pg_catalog.to_jsonb(r) ->> 'conenforced', 'true') = 'true'
  FROM pg_catalog.pg_namespace n
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid
  LEFT JOIN pg_catalog.pg_proc f ON f.pronamespace = n.oid AND f.proname = $3::text AND f.pronargs = 0
  LEFT JOIN pg_catalog.pg_constraint k ON k.conrelid = c.oid AND k.conname = $4::text AND k.contype = 'c'
  LEFT JOIN pg_catalog.pg_constraint r ON r.conrelid = c.oid AND r.conname = $5::text AND r.contype = 'c'
 WHERE n.nspname = $1::text AND c.relname = $2::text`

	// sqlStrays counts the rows in states that the machine does not have. Locks: ACCESS SHARE. It reads the
	// whole table, so it is asked only while no valid CHECK has the answer. $1 the states.
	sqlStrays = `
SELECT COALESCE("state"::text COLLATE "C", ''), "state" IS NULL, pg_catalog.count(*)
  FROM "public"."orders"
 WHERE ("state"::text COLLATE "C" = ANY ($1::text::text[])) IS NOT TRUE
 GROUP BY 1, 2 ORDER BY 1, 2 LIMIT 20`
)
