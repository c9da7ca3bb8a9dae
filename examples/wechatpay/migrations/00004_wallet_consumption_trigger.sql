-- +goose Up
-- +goose StatementBegin
-- From here on the column takes the machine's states only, and moves along its edges only, whoever writes. Made by
-- TriggerSQL from a machine of hash 771a61ea2ab069e3. Comments name nothing of the user's: goose looks for its annotations in them.
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
    pgonce_new  jsonb := '{"pgonce":1,"machine":"wallet consumption","hash":"771a61ea2ab069e3","states":["consumed","enqueued","not consumed"],"initial":["not consumed"],"edges":[["enqueued","consumed"],["not consumed","enqueued"]]}';
    pgonce_used text;
BEGIN
    SELECT COALESCE(pg_catalog.obj_description(p.oid, 'pg_proc'), '') INTO pgonce_text
      FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
     WHERE n.nspname = 'wechatpay' AND p.proname = 'pgonce_wallet_order_consumption_268e5f7f';
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
       AND EXISTS (SELECT FROM "wechatpay"."wallet_order" AS pgonce_t WHERE pgonce_t."consumption"::text = s.name);
    IF pgonce_used IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_in_use', MESSAGE = 'pgonce: rows are in states that this takes away: ' || pgonce_used,
            HINT = 'move the rows to other states first; to states without an edge from there with set_config(''pgonce.adopt'', the machine''s name, true).';
    END IF;
    SELECT pg_catalog.string_agg((e.pair ->> 0) || ' -> ' || (e.pair ->> 1), ', ' ORDER BY (e.pair ->> 0) COLLATE "C", (e.pair ->> 1) COLLATE "C") INTO pgonce_used
      FROM pg_catalog.jsonb_array_elements(pgonce_old -> 'edges') AS e(pair)
     WHERE NOT false AND e.pair NOT IN (SELECT pg_catalog.jsonb_array_elements(pgonce_new -> 'edges'))
       AND EXISTS (SELECT FROM "wechatpay"."wallet_order" AS pgonce_t WHERE pgonce_t."consumption"::text = e.pair ->> 0);
    IF pgonce_used IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_in_use', MESSAGE = 'pgonce: rows are where edges begin that this takes away: ' || pgonce_used,
            HINT = 'keep them until no running program fires these events; then make this migration with Contract.';
    END IF;
END
$pgonce$;

-- At once what the last step needs: a weaker lock that is made stronger later deadlocks with transactions that have read the table
-- and are about to write to it. A row that comes into a state after the look above is found by the validation.
LOCK TABLE "wechatpay"."wallet_order" IN ACCESS EXCLUSIVE MODE;

CREATE OR REPLACE FUNCTION "wechatpay"."pgonce_wallet_order_consumption_268e5f7f"() RETURNS trigger
    LANGUAGE plpgsql
AS $pgonce$
-- Made by TriggerSQL; hash 771a61ea2ab069e3.
DECLARE
    pgonce_from  pg_catalog.text;
    pgonce_to    pg_catalog.text;
    pgonce_adopt pg_catalog.bool := COALESCE(pg_catalog.current_setting('pgonce.adopt', true), '') OPERATOR(pg_catalog.=) 'wallet consumption';
BEGIN
    IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN
        pgonce_from := OLD."consumption"::pg_catalog.text;
        pgonce_to := NEW."consumption"::pg_catalog.text;
        IF pgonce_to OPERATOR(pg_catalog.=) ANY ('{"consumed","enqueued","not consumed"}'::pg_catalog.text[]) AND (
            pgonce_adopt
            OR pgonce_from OPERATOR(pg_catalog.=) 'enqueued' AND pgonce_to OPERATOR(pg_catalog.=) ANY ('{"consumed"}'::pg_catalog.text[])
            OR pgonce_from OPERATOR(pg_catalog.=) 'not consumed' AND pgonce_to OPERATOR(pg_catalog.=) ANY ('{"enqueued"}'::pg_catalog.text[])
        ) THEN
            RETURN NEW;
        END IF;
    ELSE
        SELECT pgonce_n."consumption"::pg_catalog.text INTO pgonce_to
          FROM pgonce_new AS pgonce_n
         WHERE (pgonce_n."consumption"::pg_catalog.text COLLATE pg_catalog."C" OPERATOR(pg_catalog.=) ANY ('{"not consumed"}'::pg_catalog.text[])
             OR pgonce_adopt AND pgonce_n."consumption"::pg_catalog.text COLLATE pg_catalog."C" OPERATOR(pg_catalog.=) ANY ('{"consumed","enqueued","not consumed"}'::pg_catalog.text[])) IS NOT TRUE
         LIMIT 1;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'check_violation',
        MESSAGE = pg_catalog.concat('pgonce: machine "wallet consumption" does not lead from ', COALESCE(pg_catalog.quote_literal(pg_catalog.left(pgonce_from, 200)), CASE TG_OP WHEN 'UPDATE' THEN 'NULL' ELSE 'a new row' END),
            ' to ', COALESCE(pg_catalog.quote_literal(pg_catalog.left(pgonce_to, 200)), 'NULL')),
        DETAIL = pg_catalog.json_build_object('machine', 'wallet consumption', 'from', pg_catalog.left(pgonce_from, 200), 'to', pg_catalog.left(pgonce_to, 200), 'new', TG_OP OPERATOR(pg_catalog.=) 'INSERT'),
        SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME, COLUMN = 'consumption', CONSTRAINT = TG_NAME;
