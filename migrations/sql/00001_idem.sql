-- +goose Up

-- Which migrations are applied, whoever applied them: this library's Up, a step in
-- somebody's own goose timeline, or psql. min_code is the oldest code that can work
-- with the tables as they are after the migration.
CREATE TABLE "pgonce"."schema_version" (
    version    int PRIMARY KEY,
    min_code   int NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- One row for each request key, written once, when its effect commits.
--   scope, digest  the key; the digest is over operation and id, so its size is fixed
--   state          1 done, 2 refused for good, 3 unknown (a handler ended its transaction)
--   id             in clear for people who look; NULL where the store hides ids
--   created_at     NOT NULL is load-bearing: it is computed as NULL when the transaction
--                  that inserts is not the one that took the key's lock
--   result         what is replayed; no index may mention it, so that dropping it stays a
--                  HOT update in the room that fillfactor leaves
-- Columns of fixed width come first, which saves their padding.
CREATE TABLE "pgonce"."idem_record" (
    attempt        bigint NOT NULL,
    created_at     timestamptz NOT NULL,
    replay_until   timestamptz NOT NULL,
    remember_until timestamptz NOT NULL,
    state          smallint NOT NULL CHECK (state BETWEEN 1 AND 3),
    fp_ver         smallint NOT NULL,
    scope          text COLLATE "C" NOT NULL,
    digest         bytea NOT NULL,
    op             text COLLATE "C" NOT NULL,
    id             text COLLATE "C",
    fp             bytea,
    result         bytea,
    CONSTRAINT idem_record_pkey PRIMARY KEY (scope, digest)
) WITH (fillfactor = 80);

INSERT INTO "pgonce"."schema_version" (version, min_code) VALUES (1, 1);

-- +goose Down

-- Forgetting keys is paying twice, so this refuses while there are any. The lock
-- comes first: no record can slip in between the look and the drop.
LOCK TABLE "pgonce"."idem_record" IN ACCESS EXCLUSIVE MODE;

-- +goose StatementBegin
DO $$
BEGIN
    IF coalesce(current_setting('pgonce.force_down', true), '') <> 'on'
       AND EXISTS (SELECT FROM "pgonce"."idem_record") THEN
        RAISE EXCEPTION 'pgonce: idem_record holds keys; dropping them lets their effects happen again'
            USING ERRCODE = 'object_in_use',
                  HINT = 'empty the table, or set pgonce.force_down = ''on'' in this session';
    END IF;
END
$$;
-- +goose StatementEnd

DROP TABLE "pgonce"."idem_record";
DROP TABLE "pgonce"."schema_version";
