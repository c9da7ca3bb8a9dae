-- +goose Up
-- +goose StatementBegin
-- The rows of before are held to the machine's states too. Locks: SHARE UPDATE EXCLUSIVE on the table while it is read,
-- which lets reads and writes pass; then ACCESS EXCLUSIVE for a moment, since the constraint proves that there is no NULL.
SET LOCAL lock_timeout = '2s';
ALTER TABLE "partialrefund"."refund" VALIDATE CONSTRAINT "pgonce_states_state";
ALTER TABLE "partialrefund"."refund" ALTER COLUMN "state" SET NOT NULL;
-- +goose StatementEnd

-- +goose Down
