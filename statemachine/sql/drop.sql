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
    LOCK TABLE "public"."orders" IN ACCESS EXCLUSIVE MODE;
    FOR pgonce_part IN
        SELECT n.nspname, c.relname
          FROM pg_catalog.pg_partition_tree('/*table*/'::regclass) t JOIN pg_catalog.pg_class c ON c.oid = t.relid
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE t.level > 0
    LOOP
        EXECUTE pg_catalog.format('DROP TRIGGER IF EXISTS %I ON %I.%I', '/*created*/', pgonce_part.nspname, pgonce_part.relname);
    END LOOP;
END
$pgonce$;
DROP TRIGGER IF EXISTS "zzzz_pgonce_move_state" ON "public"."orders";
DROP TRIGGER IF EXISTS "zzzz_pgonce_new_state" ON "public"."orders";
DROP FUNCTION IF EXISTS "public"."pgonce_orders_state"();
ALTER TABLE "public"."orders" DROP CONSTRAINT IF EXISTS "pgonce_states_state", DROP CONSTRAINT IF EXISTS "pgonce_requires_state";