END
$pgonce$;

COMMENT ON FUNCTION "wechatpay"."pgonce_wallet_order_consumption_268e5f7f"() IS '{"pgonce":1,"machine":"wallet consumption","hash":"771a61ea2ab069e3","states":["consumed","enqueued","not consumed"],"initial":["not consumed"],"edges":[["enqueued","consumed"],["not consumed","enqueued"]]}';

-- Triggers run in the order of their names, so this one sees what the others make of the row.
CREATE OR REPLACE TRIGGER "zzzz_pgonce_move_consumption" BEFORE UPDATE ON "wechatpay"."wallet_order"
    FOR EACH ROW WHEN (OLD."consumption"::text COLLATE "C" IS DISTINCT FROM NEW."consumption"::text COLLATE "C")
    EXECUTE FUNCTION "wechatpay"."pgonce_wallet_order_consumption_268e5f7f"();

-- For the statement, not for the row: it sees the rows that have become new ones. A trigger for each row would also see
-- those that an upsert turns into an update, and those that move to another partition.
CREATE OR REPLACE TRIGGER "zzzz_pgonce_new_consumption" AFTER INSERT ON "wechatpay"."wallet_order"
    REFERENCING NEW TABLE AS pgonce_new FOR EACH STATEMENT
    EXECUTE FUNCTION "wechatpay"."pgonce_wallet_order_consumption_268e5f7f"();

-- An INSERT straight into a partition does not fire the trigger of the whole. Partitions that are made later need theirs;
-- running this again gives it to them, and Verify names those that lack it.
DO $pgonce$
DECLARE
    pgonce_part record;
BEGIN
    FOR pgonce_part IN
        SELECT n.nspname, c.relname
          FROM pg_catalog.pg_partition_tree('"wechatpay"."wallet_order"'::regclass) t JOIN pg_catalog.pg_class c ON c.oid = t.relid
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE t.level > 0 AND c.relkind IN ('r', 'p')
    LOOP
        EXECUTE pg_catalog.format('CREATE OR REPLACE TRIGGER %I AFTER INSERT ON %I.%I REFERENCING NEW TABLE AS pgonce_new FOR EACH STATEMENT EXECUTE FUNCTION %I.%I()',
            'zzzz_pgonce_new_consumption', pgonce_part.nspname, pgonce_part.relname, 'wechatpay', 'pgonce_wallet_order_consumption_268e5f7f');
    END LOOP;
END
$pgonce$;

-- It holds where triggers are off: for a role that replays a log, for one that has disabled them.
ALTER TABLE "wechatpay"."wallet_order"
    DROP CONSTRAINT IF EXISTS "pgonce_states_consumption",
    ADD CONSTRAINT "pgonce_states_consumption" CHECK ("consumption" IS NOT NULL AND "consumption"::text COLLATE "C" = ANY ('{"consumed","enqueued","not consumed"}'::text[])) NOT VALID;
COMMENT ON CONSTRAINT "pgonce_states_consumption" ON "wechatpay"."wallet_order" IS '{"pgonce":1,"machine":"wallet consumption","hash":"771a61ea2ab069e3","states":["consumed","enqueued","not consumed"],"initial":["not consumed"],"edges":[["enqueued","consumed"],["not consumed","enqueued"]]}';

-- The columns that a state requires. A row of before that lacks one cannot be written to until it has them.
ALTER TABLE "wechatpay"."wallet_order" DROP CONSTRAINT IF EXISTS "pgonce_requires_consumption";
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
-- Going back would leave the table without any of this, not with what an earlier migration had made.
SET LOCAL lock_timeout = '2s';
DO $pgonce$
DECLARE
    pgonce_part record;
BEGIN
    IF COALESCE(pg_catalog.current_setting('pgonce.force_down', true), '') <> 'on' THEN
        RAISE EXCEPTION USING ERRCODE = 'object_in_use', MESSAGE = 'pgonce: dropping these triggers lets any program move rows of this table as it likes',
            HINT = 'write a migration from the earlier machine instead, or set pgonce.force_down = ''on'' in this session.';
    END IF;
    LOCK TABLE "wechatpay"."wallet_order" IN ACCESS EXCLUSIVE MODE;
    FOR pgonce_part IN
        SELECT n.nspname, c.relname
          FROM pg_catalog.pg_partition_tree('"wechatpay"."wallet_order"'::regclass) t JOIN pg_catalog.pg_class c ON c.oid = t.relid
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE t.level > 0
    LOOP
        EXECUTE pg_catalog.format('DROP TRIGGER IF EXISTS %I ON %I.%I', 'zzzz_pgonce_new_consumption', pgonce_part.nspname, pgonce_part.relname);
    END LOOP;
END
$pgonce$;
DROP TRIGGER IF EXISTS "zzzz_pgonce_move_consumption" ON "wechatpay"."wallet_order";
DROP TRIGGER IF EXISTS "zzzz_pgonce_new_consumption" ON "wechatpay"."wallet_order";
DROP FUNCTION IF EXISTS "wechatpay"."pgonce_wallet_order_consumption_268e5f7f"();
ALTER TABLE "wechatpay"."wallet_order" DROP CONSTRAINT IF EXISTS "pgonce_states_consumption", DROP CONSTRAINT IF EXISTS "pgonce_requires_consumption";
-- +goose StatementEnd
