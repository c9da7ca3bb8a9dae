
-- Made by TriggerSQL; hash /*hash*/.
DECLARE
    pgonce_from  pg_catalog.text;
    pgonce_to    pg_catalog.text;
    pgonce_adopt pg_catalog.bool := COALESCE(pg_catalog.current_setting('pgonce.adopt', true), '') OPERATOR(pg_catalog.=) '/*name*/';
BEGIN
    IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN
        pgonce_from := OLD."state"::pg_catalog.text;
        pgonce_to := NEW."state"::pg_catalog.text;
        IF pgonce_to OPERATOR(pg_catalog.=) ANY ('/*states*/'::pg_catalog.text[]) AND (
            pgonce_adopt/*edges*/
        ) THEN
            RETURN NEW;
        END IF;
    ELSE
        SELECT pgonce_n."state"::pg_catalog.text INTO pgonce_to
          FROM pgonce_new AS pgonce_n
         WHERE (pgonce_n."state"::pg_catalog.text COLLATE pg_catalog."C" OPERATOR(pg_catalog.=) ANY ('/*initial*/'::pg_catalog.text[])
             OR pgonce_adopt AND pgonce_n."state"::pg_catalog.text COLLATE pg_catalog."C" OPERATOR(pg_catalog.=) ANY ('/*states*/'::pg_catalog.text[])) IS NOT TRUE
         LIMIT 1;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'check_violation',
        MESSAGE = pg_catalog.concat('pgonce: machine /*name*/ does not lead from ', COALESCE(pg_catalog.quote_literal(pg_catalog.left(pgonce_from, 200)), CASE TG_OP WHEN 'UPDATE' THEN 'NULL' ELSE 'a new row' END),
            ' to ', COALESCE(pg_catalog.quote_literal(pg_catalog.left(pgonce_to, 200)), 'NULL')),
        DETAIL = pg_catalog.json_build_object('machine', '/*name*/', 'from', pg_catalog.left(pgonce_from, 200), 'to', pg_catalog.left(pgonce_to, 200), 'new', TG_OP OPERATOR(pg_catalog.=) 'INSERT'),
        SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME, COLUMN = '/*column*/', CONSTRAINT = TG_NAME;
END
