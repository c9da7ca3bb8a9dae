-- +goose Up

-- What the original needs. Do not copy.
CREATE SCHEMA wechatpay_original;

-- Stands for Redis, with the expiry where it can be read.
CREATE TABLE wechatpay_original.lock (
    key        text PRIMARY KEY,
    owner      text NOT NULL,
    expires_at timestamptz NOT NULL
);

CREATE TABLE wechatpay_original.wallet_order (
    number       text PRIMARY KEY,
    wallet       text NOT NULL,
    amount_cents bigint NOT NULL,
    payment      text NOT NULL DEFAULT 'unpaid',
    consumption  text NOT NULL DEFAULT 'not consumed'
);

CREATE TABLE wechatpay_original.credit (
    number       text NOT NULL,
    amount_cents bigint NOT NULL
);

-- +goose Down
DROP SCHEMA wechatpay_original CASCADE;
