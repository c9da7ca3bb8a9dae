-- +goose Up
CREATE SCHEMA shop;

CREATE TABLE shop.purchase (
    merchant       text NOT NULL,
    id             text NOT NULL,
    paid_cents     bigint NOT NULL,
    refunded_cents bigint NOT NULL DEFAULT 0 CHECK (refunded_cents <= paid_cents),
    PRIMARY KEY (merchant, id)
);

-- A row is money that left. Nothing here keeps a request from paying twice: request is
-- not unique, so that the storm can count what idempotency does or fails to do.
CREATE TABLE shop.payout (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    merchant     text NOT NULL,
    purchase     text NOT NULL,
    request      text NOT NULL,
    amount_cents bigint NOT NULL,
    paid_at      timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (merchant, purchase) REFERENCES shop.purchase
);
CREATE INDEX payout_request ON shop.payout (merchant, request);

-- +goose Down
DROP SCHEMA shop CASCADE;
