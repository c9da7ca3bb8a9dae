-- +goose Up

-- What the original needs. Do not copy.
CREATE SCHEMA urging_original;

-- Stands for Redis.
CREATE TABLE urging_original.redis (
    key   text PRIMARY KEY,
    value text NOT NULL
);

CREATE TABLE urging_original.urge (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    ticket    bigint NOT NULL,
    opened_at timestamptz NOT NULL, -- by the clock of the instance
    latest_at timestamptz NOT NULL
);
CREATE INDEX ON urging_original.urge (ticket);

CREATE TABLE urging_original.urger (
    urge    bigint NOT NULL,
    user_id text NOT NULL
);
CREATE INDEX ON urging_original.urger (urge);

-- +goose Down
DROP SCHEMA urging_original CASCADE;
