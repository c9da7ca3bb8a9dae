-- +goose Up
CREATE SCHEMA partialrefund;
CREATE SCHEMA partialrefund_queue; -- the queue's own migrations fill it

-- What was paid, and how much of it has been given back: paid out, or on its way.
CREATE TABLE partialrefund.shop_order (
    id             text PRIMARY KEY,
    account        text NOT NULL,
    paid_cents     bigint NOT NULL CHECK (paid_cents > 0),
    refunded_cents bigint NOT NULL DEFAULT 0,
    CHECK (refunded_cents BETWEEN 0 AND paid_cents) -- the last line, whoever writes
);

CREATE TABLE partialrefund.refund (
    apply_id     text PRIMARY KEY,
    order_id     text NOT NULL REFERENCES partialrefund.shop_order,
    kind         text NOT NULL CHECK (kind IN ('customer', 'staff', 'agree')),
    amount_cents bigint NOT NULL CHECK (amount_cents > 0),
    state        text NOT NULL DEFAULT 'executing',
    serial       text, -- the refund service's
    reason       text,
    asked_at     timestamptz NOT NULL DEFAULT now(),
    CHECK ((state = 'refunded') = (serial IS NOT NULL)),
    CHECK ((state = 'refused') = (reason IS NOT NULL))
);
CREATE INDEX ON partialrefund.refund (order_id, amount_cents);

-- An agreement is about one refund, and a refund is agreed to once.
CREATE TABLE partialrefund.agreement (
    id       text PRIMARY KEY,
    apply_id text NOT NULL UNIQUE REFERENCES partialrefund.refund
);

-- +goose Down
DROP SCHEMA partialrefund_queue CASCADE;
DROP SCHEMA partialrefund CASCADE;
