package pg

// SQLSchemaVersion reads the newest applied migration and the oldest code that it
// admits. Locks: none beyond ACCESS SHARE. Index: the table has one row a migration.
const SQLSchemaVersion = `
SELECT version, min_code
FROM "pgonce"."schema_version"
ORDER BY version DESC
LIMIT 1`

// SQLBackendPID names the server process behind a session. Locks: none.
const SQLBackendPID = `SELECT pg_backend_pid()`

// SQLCancelBackend cancels what the server process $1 is running. Locks: none.
const SQLCancelBackend = `SELECT pg_cancel_backend($1::int)`
