-- +goose Up
CREATE SCHEMA shop;
CREATE SCHEMA shop_queue; -- the queue's own migrations fill it

-- What was sold, and how much of it has been given back: paid out, or on its way.
CREATE TABLE shop.purchase (
    merchant       text NOT NULL,
    id             text NOT NULL,
    paid_cents     bigint NOT NULL,
    refunded_cents bigint NOT NULL DEFAULT 0 CHECK (refunded_cents BETWEEN 0 AND paid_cents),
    PRIMARY KEY (merchant, id)
);

CREATE SEQUENCE shop.refund_id;

-- One row for each refund. It is sharded, and still one number is one refund: the unique
-- index contains the column that decides the shard, so both requests of a number meet
-- in one shard, whoever asks.
CREATE TABLE shop.refund (
    id           bigint NOT NULL DEFAULT nextval('shop.refund_id'),
    merchant     text NOT NULL,
    number       text NOT NULL,
    asked_by     text NOT NULL,
    purchase     text NOT NULL,
    account      text NOT NULL,
    amount_cents bigint NOT NULL CHECK (amount_cents > 0),
    state        text NOT NULL DEFAULT 'requested' CHECK (state IN ('requested', 'paid', 'refused')),
    bank_serial  text,
    reason       text,
    requested_at timestamptz NOT NULL DEFAULT now(),
    settled_at   timestamptz,
    PRIMARY KEY (merchant, id),
    UNIQUE (merchant, number),
    FOREIGN KEY (merchant, purchase) REFERENCES shop.purchase,
    CHECK ((state = 'paid') = (bank_serial IS NOT NULL)),
    CHECK ((state = 'refused') = (reason IS NOT NULL)),
    CHECK ((state = 'requested') = (settled_at IS NULL))
) PARTITION BY HASH (merchant);
CREATE INDEX ON shop.refund (id); -- what a transition finds its row by
ALTER SEQUENCE shop.refund_id OWNED BY shop.refund.id;

CREATE TABLE shop.refund_0 PARTITION OF shop.refund FOR VALUES WITH (MODULUS 4, REMAINDER 0);
CREATE TABLE shop.refund_1 PARTITION OF shop.refund FOR VALUES WITH (MODULUS 4, REMAINDER 1);
CREATE TABLE shop.refund_2 PARTITION OF shop.refund FOR VALUES WITH (MODULUS 4, REMAINDER 2);
CREATE TABLE shop.refund_3 PARTITION OF shop.refund FOR VALUES WITH (MODULUS 4, REMAINDER 3);

-- +goose Down
DROP SCHEMA shop_queue CASCADE;
DROP SCHEMA shop CASCADE;
