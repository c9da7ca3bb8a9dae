-- +goose Up

-- What the original way needs. Do not copy.
CREATE SCHEMA careless;

CREATE TABLE careless.purchase (
    id           bigint PRIMARY KEY,
    amount_cents bigint NOT NULL,
    state        text NOT NULL DEFAULT 'unpaid'
);

-- What SET key value NX PX 5 does, by the server's clock.
CREATE TABLE careless.lock (
    key        text PRIMARY KEY,
    expires_at timestamptz NOT NULL
);

-- +goose Down
DROP SCHEMA careless CASCADE;
