package smtest

// Statements are written for "public"."orders" with the columns "id" and "state", as those of the
// statemachine package are. $1 is a row as JSON: the server makes values of the columns' types of it.
const (
	// sqlCatalog is the columns that can be written, in order, and the server's version.
	sqlCatalog = `
SELECT pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' ORDER BY a.attnum), pg_catalog.string_agg(pg_catalog.quote_ident(a.attname) || '::text', ', ' ORDER BY a.attnum),
       pg_catalog.current_setting('server_version_num')::bigint / 10000
  FROM pg_catalog.pg_attribute a
 WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''`

	// sqlRow is a row: its id as the history names it, its state, all of it as JSON, and its columns as COPY takes them.
	sqlRow = `
SELECT "id"::text, COALESCE("state"::text, ''), pg_catalog.to_jsonb(pgonce_t)::text, pg_catalog.jsonb_build_array("id"::text, "state"::text)::text
  FROM "public"."orders" AS pgonce_t
 WHERE "id" = (pg_catalog.jsonb_populate_record(NULL::"public"."orders", $1::text::jsonb))."id"`

	// sqlMoves is what the history says of a row, less its beginning, which comes from nowhere. $1 machine, $2 entity.
	sqlMoves = `
SELECT event, from_state, to_state
  FROM "pgonce"."transition"
 WHERE machine = $1::text AND entity = $2::text AND outcome = 0 AND from_state <> ''
 ORDER BY seq`

	// What follows tries to write a state past the machine, in transactions that are rolled back.
	sqlUpdate = `
UPDATE "public"."orders" SET "state" = (pg_catalog.jsonb_populate_record(NULL::"public"."orders", $1::text::jsonb))."state"
 WHERE "id" = (pg_catalog.jsonb_populate_record(NULL::"public"."orders", $1::text::jsonb))."id"`

	sqlDelete = `
DELETE FROM "public"."orders"
 WHERE "id" = (pg_catalog.jsonb_populate_record(NULL::"public"."orders", $1::text::jsonb))."id"`

	sqlInsert = `
INSERT INTO "public"."orders" ("id", "state") OVERRIDING SYSTEM VALUE
SELECT "id", "state"
  FROM pg_catalog.jsonb_populate_record(NULL::"public"."orders", $1::text::jsonb)`

	// The row that it proposes is the one that is there, which the table's constraints allow. $2 has the state.
	sqlUpsert = `
INSERT INTO "public"."orders" ("id", "state") OVERRIDING SYSTEM VALUE
SELECT "id", "state"
  FROM pg_catalog.jsonb_populate_record(NULL::"public"."orders", $1::text::jsonb)
    ON CONFLICT ("id") DO UPDATE SET "state" = (pg_catalog.jsonb_populate_record(NULL::"public"."orders", $2::text::jsonb))."state"`

	sqlMerge = `
MERGE INTO "public"."orders" AS pgonce_t
USING pg_catalog.jsonb_populate_record(NULL::"public"."orders", $1::text::jsonb) AS pgonce_n
   ON pgonce_t."id" = pgonce_n."id"
 WHEN MATCHED THEN UPDATE SET "state" = pgonce_n."state"`

	sqlCopy = `COPY "public"."orders" ("id", "state") FROM STDIN`
)
