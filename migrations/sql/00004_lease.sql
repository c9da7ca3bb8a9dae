-- +goose Up

-- Lease locks: one row for each key that is held, or was by somebody who has not given it back.
--   space, id    the key, in clear, for people who look; the primary key is what excludes
--   nonce        one grant: whoever takes the key over deletes the row and inserts one of his own
--   ttl          for how long each heartbeat renews it
--   expires_at   by the server's clock; 'epoch' when it was given back while a fenced transaction had the row
--   holder       which process has it
-- No index may mention expires_at, so that heartbeats stay HOT updates in the room that fillfactor leaves.
-- Columns of fixed width come first, which saves their padding.
-- The table is empty whenever no lock is held. VACUUM must not cut it down to nothing then: sessions that plan their statements
-- in that moment would choose to scan the whole table, and keep that plan when it has grown again.
CREATE TABLE "pgonce"."lease" (
    nonce       bigint NOT NULL,
    acquired_at timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL,
    ttl         interval NOT NULL CHECK (ttl > '0'),
    space       text COLLATE "C" NOT NULL,
    id          text COLLATE "C" NOT NULL,
    holder      text NOT NULL,
    CONSTRAINT lease_pkey PRIMARY KEY (space, id)
) WITH (fillfactor = 50, vacuum_truncate = off);

-- Code of version 1 does not know this table and works as before.
INSERT INTO "pgonce"."schema_version" (version, min_code) VALUES (4, 1);

-- +goose Down

-- Who holds a lease could be joined by another holder once the table is back, so this refuses while there is
-- one. The lock comes first: no lease can slip in between the look and the drop.
LOCK TABLE "pgonce"."lease" IN ACCESS EXCLUSIVE MODE;

-- +goose StatementBegin
DO $$
BEGIN
    IF coalesce(current_setting('pgonce.force_down', true), '') <> 'on'
       AND EXISTS (SELECT FROM "pgonce"."lease" WHERE expires_at > clock_timestamp()) THEN
        RAISE EXCEPTION 'pgonce: lease has locks that are held; dropping it takes them from their holders'
            USING ERRCODE = 'object_in_use',
                  HINT = 'wait until they are given back, or set pgonce.force_down = ''on'' in this session';
    END IF;
END
$$;
-- +goose StatementEnd

DROP TABLE "pgonce"."lease";
DELETE FROM "pgonce"."schema_version" WHERE version = 4;
