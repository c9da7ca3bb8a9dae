-- From here on the column takes the machine's states only, and moves along its edges only, whoever writes. Made by
-- TriggerSQL from a machine of hash /*hash*/. Comments name nothing of the user's: goose looks for its annotations in them.
--
-- Locks: ACCESS EXCLUSIVE on the table, for a moment: what has to read it does so before. What cannot be had
-- within two seconds fails, and may be tried again. Where row security would hide rows from this role, it fails too.
SET LOCAL lock_timeout = '2s';
SET LOCAL row_security = off;

-- What rows still need must not be taken away. A state is in use while a row is in it, an edge while a row is where it begins.
DO $pgonce$
DECLARE
    pgonce_text text;
    pgonce_old  jsonb;
    pgonce_new  jsonb := '/*definition*/';
    pgonce_used text;
BEGIN
    SELECT COALESCE(pg_catalog.obj_description(p.oid, 'pg_proc'), '') INTO pgonce_text
      FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
     WHERE n.nspname = '/*schema*/' AND p.proname = '/*function*/';
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF pgonce_text NOT LIKE '{"pgonce":1,%' THEN
        RAISE EXCEPTION USING MESSAGE = 'pgonce: a function of this name is there, without the comment that says what it allows',
            HINT = 'restore the comment from the migration that made it, or drop the function with its triggers.';
    END IF;
    pgonce_old := pgonce_text::jsonb;
    SELECT pg_catalog.string_agg(s.name, ', ' ORDER BY s.name COLLATE "C") INTO pgonce_used
      FROM pg_catalog.jsonb_array_elements_text(pgonce_old -> 'states') AS s(name)
     WHERE s.name NOT IN (SELECT pg_catalog.jsonb_array_elements_text(pgonce_new -> 'states'))
       AND EXISTS (SELECT FROM "public"."orders" AS pgonce_t WHERE pgonce_t."state"::text = s.name);
    IF pgonce_used IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_in_use', MESSAGE = 'pgonce: rows are in states that this takes away: ' || pgonce_used,
            HINT = 'move the rows to other states first; to states without an edge from there with set_config(''pgonce.adopt'', the machine''s name, true).';
    END IF;
    SELECT pg_catalog.string_agg((e.pair ->> 0) || ' -> ' || (e.pair ->> 1), ', ' ORDER BY (e.pair ->> 0) COLLATE "C", (e.pair ->> 1) COLLATE "C") INTO pgonce_used
      FROM pg_catalog.jsonb_array_elements(pgonce_old -> 'edges') AS e(pair)
     WHERE NOT /*contract*/false AND e.pair NOT IN (SELECT pg_catalog.jsonb_array_elements(pgonce_new -> 'edges'))
       AND EXISTS (SELECT FROM "public"."orders" AS pgonce_t WHERE pgonce_t."state"::text = e.pair ->> 0);
    IF pgonce_used IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_in_use', MESSAGE = 'pgonce: rows are where edges begin that this takes away: ' || pgonce_used,
            HINT = 'keep them until no running program fires these events; then make this migration with Contract.';
    END IF;
END
$pgonce$;

-- At once what the last step needs: a weaker lock that is made stronger later deadlocks with transactions that have read the table
-- and are about to write to it. A row that comes into a state after the look above is found by the validation.
LOCK TABLE "public"."orders" IN ACCESS EXCLUSIVE MODE;

CREATE OR REPLACE FUNCTION "public"."pgonce_orders_state"() RETURNS trigger
    LANGUAGE plpgsql
AS $pgonce$/*body*/$pgonce$;

COMMENT ON FUNCTION "public"."pgonce_orders_state"() IS '/*definition*/';

-- Triggers run in the order of their names, so this one sees what the others make of the row.
CREATE OR REPLACE TRIGGER "zzzz_pgonce_move_state" BEFORE UPDATE ON "public"."orders"
    FOR EACH ROW WHEN (OLD."state"/*::text*/ IS DISTINCT FROM NEW."state"/*::text*/)
    EXECUTE FUNCTION "public"."pgonce_orders_state"();

-- For the statement, not for the row: it sees the rows that have become new ones. A trigger for each row would also see
-- those that an upsert turns into an update, and those that move to another partition.
CREATE OR REPLACE TRIGGER "zzzz_pgonce_new_state" AFTER INSERT ON "public"."orders"
    REFERENCING NEW TABLE AS pgonce_new FOR EACH STATEMENT
    EXECUTE FUNCTION "public"."pgonce_orders_state"();

-- An INSERT straight into a partition does not fire the trigger of the whole. Partitions that are made later need theirs;
-- running this again gives it to them, and Verify names those that lack it.
DO $pgonce$
DECLARE
    pgonce_part record;
BEGIN
    FOR pgonce_part IN
        SELECT n.nspname, c.relname
          FROM pg_catalog.pg_partition_tree('/*table*/'::regclass) t JOIN pg_catalog.pg_class c ON c.oid = t.relid
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE t.level > 0 AND c.relkind IN ('r', 'p')
    LOOP
        EXECUTE pg_catalog.format('CREATE OR REPLACE TRIGGER %I AFTER INSERT ON %I.%I REFERENCING NEW TABLE AS pgonce_new FOR EACH STATEMENT EXECUTE FUNCTION %I.%I()',
            '/*created*/', pgonce_part.nspname, pgonce_part.relname, '/*schema*/', '/*function*/');
    END LOOP;
END
$pgonce$;

-- It holds where triggers are off: for a role that replays a log, for one that has disabled them.
ALTER TABLE "public"."orders"
    DROP CONSTRAINT IF EXISTS "pgonce_states_state",
    ADD CONSTRAINT "pgonce_states_state" CHECK ("state" IS NOT NULL AND "state"/*as text*/ = ANY ('/*states*/'::text[])) NOT VALID;
COMMENT ON CONSTRAINT "pgonce_states_state" ON "public"."orders" IS '/*definition*/';

-- The columns that a state requires. A row of before that lacks one cannot be written to until it has them.
ALTER TABLE "public"."orders" DROP CONSTRAINT IF EXISTS "pgonce_requires_state";
/*add requires*/