-- +goose Up
CREATE SCHEMA wechatpay;
CREATE SCHEMA wechatpay_queue; -- the queue's own migrations fill it

-- One row, two machines: whether the money is here, and what has become of the callback.
CREATE TABLE wechatpay.wallet_order (
    number       text PRIMARY KEY,
    wallet       text NOT NULL,
    amount_cents bigint NOT NULL CHECK (amount_cents > 0),
    payment      text NOT NULL DEFAULT 'unpaid',
    consumption  text NOT NULL DEFAULT 'not consumed',
    transaction  text,        -- the payment platform's
    paid_at      timestamptz,
    CHECK ((payment = 'paid') = (paid_at IS NOT NULL)),
    CHECK (payment = 'unpaid' OR consumption = 'consumed'),
    CHECK ((consumption = 'not consumed') = (transaction IS NULL))
);

-- What was put into wallets: an order once.
CREATE TABLE wechatpay.credit (
    number       text PRIMARY KEY REFERENCES wechatpay.wallet_order,
    wallet       text NOT NULL,
    amount_cents bigint NOT NULL,
    at           timestamptz NOT NULL DEFAULT now()
);

-- +goose Down
DROP SCHEMA wechatpay_queue CASCADE;
DROP SCHEMA wechatpay CASCADE;
