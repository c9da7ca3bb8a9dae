-- +goose Up
CREATE SCHEMA urging;
CREATE SCHEMA urging_queue; -- the queue's own migrations fill it

CREATE TABLE urging.ticket (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    assignee text NOT NULL
);

-- A window of a ticket: whoever urges within it joins this urge.
CREATE TABLE urging.urge (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    ticket    bigint NOT NULL REFERENCES urging.ticket,
    opened_at timestamptz NOT NULL,
    ends_at   timestamptz NOT NULL,
    latest_at timestamptz NOT NULL, -- for people: it moves no window
    state     text NOT NULL DEFAULT 'raised',
    receipt   text,
    reason    text,
    CHECK (ends_at = opened_at + interval '15 minutes'),
    CHECK (latest_at >= opened_at),
    CHECK ((state = 'pushed') = (receipt IS NOT NULL)),
    CHECK ((state = 'undeliverable') = (reason IS NOT NULL)),
    -- No two windows of a ticket overlap, whoever writes: the last line, should a lock have failed. A range without
    -- bounds of its own is half-open, so one window may begin in the instant in which another ends.
    EXCLUDE USING gist (int8range(ticket, ticket, '[]') WITH &&, tstzrange(opened_at, ends_at) WITH &&)
        DEFERRABLE -- so that one UPDATE can make all windows older
);
CREATE INDEX ON urging.urge (ticket, ends_at);

-- Who has urged: one sub-record for each user of a window.
CREATE TABLE urging.urger (
    urge    bigint NOT NULL REFERENCES urging.urge,
    user_id text NOT NULL,
    at      timestamptz NOT NULL,
    PRIMARY KEY (urge, user_id)
);

-- +goose Down
DROP SCHEMA urging_queue CASCADE;
DROP SCHEMA urging CASCADE;
