-- +goose Up

-- Where the purge of idem_record stands: one row, which every process that purges reads and the one at work
-- holds locked for a batch. So the state of the purge is as durable as what it has purged.
--   block          the next page of the table to look at
--   pass           how often the end of the table has been reached
--   worker         whose turn it is, as a number that it has made up; 0 is nobody's
--   began_at       when this pass began, finished_at when the last one ended
--   next_at        not before this is there anything to do
--   cleared, deleted  rows, since the table was made
CREATE TABLE "pgonce"."idem_purge" (
    block       bigint NOT NULL DEFAULT 0,
    pass        bigint NOT NULL DEFAULT 0,
    worker      bigint NOT NULL DEFAULT 0,
    began_at    timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    next_at     timestamptz NOT NULL DEFAULT now(),
    cleared     bigint NOT NULL DEFAULT 0,
    deleted     bigint NOT NULL DEFAULT 0,
    id          smallint PRIMARY KEY CHECK (id = 1)
);

INSERT INTO "pgonce"."idem_purge" (id) VALUES (1);

-- What somebody made the library forget, by whom and why: one row for each call of Forget. Nothing here is ever
-- changed or deleted by the library. The result itself is not kept, since it may be what had to go.
--   by            the database's session_user; application is its application_name
--   result_bytes  the size of the result that was forgotten; NULL when it was gone already
CREATE TABLE "pgonce"."idem_forgotten" (
    forgotten_at   timestamptz NOT NULL,
    attempt        bigint NOT NULL,
    created_at     timestamptz NOT NULL,
    replay_until   timestamptz NOT NULL,
    remember_until timestamptz NOT NULL,
    result_bytes   bigint,
    state          smallint NOT NULL,
    scope          text COLLATE "C" NOT NULL,
    digest         bytea NOT NULL,
    op             text COLLATE "C" NOT NULL,
    id             text COLLATE "C",
    by             text NOT NULL,
    application    text NOT NULL,
    reason         text NOT NULL,
    PRIMARY KEY (scope, digest, forgotten_at, attempt)
);

INSERT INTO "pgonce"."schema_version" (version, min_code) VALUES (6, 1);

-- +goose Down

-- Who made keys be forgotten is not forgotten by accident.
LOCK TABLE "pgonce"."idem_forgotten" IN ACCESS EXCLUSIVE MODE;

-- +goose StatementBegin
DO $$
BEGIN
    IF coalesce(current_setting('pgonce.force_down', true), '') <> 'on'
       AND EXISTS (SELECT FROM "pgonce"."idem_forgotten") THEN
        RAISE EXCEPTION 'pgonce: idem_forgotten says which keys were made to be forgotten, and by whom'
            USING ERRCODE = 'object_in_use',
                  HINT = 'empty the table, or set pgonce.force_down = ''on'' in this session';
    END IF;
END
$$;
-- +goose StatementEnd

DROP TABLE "pgonce"."idem_forgotten";
DROP TABLE "pgonce"."idem_purge";
DELETE FROM "pgonce"."schema_version" WHERE version = 6;
