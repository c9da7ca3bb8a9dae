-- +goose Up
CREATE SCHEMA remit;
CREATE SCHEMA remit_queue; -- the queue's own migrations fill it

-- What is to be paid out, to whom, and where it is: 1 new, 2 paid, 3 failed, 4 cancelled, 5 bounced, 6 reset, 7 unknown, 8 at the bank,
-- 9 illegal. The next two migrations hold every program to the ways between these.
CREATE TABLE remit.remittance (
    id           text PRIMARY KEY, -- payment and business, as the message names it
    account      text NOT NULL,
    amount_cents bigint NOT NULL CHECK (amount_cents > 0),
    flag         smallint NOT NULL DEFAULT 1,
    since        timestamptz NOT NULL DEFAULT now(),
    send         integer NOT NULL DEFAULT 1, -- which sending this is: only a reset raises it
    reference    text,                       -- what the last call to the bank was called
    serial       text,                       -- the bank's serial number
    reason       text,                       -- why the bank refused, or returned it
    CHECK (flag NOT IN (2, 5) OR serial IS NOT NULL), -- the serial number is stored in the statement that stores the flag
    CHECK (flag NOT IN (3, 5) OR reason IS NOT NULL),
    CHECK (flag NOT IN (2, 3, 5, 7, 8) OR reference IS NOT NULL)
);
CREATE INDEX ON remit.remittance (since) WHERE flag IN (7, 8); -- what somebody may have to look at
CREATE UNIQUE INDEX ON remit.remittance (serial);

-- What the bank has returned. What is not booked for long has no remittance that it could belong to.
CREATE TABLE remit.returned (
    serial    text PRIMARY KEY,
    reason    text NOT NULL,
    seen_at   timestamptz NOT NULL DEFAULT now(),
    booked_at timestamptz
);
CREATE INDEX ON remit.returned (seen_at) WHERE booked_at IS NULL;

-- +goose Down
DROP SCHEMA remit_queue CASCADE;
DROP SCHEMA remit CASCADE;
