-- +goose Up

-- What the original way needs. Do not copy.
CREATE SCHEMA original;

CREATE TABLE original.remittance (
    id           text PRIMARY KEY,
    account      text NOT NULL,
    amount_cents bigint NOT NULL,
    flag         smallint NOT NULL DEFAULT 1,
    serial       text
);

-- What tryLock(wait, lease) does, by the server's clock.
CREATE TABLE original.lock (
    key        text PRIMARY KEY,
    owner      text NOT NULL,
    expires_at timestamptz NOT NULL
);

-- +goose Down
DROP SCHEMA original CASCADE;
