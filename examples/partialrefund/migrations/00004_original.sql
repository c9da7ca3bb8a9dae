-- +goose Up

-- What the original needs. Do not copy.
CREATE SCHEMA partialrefund_original;

-- Stands for Redis, with the expiry where it can be read.
CREATE TABLE partialrefund_original.lock (
    key        text PRIMARY KEY,
    expires_at timestamptz NOT NULL
);

CREATE TABLE partialrefund_original.shop_order (
    id             text PRIMARY KEY,
    account        text NOT NULL,
    paid_cents     bigint NOT NULL,
    refunded_cents bigint NOT NULL DEFAULT 0
);

CREATE TABLE partialrefund_original.refund (
    apply_id text NOT NULL,
    order_id text NOT NULL,
    kind     text NOT NULL,
    state    text NOT NULL
);

-- +goose Down
DROP SCHEMA partialrefund_original CASCADE;
