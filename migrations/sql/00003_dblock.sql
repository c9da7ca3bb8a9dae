-- +goose Up

-- Where the epoch of tokens stands, so that it goes on after a failover, an upgrade or a restore, in
-- which the sequence may fall back. The epoch is base + timeline.
--   cluster, database, sequence  where this row was last used; when one differs, it was copied
--   timeline                     of that cluster; a promotion or a recovery raises it
--   base                         the sum of the timelines of the clusters before
CREATE TABLE "pgonce"."epoch" (
    id       smallint PRIMARY KEY CHECK (id = 1),
    cluster  bigint NOT NULL,
    database bigint NOT NULL,
    sequence bigint NOT NULL,
    timeline bigint NOT NULL,
    base     bigint NOT NULL
);

-- The other part of a token. CACHE 1: the session that asks later gets the greater number.
CREATE SEQUENCE "pgonce"."fence" AS bigint CACHE 1 OWNED BY "pgonce"."epoch".id;

INSERT INTO "pgonce"."schema_version" (version, min_code) VALUES (3, 1);

-- +goose Down

-- Tokens that users have stored would be greater than those to come, so this refuses once there was
-- any.
LOCK TABLE "pgonce"."epoch" IN ACCESS EXCLUSIVE MODE;

-- +goose StatementBegin
DO $$
BEGIN
    IF coalesce(current_setting('pgonce.force_down', true), '') <> 'on'
       AND EXISTS (SELECT FROM "pgonce"."epoch") THEN
        RAISE EXCEPTION 'pgonce: epoch says that fencing tokens were given out; dropping it lets them go backwards'
            USING ERRCODE = 'object_in_use',
                  HINT = 'empty the table, or set pgonce.force_down = ''on'' in this session';
    END IF;
END
$$;
-- +goose StatementEnd

DROP TABLE "pgonce"."epoch"; -- and the sequence with it
DELETE FROM "pgonce"."schema_version" WHERE version = 3;
