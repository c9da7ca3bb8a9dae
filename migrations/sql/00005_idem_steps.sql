-- +goose Up

-- Who is alive: one row for each process that executes keys in steps. It is renewed for as long as the
-- process holds a lease; a row whose time is over is never renewed again.
CREATE TABLE "pgonce"."idem_worker" (
    alive_until timestamptz NOT NULL,
    id          bigint NOT NULL,
    CONSTRAINT idem_worker_pkey PRIMARY KEY (id)
);

-- One row for each key that is being executed in steps. It goes away in the transaction that inserts
-- the key's record.
--   nonce       the attempt that owns the key; whatever an attempt writes is for this number only
--   worker      whose heartbeat keeps the lease; 0: nobody's, the attempt ended without an answer
--   not_before  the completer leaves the key alone until then
--   attempts    how often the completer has taken it
--   state       1 to be completed, 2 dead: the completer has given up, a person has to look
--   request     what the function gets, encoded
-- Both tables are empty whenever nothing is under way. VACUUM must not cut them down to nothing then: sessions that plan their statements
-- in that moment would choose to scan the whole table, and keep that plan when it has grown again.
CREATE TABLE "pgonce"."idem_lease" (
    nonce      bigint NOT NULL,
    worker     bigint NOT NULL,
    created_at timestamptz NOT NULL,
    not_before timestamptz NOT NULL,
    attempts   int NOT NULL,
    state      smallint NOT NULL CHECK (state BETWEEN 1 AND 2),
    fp_ver     smallint NOT NULL,
    scope      text COLLATE "C" NOT NULL,
    digest     bytea NOT NULL,
    op         text COLLATE "C" NOT NULL,
    id         text COLLATE "C",
    fp         bytea,
    request    bytea NOT NULL,
    last_error text,
    CONSTRAINT idem_lease_pkey PRIMARY KEY (scope, digest)
) WITH (fillfactor = 80, vacuum_truncate = off);

-- The steps of such a key that are done, or must not be done again by guess.
--   at     NOT NULL is load-bearing: it is computed as NULL when the transaction that inserts is not
--          the one that locked the lease
--   round  which downstream key the step is at
--   state  1 started: its call may have happened; 2 done; 3 to be called, under the key of its round
CREATE TABLE "pgonce"."idem_step" (
    at     timestamptz NOT NULL,
    ord    int NOT NULL,
    round  int NOT NULL,
    state  smallint NOT NULL CHECK (state BETWEEN 1 AND 3),
    scope  text COLLATE "C" NOT NULL,
    digest bytea NOT NULL,
    name   text COLLATE "C" NOT NULL,
    result bytea,
    CONSTRAINT idem_step_pkey PRIMARY KEY (scope, digest, ord)
) WITH (fillfactor = 80, vacuum_truncate = off);

-- What people have decided about keys, for those who ask later. Rows are never updated.
CREATE TABLE "pgonce"."idem_resolution" (
    seq     bigint GENERATED ALWAYS AS IDENTITY,
    at      timestamptz NOT NULL DEFAULT statement_timestamp(),
    round   int NOT NULL,
    outcome smallint NOT NULL,
    scope   text COLLATE "C" NOT NULL,
    digest  bytea NOT NULL,
    op      text COLLATE "C" NOT NULL,
    id      text COLLATE "C",
    step    text COLLATE "C",
    actor   text NOT NULL,
    reason  text NOT NULL,
    result  bytea,
    CONSTRAINT idem_resolution_pkey PRIMARY KEY (scope, digest, seq)
);

-- Code of earlier versions does not know these tables and works as before.
INSERT INTO "pgonce"."schema_version" (version, min_code) VALUES (5, 1);

-- +goose Down

-- Forgetting what has been paid is paying twice, so this refuses while a key is being executed, or a
-- decision of a person is on record. The locks come first: no row can slip in between the look and the drop.
LOCK TABLE "pgonce"."idem_worker", "pgonce"."idem_lease", "pgonce"."idem_step", "pgonce"."idem_resolution" IN ACCESS EXCLUSIVE MODE;

-- +goose StatementBegin
DO $$
BEGIN
    IF coalesce(current_setting('pgonce.force_down', true), '') <> 'on'
       AND (EXISTS (SELECT FROM "pgonce"."idem_lease") OR EXISTS (SELECT FROM "pgonce"."idem_resolution")) THEN
        RAISE EXCEPTION 'pgonce: idem_lease or idem_resolution holds keys; dropping them lets foreign calls happen again'
            USING ERRCODE = 'object_in_use',
                  HINT = 'empty the tables, or set pgonce.force_down = ''on'' in this session';
    END IF;
END
$$;
-- +goose StatementEnd

DROP TABLE "pgonce"."idem_worker";
DROP TABLE "pgonce"."idem_lease";
DROP TABLE "pgonce"."idem_step";
DROP TABLE "pgonce"."idem_resolution";
DELETE FROM "pgonce"."schema_version" WHERE version = 5;
