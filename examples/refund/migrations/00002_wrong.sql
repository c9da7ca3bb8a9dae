-- +goose Up

-- What the wrong ways need. Do not copy.
CREATE SCHEMA wrong;

-- Sharded by who asks, and each shard sees to it that a number is there once: in this shard.
-- A unique index over all of them would have to contain asked_by, and would then be none on the number.
CREATE TABLE wrong.sharded (
    merchant text NOT NULL,
    number   text NOT NULL,
    asked_by text NOT NULL,
    serial   text
) PARTITION BY HASH (asked_by);

CREATE TABLE wrong.sharded_0 PARTITION OF wrong.sharded FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE wrong.sharded_1 PARTITION OF wrong.sharded FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE UNIQUE INDEX ON wrong.sharded_0 (merchant, number);
CREATE UNIQUE INDEX ON wrong.sharded_1 (merchant, number);

-- For select-then-insert.
CREATE TABLE wrong.looked_up (
    merchant text NOT NULL,
    number   text NOT NULL,
    serial   text NOT NULL
);
CREATE INDEX ON wrong.looked_up (merchant, number);

-- What SET key owner NX PX 600000 does, with the expiry where it can be aged.
CREATE TABLE wrong.lock (
    key        text PRIMARY KEY,
    owner      text NOT NULL,
    expires_at timestamptz NOT NULL
);

-- +goose Down
DROP SCHEMA wrong CASCADE;
