-- +goose Up

-- The history of state machines: one row for each move, written by the statement that
-- makes it, and one for each answer that a dedup id got without a move.
--   seq          drawn while the entity's row is locked, so it rises for each entity; gaps are normal
--   at           when the row was written, after any wait; it is not the time of the transaction
--   version      of the user's version column after the move, where one is bound
--   outcome      0 the move was made, 1 it had been made before, 2 ignored by declaration
--   machine, entity   the machine's name, and the user's row: its id as text
--   dedup        what the caller calls this delivery of the event
-- The entity comes first in every key, so the table can be distributed or partitioned by it.
-- Columns of fixed width come first, which saves their padding. Rows are never updated.
CREATE TABLE "pgonce"."transition" (
    seq        bigint GENERATED ALWAYS AS IDENTITY,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    version    bigint,
    outcome    smallint NOT NULL DEFAULT 0 CHECK (outcome BETWEEN 0 AND 2),
    machine    text COLLATE "C" NOT NULL,
    entity     text COLLATE "C" NOT NULL,
    event      text COLLATE "C" NOT NULL,
    from_state text COLLATE "C" NOT NULL,
    to_state   text COLLATE "C" NOT NULL,
    dedup      text COLLATE "C",
    actor      text,
    meta       jsonb,
    CONSTRAINT transition_pkey PRIMARY KEY (entity, machine, seq)
);

-- The arbiter of dedup ids.
CREATE UNIQUE INDEX transition_dedup ON "pgonce"."transition" (entity, machine, dedup) WHERE dedup IS NOT NULL;

-- Code of version 1 does not know this table and works as before.
INSERT INTO "pgonce"."schema_version" (version, min_code) VALUES (2, 1);

-- +goose Down

-- Forgetting dedup ids is applying their repeats, so this refuses while there is a history. The
-- lock comes first: no row can slip in between the look and the drop.
LOCK TABLE "pgonce"."transition" IN ACCESS EXCLUSIVE MODE;

-- +goose StatementBegin
DO $$
BEGIN
    IF coalesce(current_setting('pgonce.force_down', true), '') <> 'on'
       AND EXISTS (SELECT FROM "pgonce"."transition") THEN
        RAISE EXCEPTION 'pgonce: transition holds a history; dropping it lets repeats be applied again'
            USING ERRCODE = 'object_in_use',
                  HINT = 'empty the table, or set pgonce.force_down = ''on'' in this session';
    END IF;
END
$$;
-- +goose StatementEnd

DROP TABLE "pgonce"."transition";
DELETE FROM "pgonce"."schema_version" WHERE version = 2;
